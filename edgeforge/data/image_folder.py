"""Image files in a folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.artifact import digest_files
from edgeforge.core.spec import digest_of
from edgeforge.data import DataSource, ImageParts, Medium
from edgeforge.data._class_folders import class_names, files_below, files_by_class, part_folder
from edgeforge.data._decode import CHANNELS_DESCRIPTION, Channels, lazy_parts
from edgeforge.data._files import existing, file_digest
from edgeforge.data._parts import make_parts

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolder(DataSource):
    """`path/train/CLASS/*` and `path/test/CLASS/*`: image files, one folder per class; classes in alphabetical order.

    Images are decoded batch by batch. Files that are not images by their suffix are left out.
    """

    kind: Literal["image_folder"] = "image_folder"
    path: str = Field(description="The folder that holds train/ and test/.")
    channels: Channels | None = Field(default=None, description=CHANNELS_DESCRIPTION)

    holds: ClassVar[frozenset[Medium]] = frozenset({"images"})
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.data._class_folders",
        "edgeforge.data._decode",
        "edgeforge.data._parts",
    )

    def digest(self) -> str:
        root = existing(self.path, folder=True)
        files = {
            file.relative_to(root).as_posix(): file_digest(file)
            for part in ("train", "test")
            for file in files_below(part_folder(root, part), SUFFIXES)
        }
        return digest_of({"files": digest_files(files), "channels": self.channels})

    def images(self, image_size: int | None) -> ImageParts:
        root = existing(self.path, folder=True)
        names = class_names(root)
        train_files, train_labels = _listed(root, "train", names)
        test_files, test_labels = _listed(root, "test", names)
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


def _listed(root: Path, part: str, names: Sequence[str]) -> tuple[list[Path], np.ndarray]:
    found = list(files_by_class(root, part, SUFFIXES))
    labels = [names.index(name) for name, _ in found]
    return [file for _, file in found], np.asarray(labels, dtype=np.int64)
