"""Losses that look at one row of logits at a time: one sample, or one token where a model answers per token.

A batch of tokens times a vocabulary is large: 4 windows of 512 tokens and 49,152 logits each are 400 MB in float32, and
a loss that is written plainly keeps several such tensors for its backward pass. Here rows are taken in chunks, only
those that count, and each chunk's gradient is worked out at once, so that beside the logits there is one more tensor of
their size: their gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from edgeforge.core.errors import ModelError
from edgeforge.core.task import NO_LABEL
from edgeforge.models.buckets import bucketed

if TYPE_CHECKING:
    from transformers.utils import ModelOutput

CHUNK_NUMBERS = 1 << 19
"""Logits of one chunk: 2 MB in float32, so that what is made of them stays in a processor's cache."""

OnLabels = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits (n, classes), labels (n,)) -> losses (n,)"""
OnPairs = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(the student's logits (n, classes), the teacher's, labels (n,)) -> losses (n,)"""
OnChunk = Callable[[torch.Tensor, slice], torch.Tensor]
"""(logits of some rows (n, classes), which they are) -> losses (n,)"""


def counted(logits: torch.Tensor, labels: torch.Tensor, *, labelled: bool) -> torch.Tensor:
    """Which rows a loss is the mean of, as positions in the flattened labels: int64, (n,).

    Of tokens always those with a label: the others are padding, or were never to be learnt. Of samples all, or with
    `labelled` those with a label.
    """
    if logits.dim() == 2 and not labelled:
        return torch.arange(len(labels), device=labels.device)
    return (labels.flatten() != NO_LABEL).nonzero()[:, 0]


def mean_on_labels(student: ModelOutput, batch: Mapping[str, torch.Tensor], compare: OnLabels) -> torch.Tensor:
    """The mean of `compare` over all rows with a label (scalar, float32); 0 where there is none."""
    labels = batch["labels"]
    rows = counted(student.logits, labels, labelled=True)
    flat = labels.flatten()
    return _mean(student.logits, rows, lambda ours, at: compare(ours, flat[rows[at]]))


def mean_on_pairs(
    student: ModelOutput,
    teacher: ModelOutput | None,
    batch: Mapping[str, torch.Tensor],
    compare: OnPairs,
    *,
    loss: str,
    labelled: bool = False,
) -> torch.Tensor:
    """The mean of `compare` over the rows that count (scalar, float32); 0 where there is none.

    A teacher that kept its k likeliest answers only is compared over these and the sum of all others (see
    `edgeforge.models.buckets`): both sides are log probabilities of k + 1 buckets then, and `labels` mean nothing.
    Raises ModelError where the two do not answer for the same labels or tokens.
    """
    assert teacher is not None, f"{loss} needs a teacher"
    labels = batch["labels"]
    rows = counted(student.logits, labels, labelled=labelled)
    flat = labels.flatten()
    if teacher.get("bucket_ids") is not None:
        ids, kept = teacher.bucket_ids, teacher.bucket_log_probabilities

        def on_chunk(ours: torch.Tensor, at: slice) -> torch.Tensor:
            return compare(bucketed(ours, ids[at].long()), kept[at].float(), flat[rows[at]])
    else:
        check_same_classes(student, teacher, loss)
        theirs = teacher.logits.detach().flatten(0, -2)

        def on_chunk(ours: torch.Tensor, at: slice) -> torch.Tensor:
            return compare(ours, theirs[rows[at]].float(), flat[rows[at]])

    return _mean(student.logits, rows, on_chunk)


def mean_of_rows(values: torch.Tensor, compare: OnChunk) -> torch.Tensor:
    """The mean of `compare` over all rows of a matrix (n, classes), in chunks."""
    return _mean(values, torch.arange(len(values), device=values.device), compare)


def check_same_classes(student: ModelOutput, teacher: ModelOutput, loss: str) -> None:
    """Raise ModelError where student and teacher do not answer for the same labels, or the same tokens."""
    ours, theirs = student.logits, teacher.logits
    if ours.shape == theirs.shape:
        return
    if ours.dim() == 3:
        raise ModelError(
            f"the student has {ours.shape[-1]} tokens and the teacher {theirs.shape[-1]}; "
            f"{loss} compares them token by token",
            remedy="distil by sequence: let the teacher write texts (`generate`) and fine-tune the student on them "
            "(`finetune` with `mix`)",
        )
    raise ModelError(
        f"the student has {ours.shape[-1]} labels and the teacher {theirs.shape[-1]}; "
        f"{loss} compares them label by label",
        remedy="use a teacher trained on the same labels, or losses on hidden states",
    )


def _mean(logits: torch.Tensor, rows: torch.Tensor, compare: OnChunk) -> torch.Tensor:
    found: torch.Tensor = _Mean.apply(logits, rows, compare)  # type: ignore[no-untyped-call]
    return found


class _Mean(torch.autograd.Function):
    """``compare(logits of a chunk, which of `rows` they are).sum()`` over all chunks, by the number of rows."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, rows: torch.Tensor, compare: OnChunk) -> torch.Tensor:
        flat = logits.flatten(0, -2)
        total = torch.zeros((), device=logits.device)
        gradient = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        count = max(1, len(rows))
        length = max(1, CHUNK_NUMBERS // flat.shape[-1])
        for start in range(0, len(rows), length):
            at = slice(start, min(len(rows), start + length))
            chunk = flat[rows[at]].float()
            with torch.enable_grad():
                found = compare(chunk.requires_grad_(gradient is not None), at).sum() / count
            total += found.detach()
            if gradient is not None:
                gradient[rows[at]] = torch.autograd.grad(found, chunk)[0].to(gradient.dtype)
        ctx.gradient, ctx.shape = gradient, logits.shape
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError("this loss was differentiated before; its gradient is worked out once")
        return gradient.mul_(slopes[0]).view(ctx.shape), None, None
