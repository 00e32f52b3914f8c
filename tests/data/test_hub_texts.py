"""Texts in Hugging Face datasets, from local folders that the tests write; the hub itself is never asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeforge.core.errors import DataError
from edgeforge.data.hub import Hub

datasets = pytest.importorskip("datasets")

NAMES = ["spam", "ham"]
TEXTS = [f"text {number} \u2615" for number in range(9)]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def split(texts: list[Any], labels: list[Any], label: Any = None, **more: Any) -> Any:
    features = {"text": datasets.Value("string"), "label": label or datasets.ClassLabel(names=NAMES)}
    extra = {name: datasets.Value("string") for name in more}
    return datasets.Dataset.from_dict({"text": texts, "label": labels, **more}, datasets.Features(features | extra))


def saved(folder: Path, **splits: Any) -> str:
    """What save_to_disk writes: six training texts, three test texts, two classes; and what the test adds."""
    sound = {"train": split(TEXTS[:6], [0, 1] * 3), "test": split(TEXTS[6:], [0, 1, 0])}
    datasets.DatasetDict(sound | splits).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def snapshot(folder: Path) -> str:
    """What a downloaded hub repository looks like."""
    (folder / "snapshot").mkdir()
    split(TEXTS[:6], [0, 1] * 3).to_parquet(str(folder / "snapshot" / "train.parquet"))
    split(TEXTS[6:], [0, 1, 0]).to_parquet(str(folder / "snapshot" / "test.parquet"))
    return str(folder / "snapshot")


@pytest.mark.parametrize("write", [saved, snapshot])
def test_both_kinds_of_folder_give_the_same_data(tmp_path: Path, write: Any) -> None:
    parts = Hub(path=write(tmp_path)).texts()
    assert parts.label_names == ("spam", "ham")  # the dataset's own order
    assert parts.train.texts == tuple(TEXTS[:6])
    assert parts.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert parts.test.texts == tuple(TEXTS[6:])
    assert parts.unlabelled == ()


def test_the_digest_follows_the_content_not_the_place(tmp_path: Path) -> None:
    digest = Hub(path=saved(tmp_path)).digest()
    assert Hub(path=snapshot(tmp_path)).digest() == digest
    others = [
        saved(tmp_path / "a", train=split([*TEXTS[:5], "changed"], [0, 1] * 3)),
        saved(tmp_path / "b", test=split(TEXTS[6:], [0, 1, 1])),
        saved(tmp_path / "c", train=split(TEXTS[:6], [0, 1, 0, 1, 0, -1])),
    ]
    assert len({digest, *(Hub(path=path).digest() for path in others)}) == 4


def test_more_rows_than_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeforge.data.hub.ROWS_AT_ONCE", 4)
    assert Hub(path=saved(tmp_path)).texts().train.texts == tuple(TEXTS[:6])
    bad = saved(tmp_path / "bad", train=split([*TEXTS[:5], " "], [0, 1] * 3))
    with pytest.raises(DataError, match="the text is empty") as caught:
        Hub(path=bad).texts()
    assert str(caught.value.where).endswith("train, row 5")


def test_texts_without_a_label(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        train=split(TEXTS[:6], [0, 1, 0, 1, -1, None]),
        more=split(["further"], [0]).remove_columns("label"),
    )
    parts = Hub(path=path, unlabelled="more").texts()
    assert parts.unlabelled == (TEXTS[4], TEXTS[5], "further")
    with pytest.raises(DataError, match="this test text has no label") as caught:
        Hub(path=saved(tmp_path / "glue", test=split(TEXTS[6:], [-1] * 3))).texts()
    assert str(caught.value.where).endswith("test, row 0")
    with pytest.raises(DataError, match="no split is named 'mroe'"):
        Hub(path=path, unlabelled="mroe").texts()


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    title = ["a title"] * 6
    path = saved(
        tmp_path,
        train=split(TEXTS[:6], [0, 1] * 3, title=title),
        test=split(TEXTS[6:], [0, 1, 0], title=title[:3]),
    )
    with pytest.raises(DataError, match=r"2 columns are of type string \(text, title\), not one.*\n.*`text`"):
        Hub(path=path).texts()
    assert Hub(path=path, text="text").texts().train.texts == tuple(TEXTS[:6])
    assert set(Hub(path=path, text="title").texts().train.texts) == {"a title"}
    with pytest.raises(DataError, match="no column is named 'body'"):
        Hub(path=path, text="body").texts()
    with pytest.raises(DataError, match="there is no column 'title'"):
        Hub(path=saved(tmp_path / "x", train=split(TEXTS[:6], [0, 1] * 3, title=title)), text="title").texts()


@pytest.mark.parametrize(
    ("kind", "labels", "names"),
    [
        ("string", ["no", "yes"], ("no", "yes")),
        ("int64", [10, 9], ("9", "10")),
        ("bool", [True, False], ("false", "true")),
    ],
)
def test_labels_may_be_plain_values(tmp_path: Path, kind: str, labels: list[Any], names: Any) -> None:
    value = datasets.Value(kind)
    path = saved(
        tmp_path, train=split(TEXTS[:6], labels * 3, value), test=split(TEXTS[6:], [*labels, labels[0]], value)
    )
    parts = Hub(path=path, label="label").texts()
    assert parts.label_names == names
    assert [parts.label_names[label] for label in parts.train.labels[:2]] == [str(one).lower() for one in labels]


def test_bad_labels_are_refused(tmp_path: Path) -> None:
    fractions = split(TEXTS[:6], [0.5, 1.0] * 3, datasets.Value("float32"))
    with pytest.raises(DataError, match=r"the label is the fraction 0\.5"):
        Hub(path=saved(tmp_path / "fractions", train=fractions), label="label").texts()
    other = split(TEXTS[6:], [0, 1, 0], datasets.ClassLabel(names=["ham", "eggs"]))
    with pytest.raises(DataError, match="no class is named 'eggs'") as caught:
        Hub(path=saved(tmp_path / "other", test=other)).texts()
    assert str(caught.value.where).endswith("test, row 1")


def test_images_and_texts_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    from PIL import Image

    with pytest.raises(DataError, match=r"0 columns are of type Image \(none\)"):
        Hub(path=saved(tmp_path / "texts")).images(None)
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)}
    )
    rows = {"image": [Image.new("L", (4, 4), 9)] * 4, "caption": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]}
    both = datasets.Dataset.from_dict(rows, features)
    path = saved(tmp_path, train=both, test=both.select([2, 3]))
    assert len(Hub(path=path).images(None).train.images) == 4
    with pytest.raises(DataError, match="the dataset has a column of images"):
        Hub(path=path).texts()
    assert Hub(path=path, text="caption").texts().test.texts == ("c", "d")
    assert Hub(path=path, text="caption").digest() != Hub(path=path).digest()
    with pytest.raises(ValidationError, match="give one of image and text"):
        Hub(path=path, text="caption", image="image")
