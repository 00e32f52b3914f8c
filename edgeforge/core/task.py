"""What a model is for: data, batches, loss, metrics, and the interface of the files that will be shipped.

A `Task` is a spec. `open()` gives its data; everything that differs between tasks is asked of these two, so that
no other place needs to know which task it serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import numpy as np
    import torch

Split = Literal["train", "validation", "test", "transfer"]
"""`transfer` is what a student is taught on: the training split, and samples without a label where the data has any."""
Batch = dict[str, "torch.Tensor"]

NO_LABEL = -100
"""The label of a sample that has none; torch's cross-entropy leaves it out."""


@dataclass(frozen=True)
class Input:
    """One tensor that a model takes, by the name its ``forward`` has for it.

    `shape` is one sample's, without the batch axis. The last axis of a `variable` input is a length, `shape` its
    greatest. `fill` is what a placeholder may hold.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"
    variable: bool = False
    fill: int = 0


@dataclass(frozen=True)
class Pixels:
    """How an image becomes an input: (value - mean) / std per channel, for values scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Tokens:
    """How a text becomes an input: at most `max_length` ids below `vocabulary_size`, `pad_id` behind shorter ones.

    A model that writes texts ends one by `end_id`.
    """

    vocabulary_size: int
    max_length: int
    pad_id: int
    end_id: int | None = None


@dataclass(frozen=True)
class Interface:
    """What a shipped file promises: its inputs, its output, its labels, and how raw data becomes the inputs.

    The output is (N, labels): one number for each label of a sample. Without labels it is (N, length, vocabulary): for
    every position of a text, one for each token that may follow.
    """

    inputs: tuple[Input, ...]
    output_name: str
    labels: tuple[str, ...]
    pixels: Pixels | None = None
    tokens: Tokens | None = None

    @property
    def per_token(self) -> bool:
        """Whether the model says what follows each token, instead of a label for the whole sample."""
        return not self.labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images. Raises ModelError where the task has none."""
        if self.pixels is None:
            raise ModelError("this model takes images, and the task's data are texts", remedy="use a text model")
        channels, height, width = self.inputs[0].shape
        return channels, height, width

    @property
    def text(self) -> Tokens:
        """How texts become ids. Raises ModelError where the task has none."""
        if self.tokens is None:
            raise ModelError("this model takes texts, and the task's data are images", remedy="use an image model")
        return self.tokens


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch without what no model takes."""
    return {name: value for name, value in batch.items() if name not in ("labels", "rows", "views")}


@dataclass(frozen=True)
class Answers:
    """A model that can be asked, whatever runs it.

    `logits`: a batch of model inputs -> what `Interface` says of the output. `generate`: prompts of ids -> what the
    model writes after each, greedily, at most so many tokens, up to and without the token that ends it; None where the
    model writes no texts, or what runs it cannot.
    """

    logits: Callable[[Batch], torch.Tensor]
    generate: Callable[[Sequence[Sequence[int]], int], list[list[int]]] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a split says of a model: metrics, the headline first, and arrays, one row per sample, kept beside them."""

    metrics: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """The test split before any model reads it, in its order: texts, or images.

    `images` gives those at some positions: uint8, shape (n, H, W, C). `column` gives another column of the data, one
    text for each sample; it raises ConfigurationError where the data have no such column.
    """

    size: int
    column: Callable[[str], Sequence[str]]
    texts: Sequence[str] = ()
    images: Any = None


class TaskData(Protocol):
    """Opened data. `split` sizes are fixed; `batch` is a pure function of its arguments."""

    interface: Interface

    def size(self, split: Split) -> int:
        """Number of samples."""

    def batch(self, split: Split, indices: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """Model inputs, ``labels`` and ``rows`` (int64, positions in the split) of these samples.

        `labels`: int64, (N,), or (N, length) where the model answers per token: what follows each position. `NO_LABEL`
        stands where there is nothing to learn and nothing to score. Augmented, reproducibly, when `augment_seed` is
        given.
        """

    def for_model(self, folder: Path) -> Callable[[Batch], Batch]:
        """What makes of this data's batches those that the model in another artifact's folder takes.

        Raises ModelError where that model reads raw data in a way that cannot be translated.
        """

    def write_reader(self, folder: Path) -> None:
        """Put what makes raw data into inputs (a tokenizer) beside a model, unless the folder has its own."""


@dataclass(frozen=True)
class Places:
    """Where the samples of a split stand in the part of the data it was cut from, which holds `of` samples.

    `positions` and `labels`: int64, (samples,).
    """

    positions: np.ndarray
    labels: np.ndarray
    of: int


@runtime_checkable
class Placed(Protocol):
    """Opened data whose samples have a place in what was read: those with one label each."""

    def places(self, split: Split) -> Places:
        """Of the training part, unlabelled samples are the last."""


class Task(Spec):
    """Base of every task."""

    kind: str
    auto_class: ClassVar[str]
    """The ``transformers`` auto class whose models serve this task."""
    reads: ClassVar[Literal["images", "texts"]]
    answers_per: ClassVar[Literal["sample", "token"]] = "sample"
    """What a model of this task answers for: a class for each sample, or a distribution after each token."""
    baseline_format: ClassVar[str] = "onnx"
    """The format of the file that every target is compared with, written without quantization."""
    wants_reference: ClassVar[bool] = False
    """Whether a model's answers are evaluated beside those of the model that the chain began with."""
    families: ClassVar[tuple[str, ...] | None] = None
    """The model families it takes, by Hugging Face's `model_type`; None: all that have a class for it."""

    def completed(self, model: Path | None) -> Task:
        """The same task with all that it takes from the pipeline's model, whose folder this is, if it has one."""
        return self

    def check_family(self, family: str | None, where: str) -> None:
        """Refuse a model of a family that this task does not take. Raises IncompatiblePlanError."""
        if self.families is not None and family not in self.families:
            raise IncompatiblePlanError(
                f"the model's architecture is {family}, and {self.kind} takes {', '.join(self.families)}",
                where=where,
                remedy="use a model of one of these families",
            )

    def digest(self) -> str:
        """sha256 of the data's content: part of every key, so changed data is never mistaken for cached."""
        raise NotImplementedError

    def augments(self) -> bool:
        """Whether training samples are changed at random, so that no answer about one can be kept."""
        return False

    def open(self, model: Path | None = None) -> TaskData:
        """Load the data as the model in this artifact's folder reads it; cheap when called again. Raises DataError."""
        raise NotImplementedError

    def tested(self) -> Samples:
        """The test split as it was given. Raises DataError, IncompatiblePlanError."""
        raise self._no_samples("slices")

    def open_probe(self, path: str, model: Path | None = None) -> TaskData:
        """Samples from elsewhere, as the model in this folder reads them; they are the test split, without a label.

        Raises DataError, IncompatiblePlanError.
        """
        raise self._no_samples("probe")

    def _no_samples(self, what: str) -> IncompatiblePlanError:
        return IncompatiblePlanError(
            f"`{what}` is for tasks with one label for each sample, and {self.kind} has none",
            where=what,
            remedy="leave it out",
        )

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The supervised loss on labels (scalar)."""
        raise NotImplementedError

    def metrics(self, logits: torch.Tensor, labels: torch.Tensor) -> Mapping[str, Any]:
        """Metrics of one label per sample, from the outputs for a whole split; the headline first."""
        raise NotImplementedError

    def evaluate(
        self,
        answers: Answers,
        data: TaskData,
        split: Split,
        *,
        reference: Answers | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """Ask a model about a whole split. `reference`, where the task wants one, is the model the chain began with.

        Where the answers are not all numbers, ``reason`` is the only metric and says so.
        """
        raise NotImplementedError
