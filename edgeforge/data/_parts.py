"""Arrays of any origin -> checked `ImageParts`. Every image kind ends here, so all refuse the same things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeforge.core.errors import DataError
from edgeforge.data import ImageParts, LabelledImages

if TYPE_CHECKING:
    from edgeforge.data import Images

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ArrayImages:
    """Images that lie in memory. `array`: uint8, shape (N, H, W, C)."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray:
        return np.take(self.array, np.asarray(indices, dtype=np.int64), axis=0)


def images_from_array(array: np.ndarray, *, where: str, image_size: int | None = None) -> ArrayImages:
    """Check and convert uint8 or float images of shape (N, H, W) or (N, H, W, C).

    Float images must lie in [0, 1]; they are rounded to 256 levels, which is what image files hold. Raises DataError.
    """
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in CHANNELS or 0 in array.shape[1:]:
        raise DataError(
            f"images have shape {array.shape}; N x H x W or N x H x W x C (C = 1, 3 or 4) is needed",
            where=where,
            remedy="reorder the axes: samples first, channels last",
        )
    if len(array) == 0:
        raise DataError("there are no images", where=where, remedy="every part needs at least one image per class")
    array = np.ascontiguousarray(array) if array.dtype == np.uint8 else _quantize(array, where)
    if image_size is not None and array.shape[1:3] != (image_size, image_size):
        array = np.stack([resize(image, image_size) for image in array])
    return ArrayImages(array)


def _quantize(array: np.ndarray, where: str) -> np.ndarray:
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(
            f"images are {array.dtype}; uint8 (0 to 255) or float (0 to 1) is needed",
            where=where,
            remedy="convert them, for example images.astype('uint8')",
        )
    finite = np.isfinite(array).all(axis=(1, 2, 3))
    if not finite.all():
        raise DataError(
            f"image {int(np.argmin(finite))} holds NaN or infinite values ({int((~finite).sum())} such images)",
            where=where,
            remedy="remove these images, or repair what produced them",
        )
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise DataError(
            f"float images must lie in [0, 1]; these lie in [{low:g}, {high:g}]",
            where=where,
            remedy="divide values of 0 to 255 by 255, undo a normalisation, or store uint8",
        )
    levels: np.ndarray = np.rint(array * 255)
    return levels.astype(np.uint8)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """One uint8 image (H, W, C) as a square of `size` pixels: bilinear, antialiased, each channel on its own."""
    from PIL import Image

    if image.shape[:2] == (size, size):
        return image
    channels = [
        np.asarray(Image.fromarray(image[..., channel]).resize((size, size), Image.Resampling.BILINEAR))
        for channel in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


def labels_from_array(labels: np.ndarray, *, count: int, where: str) -> np.ndarray:
    """Check class numbers for `count` images; int64, shape (N,). Raises DataError."""
    if labels.shape != (count,):
        raise DataError(
            f"there are {count} images but labels of shape {labels.shape}; one label per image is needed",
            where=where,
            remedy="make both the same length",
        )
    if not (np.issubdtype(labels.dtype, np.integer) or _whole_numbers(labels)):
        raise DataError(
            f"labels are not integers ({labels.dtype})", where=where, remedy="number the classes 0, 1, 2, ..."
        )
    return labels.astype(np.int64)


def _whole_numbers(labels: np.ndarray) -> bool:
    return bool(
        np.issubdtype(labels.dtype, np.floating) and np.isfinite(labels).all() and (labels == np.floor(labels)).all()
    )


def make_parts(
    train: tuple[Images, np.ndarray],
    test: tuple[Images, np.ndarray],
    *,
    label_names: Sequence[str] | None,
    image_shape: tuple[int, int, int],
    where: str,
) -> ImageParts:
    """Put checked images and labels together. Without `label_names` the classes are named by their numbers.

    Raises DataError for fewer than two classes, labels out of range, and a class that a part has no image of.
    """
    highest = max(int(labels.max(initial=-1)) for _, labels in (train, test))
    # A stray huge label must not become a list of a billion names: the count of images bounds the count of classes.
    most = len(train[1]) + len(test[1])
    names = tuple(label_names) if label_names is not None else tuple(map(str, range(min(highest + 1, most))))
    if len(names) < 2:
        raise DataError(f"there are {len(names)} classes; at least two are needed", where=where, remedy="check labels")
    if len(set(names)) != len(names):
        raise DataError("two classes have the same name", where=where, remedy="name every class differently")
    for part, (_, labels) in (("training", train), ("test", test)):
        _check_labels(labels, names, part=part, where=where)
    return ImageParts(LabelledImages(*train), LabelledImages(*test), names, image_shape)


def _check_labels(labels: np.ndarray, names: tuple[str, ...], *, part: str, where: str) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        raise DataError(
            f"label {labels[outside[0]]} of {part} image {outside[0]} is outside 0 to {len(names) - 1} "
            f"({len(outside)} such labels)",
            where=where,
            remedy="number the classes 0, 1, 2, ... without gaps, and name all of them",
        )
    empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if len(empty):
        listed = ", ".join(f"'{names[label]}'" for label in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise DataError(
            f"the {part} part has no image of class {listed}",
            where=where,
            remedy="add images of it, or remove the class from both parts",
        )
