"""Image files in a folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.artifact import digest_files
from edgeforge.core.errors import DataError
from edgeforge.core.spec import digest_of
from edgeforge.data import ImageParts, ImageSource
from edgeforge.data._decode import CHANNELS_DESCRIPTION, Channels, lazy_parts
from edgeforge.data._files import existing, file_digest
from edgeforge.data._parts import make_parts

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolder(ImageSource):
    """`path/train/CLASS/*` and `path/test/CLASS/*`: image files, one folder per class; classes in alphabetical order.

    Images are decoded batch by batch. Files that are not images by their suffix are left out.
    """

    kind: Literal["image_folder"] = "image_folder"
    path: str = Field(description="The folder that holds train/ and test/.")
    channels: Channels | None = Field(default=None, description=CHANNELS_DESCRIPTION)

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.data._decode", "edgeforge.data._parts")

    def digest(self) -> str:
        root = existing(self.path, folder=True)
        files = {
            file.relative_to(root).as_posix(): file_digest(file)
            for part in ("train", "test")
            for file in _images_below(_part(root, part))
        }
        return digest_of({"files": digest_files(files), "channels": self.channels})

    def read(self, image_size: int | None) -> ImageParts:
        root = existing(self.path, folder=True)
        names = _class_names(root)
        train_files, train_labels = _listed(_part(root, "train"), names)
        test_files, test_labels = _listed(_part(root, "test"), names)
        train, test, shape = lazy_parts(
            _Files(train_files), _Files(test_files), channels=self.channels, image_size=image_size
        )
        return make_parts(
            (train, train_labels), (test, test_labels), label_names=names, image_shape=shape, where=str(root)
        )


@dataclass(frozen=True)
class _Files:
    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, indices: Sequence[int]) -> list[tuple[Path | bytes, str]]:
        return [(self.paths[index], str(self.paths[index])) for index in indices]


def _part(root: Path, part: str) -> Path:
    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"there is no folder '{part}'", where=str(root), remedy="put images in train/CLASS and test/CLASS"
        )
    return folder


def _class_names(root: Path) -> list[str]:
    train, test = (
        {item.name for item in _part(root, part).iterdir() if item.is_dir() and not item.name.startswith(".")}
        for part in ("train", "test")
    )
    if train != test:
        odd = min(train ^ test)
        here, there = ("train", "test") if odd in train else ("test", "train")
        raise DataError(
            f"class '{odd}' has a folder in {here} but none in {there}",
            where=str(root),
            remedy="use the same class folders in both",
        )
    return sorted(train)


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _listed(part: Path, names: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = _images_below(part / name)
        files += found
        labels += [label] * len(found)
    return files, np.asarray(labels, dtype=np.int64)
