"""Which of the samples a student is taught on: some classes left out, or only those with or without a label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from edgeforge.core.errors import DataError, IncompatiblePlanError
from edgeforge.core.spec import Spec, perhaps
from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL, Split, TaskData
from edgeforge.data._texts import LabelName
from edgeforge.losses import Loss

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

BATCH = 256


class Transfer(Spec):
    """The part of the transfer set that a stage teaches on, for tasks with one label for each sample.

    A class left out is the experiment of Hinton, Vinyals and Dean (2015, section 3): a student that never saw a 3
    still knows most of them, since the teacher's answers about other digits speak of threes, too. What it lacks is the
    frequency of the class, which one number added to its logit makes up for. Facts: `samples` taught on, `of` so many,
    and on the validation split `omitted`: the `accuracy` on the classes left out and on all (`accuracy_of_all`), and
    the same with the `bias` that gets most of the whole split right. The model stays as it was taught.
    """

    omit_classes: tuple[LabelName, ...] = Field(
        default=(),
        description="Labels of which no sample is shown; nor is one without a label, which might be of them.",
    )
    samples: Literal["all", "labelled", "unlabelled"] = Field(
        default="all",
        description="Teach on all of them, or on those with or without a label: general texts first, then the task's.",
    )

    @model_validator(mode="after")
    def _known_classes(self) -> Self:
        if self.omit_classes and self.samples == "unlabelled":
            raise ValueError("samples without a label are of no known class: give 'omit_classes' or 'unlabelled'")
        return self

    def check(self, losses: Sequence[Loss]) -> None:
        """Refuse losses that such samples teach nothing. Raises IncompatiblePlanError."""
        if self.samples == "unlabelled" and not any(loss.needs_teacher and loss.weight > 0 for loss in losses):
            raise IncompatiblePlanError(
                "samples without a label teach nothing without a teacher",
                where="transfer.samples",
                remedy="add a loss that asks one, e.g. `- soft_targets`",
            )

    def rows(self, data: TaskData, split: Split) -> list[int]:
        """Positions in the split, in order.

        Raises IncompatiblePlanError for an unknown label or a task without labels, DataError where nothing is left.
        """
        names = data.interface.labels
        if not names:
            raise IncompatiblePlanError(
                "this task has no label for each sample to choose by", where="transfer", remedy="leave `transfer` out"
            )
        for name in self.omit_classes:
            if name not in names:
                raise IncompatiblePlanError(
                    perhaps("no label is named", name, list(names)),
                    where="transfer.omit_classes",
                    remedy="name labels of the data",
                )
        labels = _labels(data, split)
        wanted = np.ones(len(labels), dtype=bool) if self.samples == "all" else _has(self.samples, labels)
        if self.omit_classes:
            wanted &= _has("labelled", labels) & ~np.isin(labels, self._omitted(names))
        if not wanted.any():
            raise DataError(
                f"of {len(labels)} samples none is left to teach on",
                where="transfer",
                remedy="leave fewer classes out, or give the data samples of this sort (`unlabelled`)",
            )
        rows: list[int] = wanted.nonzero()[0].tolist()
        return rows

    def _omitted(self, names: Sequence[str]) -> list[int]:
        return [names.index(name) for name in self.omit_classes]

    def facts(self, student: PreTrainedModel, data: TaskData, job: Job, *, taught: int, of: int) -> dict[str, Any]:
        """See the class; what was left out is warned of, too. The student is left in evaluation mode, on the CPU."""
        found: dict[str, Any] = {"samples": taught, "of": of}
        if not self.omit_classes:
            return {"transfer": found}
        from edgeforge.training.validation import model_answers

        evaluation = model_answers(student, task=job.task, data=data, device=job.accelerator.device)
        logits, labels = evaluation.arrays["logits"], evaluation.arrays["labels"]
        about = corrected(logits, labels, self._omitted(data.interface.labels))
        job.progress.warn(
            f"taught on {taught} of {of} samples, none of {', '.join(self.omit_classes)} (transfer.omit_classes)"
            + _said(about)
        )
        return {"transfer": {**found, "omitted": {"classes": list(self.omit_classes), **about}}}


def corrected(logits: np.ndarray, labels: np.ndarray, omitted: Sequence[int]) -> dict[str, float | int | None]:
    """How many samples are right as they are, and with the number that, added to omitted classes, makes most right.

    logits: (N, classes); labels: int64, (N,). One number serves all omitted classes, as in the paper. Of several that
    do equally well it is the smallest in size; halfway between two samples' margins, so that it is no sample's own.
    Accuracies on the omitted classes are None where `labels` have none of them.
    """
    left_out = np.isin(np.arange(logits.shape[1]), omitted)
    # A sample goes to the likeliest omitted class where that, with the bias, exceeds the likeliest of the others.
    omitted_best = np.where(left_out, logits, -np.inf).argmax(axis=1)
    other_best = np.where(left_out, -np.inf, logits).argmax(axis=1)
    at = np.arange(len(labels))
    margins = (logits[at, other_best] - logits[at, omitted_best]).astype(np.float64)
    order = np.argsort(margins, kind="stable")
    gains = (omitted_best == labels).astype(np.int64) - (other_best == labels)
    right = np.concatenate([[0], gains[order].cumsum()])  # the first k samples given to omitted classes
    edges = np.concatenate([[margins[order[0]] - 1], margins[order], [margins[order[-1]] + 1]])
    biases = (edges[:-1] + edges[1:]) / 2
    apart = edges[:-1] < edges[1:]  # no number parts equal margins
    best = min(np.flatnonzero(apart & (right == right[apart].max())), key=lambda place: abs(biases[place]))
    bias = 0.0 if right[np.searchsorted(edges[1:-1], 0.0)] == right[best] else float(biases[best])
    mine = np.isin(labels, omitted)

    def accuracies(added: float) -> tuple[float | None, float]:
        hit = np.where(margins < added, omitted_best, other_best) == labels
        return (float(hit[mine].mean()) if mine.any() else None), float(hit.mean())

    (before, before_all), (after, after_all) = accuracies(0.0), accuracies(bias)
    return {
        "validation_samples": int(mine.sum()),
        "accuracy": before,
        "accuracy_of_all": before_all,
        "bias": bias,
        "accuracy_with_bias": after,
        "accuracy_of_all_with_bias": after_all,
    }


def _said(about: dict[str, float | int | None]) -> str:
    before, after = about["accuracy"], about["accuracy_with_bias"]
    if before is None or after is None:
        return ""
    return (
        f"; of {about['validation_samples']} such validation samples {before:.1%} are right, and {after:.1%} where "
        f"{about['bias']:.2g} is added to their logits"
    )


def _has(what: Literal["labelled", "unlabelled"], labels: np.ndarray) -> np.ndarray:
    known: np.ndarray = labels != NO_LABEL
    return known if what == "labelled" else ~known


def _labels(data: TaskData, split: Split) -> np.ndarray:
    """int64, shape (samples,)."""
    size = data.size(split)
    parts = [
        data.batch(split, range(start, min(size, start + BATCH)))["labels"].numpy() for start in range(0, size, BATCH)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
