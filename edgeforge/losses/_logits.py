"""What every loss on logits needs first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


def logit_pair(student: ModelOutput, teacher: ModelOutput | None, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of both, float32, shape (N, labels); the teacher's without gradient.

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
    return ours.float(), theirs.detach().float()
