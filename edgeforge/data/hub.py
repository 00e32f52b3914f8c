"""A Hugging Face dataset: by its id on the hub, or as a folder on this disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.errors import DataError, EnvironmentProblem
from edgeforge.core.extras import require
from edgeforge.core.spec import digest_of, perhaps
from edgeforge.data import ImageParts, ImageSource
from edgeforge.data._decode import CHANNELS_DESCRIPTION, Channels, lazy_parts
from edgeforge.data._parts import labels_from_array, make_parts

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    FolderState = tuple[tuple[str, int, int], ...]

ROWS_AT_ONCE = 1000
SAVED_SPLITS, SAVED_SPLIT = "dataset_dict.json", "state.json"


class Hub(ImageSource):
    """A dataset of the Hugging Face hub through the `datasets` library.

    `path` is its id, the folder of a downloaded snapshot, or a folder that `save_to_disk` wrote; a folder that
    exists goes first. Code that a dataset brings is never run.
    """

    kind: Literal["hub"] = "hub"
    path: str = Field(description="An id such as `zalando-datasets/fashion_mnist`, or a folder.")
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub; a commit never changes.")
    config: str | None = Field(default=None, description="Which configuration, for a dataset that has several.")
    train: str = Field(default="train", description="The split to train on.")
    test: str = Field(default="test", description="The split to test on.")
    image: str | None = Field(default=None, description="The column of images; absent: the only one there is.")
    label: str | None = Field(default=None, description="The column of labels; absent: the only class label there is.")
    channels: Channels | None = Field(default=None, description=CHANNELS_DESCRIPTION)

    needs: ClassVar[tuple[str, ...]] = ("datasets",)
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.data._decode", "edgeforge.data._parts")

    def digest(self) -> str:
        return _digest(self, *self._place())

    def read(self, image_size: int | None) -> ImageParts:
        train, test, names = _opened(self, *self._place())
        train_images, test_images, shape = lazy_parts(train, test, channels=self.channels, image_size=image_size)
        return make_parts(
            (train_images, train.labels),
            (test_images, test.labels),
            label_names=names,
            image_shape=shape,
            where=self.path,
        )

    def _place(self) -> tuple[Path | None, FolderState]:
        """The local folder, if it is one, and what tells whether something in it changed."""
        folder = Path(self.path).expanduser().absolute()
        if not folder.is_dir():
            return None, ()
        files = ((file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
        return folder, tuple((str(file), status.st_size, status.st_mtime_ns) for file, status in files)


@dataclass(frozen=True)
class _Rows:
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


# A hub id is read once per process; a folder again when a file in it changed (hence the state in the key).
@functools.lru_cache(maxsize=4)
def _opened(spec: Hub, folder: Path | None, state: FolderState) -> tuple[_Rows, _Rows, list[str] | None]:
    """Training rows, test rows and class names (None: the classes are numbers)."""
    splits = _load(spec, folder)
    parts = []
    for wanted in (spec.train, spec.test):
        if wanted not in splits:
            raise DataError(
                perhaps("no split is named", wanted, list(splits)), where=spec.path, remedy="set train, test"
            )
        parts.append(splits[wanted])
    image, label = _column(spec, parts[0], "image"), _column(spec, parts[0], "label")
    names = _class_names(parts, label, spec)
    train, test = (
        _rows(part, image, label, names, f"{spec.path} {split}")
        for part, split in zip(parts, (spec.train, spec.test), strict=True)
    )
    return train, test, names


@functools.lru_cache(maxsize=4)
def _digest(spec: Hub, folder: Path | None, state: FolderState) -> str:
    train, test, names = _opened(spec, folder, state)
    parts = []
    for part in (train, test):
        sha = hashlib.sha256(part.labels.tobytes())
        for start in range(0, len(part), ROWS_AT_ONCE):
            for source, _ in part.at(range(start, min(start + ROWS_AT_ONCE, len(part)))):
                content = source if isinstance(source, bytes) else source.read_bytes()
                sha.update(hashlib.sha256(content).digest())
        parts.append(sha.hexdigest())
    return digest_of({"parts": parts, "names": names, "channels": spec.channels})


def _load(spec: Hub, folder: Path | None) -> DatasetDict:
    """Every split. Raises DataError, EnvironmentProblem, MissingExtraError."""
    datasets = require("datasets", "hub")
    if folder is not None and (folder / SAVED_SPLIT).is_file():
        raise DataError("the folder holds one split", where=str(folder), remedy="save a DatasetDict of train and test")
    try:
        if folder is not None and (folder / SAVED_SPLITS).is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder or spec.path), spec.config, revision=spec.revision)
    except ConnectionError as error:
        raise EnvironmentProblem(
            f"there is no folder {Path(spec.path).absolute()}, and the hub cannot be reached: {_line(error)}",
            where=spec.path,
            remedy="download the dataset where there is a network, and give its folder as `path`",
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"there is no folder {Path(spec.path).absolute()}, and no such dataset on the hub: {_line(error)}",
            where=spec.path,
            remedy="check the id and the revision; for a private dataset, log in with `hf auth login`",
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise DataError(
            f"`datasets` cannot read it: {_line(error)}",
            where=str(folder or spec.path),
            remedy="give a dataset of Parquet, Arrow or image files (a loading script is never run)",
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _column(spec: Hub, dataset: Dataset, role: Literal["image", "label"]) -> str:
    """The column that the spec names, or the only one of that type."""
    from datasets import ClassLabel, Image

    chosen = spec.image if role == "image" else spec.label
    if chosen is not None:
        if chosen in dataset.features:
            return chosen
        what = perhaps("no column is named", chosen, list(dataset.features))
    else:
        wanted = Image if role == "image" else ClassLabel
        found: list[str] = [name for name, feature in dataset.features.items() if isinstance(feature, wanted)]
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} columns are of type {wanted.__name__} ({', '.join(found) or 'none'}), not one"
    raise DataError(what, where=spec.path, remedy=f"set `{role}` to one of the columns: {', '.join(dataset.features)}")


def _class_names(parts: Sequence[Dataset], label: str, spec: Hub) -> list[str] | None:
    """From the feature; for a column of text, the distinct texts of the training split, sorted."""
    for part in parts:
        if label not in part.features:
            raise DataError(f"not every split has the column '{label}'", where=spec.path, remedy="set `label`")
    names = [getattr(part.features[label], "names", None) for part in parts]
    if names[0] != names[1]:
        raise DataError(
            "the splits name their classes differently", where=spec.path, remedy="use splits of one dataset"
        )
    if names[0] is None and getattr(parts[0].features[label], "dtype", None) in ("string", "large_string"):
        return sorted({str(value) for value in parts[0].select_columns([label])[:][label]})
    return list(names[0]) if names[0] is not None else None


def _rows(dataset: Dataset, image: str, label: str, names: list[str] | None, name: str) -> _Rows:
    from datasets import Image

    if not isinstance(dataset.features.get(image), Image):
        raise DataError(f"there is no column '{image}' of images", where=name, remedy="set `image`")
    values = dataset.select_columns([label])[:][label]
    if values and isinstance(values[0], str):
        known = {text: number for number, text in enumerate(names or ())}
        values = [known.get(value, -1) for value in values]
    labels = labels_from_array(np.asarray(list(values)), count=len(dataset), where=name)
    return _Rows(dataset.select_columns([image]).cast_column(image, Image(decode=False)), labels, name)
