"""Images in one NumPy .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.errors import DataError
from edgeforge.data import DataSource, ImageParts, Medium
from edgeforge.data._files import existing, file_digest
from edgeforge.data._parts import images_from_array, labels_from_array, make_parts

# What damaged archives make numpy and zipfile raise.
_DAMAGED = (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
ARRAYS = ("x_train", "y_train", "x_test", "y_test")


class Npz(DataSource):
    """Arrays `x_train`, `y_train`, `x_test`, `y_test` in one .npz file, and optionally the class names in `labels`.

    Images are uint8, or float in [0, 1], of shape N x H x W or N x H x W x C; labels are the integers 0, 1, 2, ...
    """

    kind: Literal["npz"] = "npz"
    path: str = Field(description="The .npz file.")

    holds: ClassVar[frozenset[Medium]] = frozenset({"images"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.data._parts",)

    def digest(self) -> str:
        return file_digest(existing(self.path))

    def images(self, image_size: int | None) -> ImageParts:
        path = existing(self.path)
        arrays = _load(path)
        x_train = images_from_array(arrays["x_train"], where=f"{path} x_train", image_size=image_size)
        x_test = images_from_array(arrays["x_test"], where=f"{path} x_test", image_size=image_size)
        if x_train.array.shape[1:] != x_test.array.shape[1:]:
            raise DataError(
                f"training images are {_shape(x_train.array)} but test images {_shape(x_test.array)}",
                where=str(path),
                remedy="set the task's image_size, or store both in one shape",
            )
        height, width, channels = x_train.array.shape[1:]
        return make_parts(
            (x_train, labels_from_array(arrays["y_train"], count=len(x_train), where=f"{path} y_train")),
            (x_test, labels_from_array(arrays["y_test"], count=len(x_test), where=f"{path} y_test")),
            label_names=_names(arrays.get("labels"), path),
            image_shape=(height, width, channels),
            where=str(path),
        )


def _load(path: Path) -> dict[str, np.ndarray]:
    wanted = (*ARRAYS, "labels")
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise ValueError("a single array, not an .npz archive")
        with opened as file:
            missing = [name for name in ARRAYS if name not in file.files]
            if missing:
                raise DataError(
                    f"the file has no array '{missing[0]}' (it has: {', '.join(sorted(file.files)) or 'none'})",
                    where=str(path),
                    remedy=f"store {', '.join(ARRAYS)} with numpy.savez",
                )
            found = {name: file[name] for name in wanted if name in file.files}
        for name, array in found.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"'{name}' is not an array")
        return found
    except (*_DAMAGED, MemoryError) as error:
        # ValueError is also numpy's answer to object arrays, which are pickles and may run code.
        raise DataError(
            f"not a sound .npz file of plain arrays: {error}",
            where=str(path),
            remedy="write it with numpy.savez from plain (not object) arrays",
        ) from error


def _names(labels: np.ndarray | None, path: Path) -> list[str] | None:
    if labels is None:
        return None
    if labels.ndim != 1 or labels.dtype.kind != "U":
        raise DataError(
            f"`labels` has type {labels.dtype} and shape {labels.shape}; one text per class is needed",
            where=f"{path} labels",
            remedy="store numpy.array(['cat', 'dog', ...])",
        )
    return [str(name) for name in labels]


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape[1:]))
