"""What a model is for: data, batches, loss, metrics, and the interface of the files that will be shipped.

A `Task` is a spec. `open()` gives its data; everything that differs between tasks is asked of these two, so that
no other place needs to know which task it serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch

Split = Literal["train", "validation", "test"]
Batch = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Interface:
    """What a shipped file promises: its input, its output, its labels, and how raw data becomes the input.

    `input_shape` is without the batch axis. `mean` and `std` are per channel, for values scaled to [0, 1].
    """

    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TaskData(Protocol):
    """Opened data. `split` sizes are fixed; `batch` is a pure function of its arguments."""

    interface: Interface

    def size(self, split: Split) -> int:
        """Number of samples."""

    def batch(self, split: Split, indices: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """Model inputs and ``labels`` for these samples; augmented, reproducibly, when `augment_seed` is given."""


class Task(Spec):
    """Base of every task."""

    kind: str
    auto_class: ClassVar[str]
    """The ``transformers`` auto class whose models serve this task."""

    def digest(self) -> str:
        """sha256 of the data's content: part of every key, so changed data is never mistaken for cached."""
        raise NotImplementedError

    def open(self) -> TaskData:
        """Load the data; cheap when called again. Raises DataError."""
        raise NotImplementedError

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The supervised loss on labels (scalar)."""
        raise NotImplementedError

    def metrics(self, logits: torch.Tensor, labels: torch.Tensor) -> Mapping[str, Any]:
        """Task metrics of the outputs for a whole split. The first one is the headline, higher is better."""
        raise NotImplementedError
