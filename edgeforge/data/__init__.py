"""Where data comes from: one file per kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import numpy as np


class Images(Protocol):
    """Images that may be decoded when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray:
        """uint8, shape (N, H, W, C), all of one size. Raises DataError naming an image that cannot be used."""


@dataclass(frozen=True)
class LabelledImages:
    """One part of an image data set. `labels`: int64, shape (N,), indices into the data's label names."""

    images: Images
    labels: np.ndarray


@dataclass(frozen=True)
class ImageParts:
    """A whole image data set: training and test parts, and the names of the labels in order."""

    train: LabelledImages
    test: LabelledImages
    label_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(H, W, C)"""


class ImageSource(Spec):
    """Base of every image data kind."""

    kind: str

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.data._parts",)

    def digest(self) -> str:
        """sha256 of the content, not of the place. Raises DataError where the data is missing."""
        raise NotImplementedError

    def read(self, image_size: int | None) -> ImageParts:
        """Open the data, its images resized to `image_size` squares where given. Raises DataError."""
        raise NotImplementedError
