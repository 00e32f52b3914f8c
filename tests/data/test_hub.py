"""Hugging Face datasets from local folders that the tests write; the hub itself is never asked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeforge.core.errors import DataError, EnvironmentProblem
from edgeforge.data.hub import Hub

datasets = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 6, 5), dtype=np.uint8)
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def split(rows: range, *, label: Any = None, image: str = "image", name: str = "label") -> Any:
    features = datasets.Features({image: datasets.Image(), name: label or datasets.ClassLabel(names=NAMES)})
    values = [NAMES[row % 3] if label == datasets.Value("string") else row % 3 for row in rows]
    return datasets.Dataset.from_dict({image: [Image.fromarray(PIXELS[row]) for row in rows], name: values}, features)


def saved(folder: Path, **changes: Any) -> Path:
    """What save_to_disk writes: six training images, three test images, three classes."""
    splits = {"train": split(range(6), **changes), "test": split(range(6, 9), **changes)}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def snapshot(folder: Path, **changes: Any) -> Path:
    """What a downloaded hub repository looks like: Parquet files, one per split."""
    place = folder / "snapshot" / "data"
    place.mkdir(parents=True)
    split(range(6), **changes).to_parquet(str(place / "train-00000-of-00001.parquet"))
    split(range(6, 9), **changes).to_parquet(str(place / "test-00000-of-00001.parquet"))
    return place.parent


@pytest.mark.parametrize("write", [saved, snapshot])
def test_both_kinds_of_folder_give_the_same_data(tmp_path: Path, write: Any) -> None:
    parts = Hub(path=str(write(tmp_path))).images(None)
    assert parts.label_names == tuple(NAMES)
    assert parts.image_shape == (6, 5, 1)
    assert (parts.train.images[[4, 1]][..., 0] == PIXELS[[4, 1]]).all()
    assert (parts.test.images[range(3)][..., 0] == PIXELS[6:]).all()
    assert parts.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert parts.train.labels.dtype == np.int64


def test_the_digest_follows_the_content_not_the_place(tmp_path: Path) -> None:
    digest = Hub(path=str(saved(tmp_path))).digest()
    assert Hub(path=str(snapshot(tmp_path))).digest() == digest
    assert Hub(path=str(tmp_path / "saved"), channels="rgb").digest() != digest
    swapped = datasets.DatasetDict({"train": split(range(6)).select([1, 0, 2, 3, 4, 5]), "test": split(range(6, 9))})
    swapped.save_to_disk(str(tmp_path / "swapped"))
    assert Hub(path=str(tmp_path / "swapped")).digest() != digest


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    place = snapshot(tmp_path)
    source = Hub(path=str(place))
    digest = source.digest()
    split(range(3, 9)).to_parquet(str(place / "data" / "train-00000-of-00001.parquet"))
    assert source.digest() != digest
    assert (source.images(None).train.images[[0]][0, ..., 0] == PIXELS[3]).all()


def test_relative_paths_and_resizing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    parts = Hub(path="saved", channels="rgb").images(4)
    assert parts.image_shape == (4, 4, 3)
    assert parts.train.images[[0, 1]].shape == (2, 4, 4, 3)


def test_columns_and_splits_can_be_named(tmp_path: Path) -> None:
    splits = {
        "learn": split(range(6), image="photo", name="species"),
        "exam": split(range(6, 9), image="photo", name="species"),
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "named"))
    source = Hub(path=str(tmp_path / "named"), train="learn", test="exam", image="photo", label="species")
    assert len(source.images(None).train.images) == 6
    with pytest.raises(DataError, match=r"no split is named 'train'.*Known: exam, learn"):
        Hub(path=str(tmp_path / "named")).images(None)
    with pytest.raises(DataError, match=r"no column is named 'foto'; perhaps you meant 'photo'"):
        Hub(path=str(tmp_path / "named"), train="learn", test="exam", image="foto").images(None)
    with pytest.raises(DataError, match="there is no column 'species' of images"):
        Hub(path=str(tmp_path / "named"), train="learn", test="exam", image="species").images(None)


def test_labels_may_be_numbers_or_text(tmp_path: Path) -> None:
    numbers = snapshot(tmp_path / "numbers", label=datasets.Value("int32"))
    with pytest.raises(
        DataError, match=r"0 columns are of type ClassLabel \(none\), not one.*\n.*`label`.*image, label"
    ):
        Hub(path=str(numbers)).images(None)
    assert Hub(path=str(numbers), label="label").images(None).label_names == ("0", "1", "2")
    texts = Hub(path=str(snapshot(tmp_path / "texts", label=datasets.Value("string"))), label="label").images(None)
    assert texts.label_names == tuple(NAMES)
    assert texts.test.labels.tolist() == [0, 1, 2]


def test_bad_labels_are_refused(tmp_path: Path) -> None:
    fractions = snapshot(tmp_path / "fractions", label=datasets.Value("float32"))
    assert len(Hub(path=str(fractions), label="label").images(None).train.labels) == 6  # whole numbers, as it happens
    short = datasets.DatasetDict({"train": split(range(6)), "test": split(range(6, 8))})
    short.save_to_disk(str(tmp_path / "short"))
    with pytest.raises(DataError, match="the test part has no image of class 'cat'"):
        Hub(path=str(tmp_path / "short")).images(None)
    other = datasets.DatasetDict(
        {
            "train": split(range(6)),
            "test": split(range(6, 9)).cast_column("label", datasets.ClassLabel(names=list("xyz"))),
        }
    )
    other.save_to_disk(str(tmp_path / "other"))
    with pytest.raises(DataError, match="the splits name their classes differently"):
        Hub(path=str(tmp_path / "other")).images(None)


def test_a_broken_image_is_named_by_its_row(tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(good, "PNG")
    raw = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=NAMES)})
    rows = {
        "image": [{"bytes": good.getvalue(), "path": None}] * 2 + [{"bytes": b"broken", "path": None}],
        "label": [0, 1, 2],
    }
    broken = datasets.Dataset.from_dict(rows, raw)
    datasets.DatasetDict({"train": broken, "test": split(range(6, 9))}).save_to_disk(str(tmp_path / "broken"))
    source = Hub(path=str(tmp_path / "broken"))
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        source.images(None)
    assert str(caught.value.where).endswith("train, row 2")


def test_a_dataset_with_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    place = tmp_path / "trap"
    place.mkdir()
    (place / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    with pytest.raises(DataError, match="cannot read it"):
        Hub(path=str(place)).images(None)
    assert not (tmp_path / "sprung").exists()


def test_a_single_saved_split_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    split(range(6)).save_to_disk(str(tmp_path / "single"))
    (tmp_path / "empty").mkdir()
    for name, message in (("single", "holds one split"), ("empty", "doesn't contain any data files")):
        with pytest.raises(DataError, match=message):
            Hub(path=str(tmp_path / name)).images(None)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    place = snapshot(tmp_path)
    file = place / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read it") as caught:
        Hub(path=str(place)).images(None)
    assert str(place) in str(caught.value)


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentProblem, match="the hub cannot be reached") as caught:
        Hub(path="nobody/nothing").digest()
    assert caught.value.exit_code == 7
    assert str(tmp_path / "nobody" / "nothing") in str(caught.value)
    assert "give its folder" in str(caught.value.remedy)
