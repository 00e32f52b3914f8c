"""Documents in Hugging Face datasets, from local folders that the tests write; the hub itself is never asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeforge.core.errors import DataError
from edgeforge.data import Document, Message
from edgeforge.data.hub import Hub

datasets = pytest.importorskip("datasets")

CHATS = [[{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": "hi"}] for n in range(3)]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def saved(folder: Path, **splits: dict[str, list[Any]]) -> str:
    sound = {"train": {"text": ["one", "two", "three"]}, "test": {"text": ["four"]}}
    parts = {name: datasets.Dataset.from_dict(rows) for name, rows in {**sound, **splits}.items()}
    datasets.DatasetDict(parts).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def test_texts_without_labels_are_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeforge.data.hub.ROWS_AT_ONCE", 2)
    source = Hub(path=saved(tmp_path, more={"text": ["five"]}), unlabelled="more")
    parts = source.documents()
    assert parts.train == tuple(map(Document, ("one", "two", "three", "five")))
    assert parts.test == (Document("four"),)
    assert str(parts.train[2].where).endswith("saved train, row 2")
    assert source.digest() == Hub(path=saved(tmp_path / "copy", more={"text": ["five"]}), unlabelled="more").digest()
    others = [
        Hub(path=source.path).digest(),
        Hub(path=saved(tmp_path / "other", test={"text": ["5"]}, more={"text": ["five"]}), unlabelled="more").digest(),
    ]
    assert len({source.digest(), *others}) == 3


def test_chats(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        train={"messages": CHATS[:2], "prompt": ["a", "b"], "id": ["x", "y"]},
        test={"messages": CHATS[2:], "prompt": ["c"], "id": ["z"]},
    )
    parts = Hub(path=path).documents()
    assert parts.train[1] == Document(messages=(Message("user", "hello 1"), Message("assistant", "hi")))
    assert len(parts.test) == 1
    assert Hub(path=path, messages="none", text="prompt").documents().train == (Document("a"), Document("b"))


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path, train={"text": ["one", " "]})
    with pytest.raises(DataError, match="the text is empty") as caught:
        Hub(path=path).documents()
    assert str(caught.value.where).endswith("train, row 1")
    with pytest.raises(DataError, match="'train' is the training split and the test split"):
        Hub(path=path, test="train").documents()
    two = saved(tmp_path / "two", train={"a": ["x"], "b": ["y"]}, test={"a": ["x"], "b": ["y"]})
    with pytest.raises(DataError, match=r"2 columns are of type string \(a, b\)"):
        Hub(path=two).documents()
    roles = saved(tmp_path / "roles", train={"messages": [[{"role": "usr", "content": "x"}]]})
    with pytest.raises(DataError, match="perhaps you meant 'user'"):
        Hub(path=roles).documents()


def test_labels_and_images_are_no_obstacle(tmp_path: Path) -> None:
    from PIL import Image

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "labelled"))
    assert Hub(path=str(tmp_path / "labelled")).documents().train == (Document("a"), Document("b"))
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": [Image.new("L", (4, 4))], "text": ["a"]}, features)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "images"))
    with pytest.raises(DataError, match="has a column of images"):
        Hub(path=str(tmp_path / "images")).documents()
    assert Hub(path=str(tmp_path / "images"), text="text").documents().test == (Document("a"),)
