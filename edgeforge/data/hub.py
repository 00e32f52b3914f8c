"""A Hugging Face dataset: by its id on the hub, or as a folder on this disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from edgeforge.core.errors import ConfigurationError, DataError
from edgeforge.core.spec import digest_of, perhaps
from edgeforge.data import DataSource, DocumentParts, ImageParts, Medium, TextParts
from edgeforge.data._decode import CHANNELS_DESCRIPTION, Channels, lazy_parts
from edgeforge.data._documents import Found, make_document_parts
from edgeforge.data._hub import class_names, column, columns_of, load, split_named
from edgeforge.data._parts import labels_from_array, make_parts
from edgeforge.data._texts import Row, cell_text, make_text_parts

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from typing_extensions import Self

    FolderState = tuple[tuple[str, int, int], ...]

ROWS_AT_ONCE = 1000
NO_CLASS = -1  # what a column of class labels holds for a sample without one


class Hub(DataSource):
    """A dataset of the Hugging Face hub through the `datasets` library: images, texts with labels, or documents.

    `path` is its id, the folder of a downloaded snapshot, or a folder that `save_to_disk` wrote; a folder that
    exists goes first. Code that a dataset brings is never run.
    """

    kind: Literal["hub"] = "hub"
    path: str = Field(description="An id such as `zalando-datasets/fashion_mnist`, or a folder.")
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub; a commit never changes.")
    config: str | None = Field(default=None, description="Which configuration, for a dataset that has several.")
    train: str = Field(default="train", description="The split to train on.")
    test: str = Field(default="test", description="The split to test on.")
    unlabelled: str | None = Field(default=None, description="A split of further texts to train on.")
    image: str | None = Field(default=None, description="The column of images; absent: the only one there is.")
    text: str | None = Field(default=None, description="The column of texts; absent: the only one there is.")
    label: str | None = Field(default=None, description="The column of labels; absent: the only class label there is.")
    messages: str = Field(
        default="messages", description="The column of chats, where there is one: lists of messages, for documents."
    )
    channels: Channels | None = Field(default=None, description=CHANNELS_DESCRIPTION)

    holds: ClassVar[frozenset[Medium]] = frozenset({"images", "texts", "documents"})
    needs: ClassVar[tuple[str, ...]] = ("datasets",)
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.data._decode",
        "edgeforge.data._documents",
        "edgeforge.data._hub",
        "edgeforge.data._parts",
        "edgeforge.data._texts",
    )

    @model_validator(mode="after")
    def _images_or_texts(self) -> Self:
        if self.image is not None and self.text is not None:
            raise ValueError("give one of image and text")
        return self

    def digest(self) -> str:
        return _digest(self, *self._place())

    def images(self, image_size: int | None) -> ImageParts:
        train, test, names = _image_rows(self, *self._place())
        train_images, test_images, shape = lazy_parts(train, test, channels=self.channels, image_size=image_size)
        return make_parts(
            (train_images, train.labels),
            (test_images, test.labels),
            label_names=names,
            image_shape=shape,
            where=self.path,
        )

    def texts(self) -> TextParts:
        return _text_parts(self, *self._place())

    def documents(self) -> DocumentParts:
        return _document_parts(self, *self._place())

    def column(self, name: str) -> tuple[str, ...]:
        dataset = split_named(_splits(self, *self._place()), self.test, where=self.path)
        if name not in dataset.features:
            raise ConfigurationError(perhaps("no column is named", name, list(dataset.features)), where="slices")
        feature = dataset.features[name]
        names = getattr(feature, "names", None)
        values = dataset.select_columns([name])[:][name]
        where = f"{self.path} {self.test}"
        return tuple(cell_text(_named(value, names), f"{where}, row {row}") for row, value in enumerate(values))

    def _place(self) -> tuple[Path | None, FolderState]:
        """The local folder, if it is one, and what tells whether something in it changed."""
        folder = Path(self.path).expanduser().absolute()
        if not folder.is_dir():
            return None, ()
        files = ((file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
        return folder, tuple((str(file), status.st_size, status.st_mtime_ns) for file, status in files)


# A hub id is read once per process; a folder again when a file in it changed (hence the state in the keys below).
@functools.lru_cache(maxsize=4)
def _digest(spec: Hub, folder: Path | None, state: FolderState) -> str:
    medium = _medium(spec, split_named(_splits(spec, folder, state), spec.train, where=spec.path))
    if medium == "documents":
        found = _document_parts(spec, folder, state)
        said = [[[one.text, *map(astuple, one.messages)] for one in part] for part in (found.train, found.test)]
        return digest_of(said)
    if medium == "texts":
        parts = _text_parts(spec, folder, state)
        labelled = [[part.texts, part.labels.tolist()] for part in (parts.train, parts.test)]
        return digest_of({"parts": labelled, "unlabelled": parts.unlabelled, "names": parts.label_names})
    train, test, names = _image_rows(spec, folder, state)
    digests = []
    for part in (train, test):
        sha = hashlib.sha256(part.labels.tobytes())
        for start in range(0, len(part), ROWS_AT_ONCE):
            for source, _ in part.at(range(start, min(start + ROWS_AT_ONCE, len(part)))):
                content = source if isinstance(source, bytes) else source.read_bytes()
                sha.update(hashlib.sha256(content).digest())
        digests.append(sha.hexdigest())
    return digest_of({"parts": digests, "names": names, "channels": spec.channels})


@functools.lru_cache(maxsize=4)
def _splits(spec: Hub, folder: Path | None, state: FolderState) -> DatasetDict:
    return load(spec.path, spec.config, spec.revision, folder=folder)


def _medium(spec: Hub, dataset: Dataset) -> Medium:
    """What the digest covers: images, where there is a column of them and none of texts is named; else texts, with
    labels where there is a column of them."""
    if spec.image is not None or (spec.text is None and columns_of(dataset, "Image")):
        return "images"
    return "texts" if spec.label is not None or columns_of(dataset, "ClassLabel") else "documents"


# -- images


@dataclass(frozen=True)
class _Images:
    """One split: encoded images (a dataset of one column, not decoded) and labels, int64, shape (N,)."""

    images: Dataset
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Sequence[int]) -> list[tuple[Path | bytes, str]]:
        column = self.images.column_names[0]
        items = self.images[list(indices)][column]
        found: list[tuple[Path | bytes, str]] = []
        for index, item in zip(indices, items, strict=True):
            name = f"{self.name}, row {index}"
            if item is None:
                raise DataError("there is no image", where=name, remedy="remove this row")
            found.append((item["bytes"] if item["bytes"] is not None else Path(item["path"]), name))
        return found


@functools.lru_cache(maxsize=4)
def _image_rows(spec: Hub, folder: Path | None, state: FolderState) -> tuple[_Images, _Images, list[str] | None]:
    """Training images, test images and class names (None: the classes are numbers)."""
    splits = _splits(spec, folder, state)
    parts = [split_named(splits, name, where=spec.path) for name in (spec.train, spec.test)]
    image = column(parts[0], "image", spec.image, where=spec.path)
    label = column(parts[0], "label", spec.label, where=spec.path)
    names, test_names = (class_names(part, label, where=spec.path) for part in parts)
    if names != test_names:
        raise DataError(
            "the splits name their classes differently", where=spec.path, remedy="use splits of one dataset"
        )
    if label in columns_of(parts[0], "string"):
        names = sorted({str(value) for value in parts[0].select_columns([label])[:][label]})
    train, test = (
        _images(part, image, label, names, f"{spec.path} {split}")
        for part, split in zip(parts, (spec.train, spec.test), strict=True)
    )
    return train, test, names


def _images(dataset: Dataset, image: str, label: str, names: list[str] | None, name: str) -> _Images:
    from datasets import Image

    if not isinstance(dataset.features.get(image), Image):
        raise DataError(f"there is no column '{image}' of images", where=name, remedy="set `image`")
    values = dataset.select_columns([label])[:][label]
    if values and isinstance(values[0], str):
        known = {text: number for number, text in enumerate(names or ())}
        values = [known.get(value, -1) for value in values]
    labels = labels_from_array(np.asarray(list(values)), count=len(dataset), where=name)
    return _Images(dataset.select_columns([image]).cast_column(image, Image(decode=False)), labels, name)


# -- texts


@functools.lru_cache(maxsize=4)
def _text_parts(spec: Hub, folder: Path | None, state: FolderState) -> TextParts:
    splits = _splits(spec, folder, state)
    train = split_named(splits, spec.train, where=spec.path)
    if _medium(spec, train) == "images":
        raise DataError(
            "the dataset has a column of images", where=spec.path, remedy="set `text` to its column of texts, if any"
        )
    label = column(train, "label", spec.label, where=spec.path)
    others = train.select_columns([name for name in train.column_names if name != label])
    text = column(others, "text", spec.text, where=spec.path)

    def rows(name: str, *, labelled: bool = True) -> Iterator[Row]:
        dataset, where = split_named(splits, name, where=spec.path), f"{spec.path} {name}"
        return _rows(dataset, text, label if labelled else None, where)

    return make_text_parts(
        rows(spec.train),
        rows(spec.test),
        rows(spec.unlabelled, labelled=False) if spec.unlabelled is not None else (),
        labels=class_names(train, label, where=spec.path),
        places=(f"{spec.path} {spec.train}", f"{spec.path} {spec.test}"),
    )


def _rows(dataset: Dataset, text: str, label: str | None, where: str) -> Iterator[Row]:
    """The rows of one split, a thousand in memory at a time. Raises DataError."""
    if text not in dataset.features:
        raise DataError(f"there is no column '{text}'", where=where, remedy="set `text`")
    names = None if label is None else class_names(dataset, label, where=where)
    wanted = dataset.select_columns([text] if label is None else [text, label])
    for start in range(0, len(wanted), ROWS_AT_ONCE):
        found = wanted[start : start + ROWS_AT_ONCE]
        labels = [None] * len(found[text]) if label is None else found[label]
        for row, (content, value) in enumerate(zip(found[text], labels, strict=True), start):
            yield Row(content, _named(value, names), f"{where}, row {row}")


def _named(value: object, names: Sequence[str] | None) -> object:
    """The class name behind a number; None where there is no label. A number without a name stays, to be refused."""
    if names is None or not isinstance(value, int):
        return value
    if value == NO_CLASS:
        return None
    return names[value] if 0 <= value < len(names) else value


# -- documents


@functools.lru_cache(maxsize=4)
def _document_parts(spec: Hub, folder: Path | None, state: FolderState) -> DocumentParts:
    if spec.train == spec.test:
        raise DataError(
            f"'{spec.test}' is the training split and the test split", where=spec.path, remedy="test on another split"
        )
    splits = _splits(spec, folder, state)
    more = () if spec.unlabelled is None else (spec.unlabelled,)
    return make_document_parts(
        (found for name in (spec.train, *more) for found in _found(spec, splits, name)),
        _found(spec, splits, spec.test),
        places=(f"{spec.path} {spec.train}", f"{spec.path} {spec.test}"),
    )


def _found(spec: Hub, splits: DatasetDict, name: str) -> Iterator[Found]:
    """The rows of one split: chats where it has a column of them, else texts. Raises DataError."""
    dataset, where = split_named(splits, name, where=spec.path), f"{spec.path} {name}"
    if _medium(spec, dataset) == "images":
        raise DataError("the dataset has a column of images", where=where, remedy="set `text` to its column of texts")
    chats = spec.messages in dataset.features
    texts = not chats or spec.text is not None
    columns = {"messages": spec.messages} if chats else {}
    if texts:
        columns["text"] = column(dataset, "text", spec.text, where=where)
    wanted = dataset.select_columns(list(columns.values()))
    for start in range(0, len(wanted), ROWS_AT_ONCE):
        rows = wanted[start : start + ROWS_AT_ONCE]
        for offset in range(len(next(iter(rows.values())))):
            said = {role: rows[one][offset] for role, one in columns.items()}
            yield Found(said.get("text"), said.get("messages"), f"{where}, row {start + offset}")
