"""What losses between probabilities share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


def softened(
    student: ModelOutput, teacher: ModelOutput | None, temperature: float, loss: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both over the temperature, float32, shape (N, labels); the teacher's without gradient.

    Raises ModelError where the two do not answer for the same number of labels.
    """
    assert teacher is not None, f"{loss} needs a teacher"
    ours, theirs = student.logits, teacher.logits
    if ours.shape != theirs.shape:
        raise ModelError(
            f"the student has {ours.shape[-1]} labels and the teacher {theirs.shape[-1]}; "
            f"{loss} compares them label by label",
            remedy="use a teacher trained on the same labels, or losses on hidden states",
        )
    return ours.float() / temperature, theirs.detach().float() / temperature


def divergence(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """KL(theirs || ours) along the last axis of log probabilities."""
    from torch.nn import functional

    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1)
