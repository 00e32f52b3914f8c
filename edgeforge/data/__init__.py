"""Where data comes from: one file per kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import numpy as np

Medium = Literal["images", "texts", "documents"]
"""`texts` have a label each; `documents` are what a language model learns to write."""


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


@dataclass(frozen=True)
class LabelledTexts:
    """One part of a text data set. `labels`: int64, shape (N,), indices into the data's label names."""

    texts: tuple[str, ...]
    labels: np.ndarray


@dataclass(frozen=True)
class TextParts:
    """A whole text data set: training and test parts, the names of the labels in order, and texts without a label."""

    train: LabelledTexts
    test: LabelledTexts
    label_names: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """One turn of a chat: who speaks (`ROLES`), and what is said."""

    role: str
    content: str


ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class Document:
    """A text, or a chat; never both. `where` is a place that the user can open."""

    text: str = ""
    messages: tuple[Message, ...] = ()
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class DocumentParts:
    """A whole set of documents: training and test part, neither empty."""

    train: tuple[Document, ...]
    test: tuple[Document, ...]


class DataSource(Spec):
    """Base of every data kind. It reads what it `holds`; asking for something else is a ConfigurationError."""

    kind: str

    holds: ClassVar[frozenset[Medium]]

    def digest(self) -> str:
        """sha256 of the content, not of the place. Raises DataError where the data is missing."""
        raise NotImplementedError

    def check_holds(self, medium: Medium) -> None:
        """Refuse another medium before anything is read. Raises ConfigurationError."""
        if medium not in self.holds:
            raise self._lacks(medium)

    def images(self, image_size: int | None) -> ImageParts:
        """Open the images, resized to `image_size` squares where given. Raises DataError, ConfigurationError."""
        raise self._lacks("images")

    def texts(self) -> TextParts:
        """Open the texts. Raises DataError, ConfigurationError."""
        raise self._lacks("texts")

    def documents(self) -> DocumentParts:
        """Open the documents. Raises DataError, ConfigurationError."""
        raise self._lacks("documents")

    def column(self, name: str) -> tuple[str, ...]:
        """One more column of the test part, as texts, in the order of its samples.

        Raises ConfigurationError where this kind has no columns or none of that name.
        """
        raise ConfigurationError(
            f"the data kind '{self.kind}' has no columns beside its samples and labels",
            where="slices",
            remedy="use csv, jsonl or hub, or a rule instead of a column",
        )

    def _lacks(self, medium: Medium) -> ConfigurationError:
        kinds = discover("edgeforge.data", DataSource)
        fitting = ", ".join(
            name for name, kind in kinds.items() if issubclass(kind, DataSource) and medium in kind.holds
        )
        return ConfigurationError(
            f"the data kind '{self.kind}' holds {' and '.join(sorted(self.holds))}, not {medium}",
            where="task.data",
            remedy=f"use one of {fitting}, or a task for {' or '.join(sorted(self.holds))}",
        )
