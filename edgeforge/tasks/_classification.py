"""What every task with one label per sample needs: loss, evaluation, validation split, numbers beside the headline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.core.task import Answers, Batch, Evaluation, Split, Task, TaskData, model_inputs

if TYPE_CHECKING:
    import torch

SPLIT_SEED = 0
ECE_BINS = 15
BATCH = 256


class Classification(Task):
    """Base of the tasks with one label per sample."""

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        from torch.nn import functional

        return functional.cross_entropy(logits.float(), batch["labels"])

    def evaluate(
        self,
        answers: Answers,
        data: TaskData,
        split: Split,
        *,
        reference: Answers | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """See Task. Arrays: ``logits`` (float32, (N, labels)) and ``labels`` (int64, (N,))."""
        import torch

        size = data.size(split)
        logits, labels = [], []
        for start in range(0, size, BATCH):
            end = min(size, start + BATCH)
            batch = data.batch(split, range(start, end))
            labels.append(batch["labels"])
            logits.append(answers.logits(model_inputs(batch)).float().cpu())
            if progress is not None:
                progress(end, size)
        found, truth = torch.cat(logits), torch.cat(labels)
        arrays = {"logits": found.numpy(), "labels": truth.numpy()}
        if not found.isfinite().all():
            return Evaluation({"reason": "the outputs hold NaN or infinity"}, arrays)
        return Evaluation(dict(self.metrics(found, truth)), arrays)


def check_label_count(logits: torch.Tensor, names: Sequence[str]) -> None:
    """Raise ModelError unless there is one logit for each label."""
    if logits.shape[-1] != len(names):
        raise ModelError(
            f"the model answers for {logits.shape[-1]} labels and the data has {len(names)}",
            remedy="use a model with as many labels as the data, or build one with {kind: config}",
        )


def per_class_accuracy(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, float | None]:
    """Recall of each label by name; None for one that no sample has. truth, predicted: int64, shape (N,)."""
    right = np.bincount(truth[truth == predicted], minlength=len(names))
    count = np.bincount(truth, minlength=len(names))
    return {name: float(right[index] / count[index]) if count[index] else None for index, name in enumerate(names)}


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: sum over bins of share * |accuracy - mean confidence|.

    Guo et al., 2017, "On Calibration of Modern Neural Networks": 15 equal-width bins (low, high] of the confidence.
    probabilities: shape (N, labels); labels: shape (N,).
    """
    confidence = probabilities.max(axis=-1)
    correct = probabilities.argmax(axis=-1) == labels
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def stratified_split(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the kept and of the held-out samples; every class gives the same share, always the same ones.

    A class with a single sample keeps it for training.
    """
    # RandomState's streams are frozen by NumPy's policy, Generator's are not: the split must outlive an upgrade.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.empty(len(labels))
    rank[by_class] = (np.arange(len(labels)) - starts + 0.5) / np.repeat(counts, counts)
    order = shuffled[np.argsort(rank[shuffled], kind="stable")]
    held = max(1, round(share * len(labels)))
    return np.sort(order[held:]), np.sort(order[:held])
