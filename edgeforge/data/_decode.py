"""Encoded images (PNG, JPEG, ...) -> uint8 arrays, decoded when asked for, with errors that name the image."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

from edgeforge.core.errors import DataError
from edgeforge.data._parts import resize

Channels = Literal["gray", "rgb"]

CHANNELS_DESCRIPTION = "`gray` or `rgb`, to which every image is converted; absent: as the first training image is."

_PILLOW_MODES = {"gray": "L", "rgb": "RGB"}
_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
# Pillow cuts values above 255 off when it converts these: the picture would be silently ruined.
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})


class Encoded(Protocol):
    """Images as files or bytes."""

    def __len__(self) -> int: ...

    def at(self, indices: Sequence[int]) -> list[tuple[Path | bytes, str]]:
        """The encoded images, and what to call each in an error."""


@dataclass(frozen=True)
class LazyImages:
    """Images that are decoded when asked for; see `edgeforge.data.Images`."""

    encoded: Encoded
    channels: Channels
    image_size: int | None

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray:
        return np.stack(
            [
                decode(source, name, channels=self.channels, image_size=self.image_size)
                for source, name in self.encoded.at(indices)
            ]
        )


def lazy_parts(
    train: Encoded, test: Encoded, *, channels: Channels | None, image_size: int | None
) -> tuple[LazyImages, LazyImages, tuple[int, int, int]]:
    """Both parts ready to decode, and the shape (H, W, C) of every image.

    Without `image_size` every header is read, so that images of different sizes are found before any work.
    Raises DataError for those, and where the training part is empty.
    """
    if len(train) == 0:
        raise DataError("there are no training images", remedy="every class needs at least one")
    ((source, name),) = train.at([0])
    height, width, first_channels = probe(source, name)
    if image_size is not None:
        height = width = image_size
    else:
        _check_sizes(train, test, height=height, width=width)
    channels = channels or first_channels
    shape = (height, width, 1 if channels == "gray" else 3)
    return LazyImages(train, channels, image_size), LazyImages(test, channels, image_size), shape


def _check_sizes(*parts: Encoded, height: int, width: int) -> None:
    for part in parts:
        for position in range(len(part)):
            ((source, name),) = part.at([position])
            if (size := probe(source, name)[:2]) != (height, width):
                raise DataError(
                    f"this image has {size[1]} x {size[0]} pixels, the first one {width} x {height}",
                    where=name,
                    remedy="set the task's image_size, to which images are resized",
                )


def probe(source: Path | bytes, name: str) -> tuple[int, int, Channels]:
    """(height, width, channels) from an image's header. Raises DataError."""
    with _opened(source, name) as image:
        width, height = image.size
        if image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS:
            width, height = height, width
        return height, width, "gray" if image.mode in _GRAY_MODES else "rgb"


def decode(source: Path | bytes, name: str, *, channels: Channels, image_size: int | None) -> np.ndarray:
    """One image, upright, as uint8 (H, W, C), resized to a square where `image_size` is given. Raises DataError."""
    with _opened(source, name) as image:
        array = np.array(ImageOps.exif_transpose(image).convert(_PILLOW_MODES[channels]))
    array = array[..., np.newaxis] if array.ndim == 2 else array
    return array if image_size is None else resize(array, image_size)


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    # What damaged image data makes Pillow raise, beside its own errors.
    damaged = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode in _DEEP_MODES:
                raise DataError(
                    f"the image has more than 8 bits per channel (mode {image.mode})",
                    where=name,
                    remedy="convert it to 8 bits per channel",
                )
            yield image
    except (*damaged, Image.DecompressionBombError) as error:
        raise DataError(
            f"the image cannot be decoded: {error}", where=name, remedy="repair it, or remove it from the data"
        ) from error
