"""Knowing a sample's representation from others' (Tian et al., 2020, "Contrastive Representation Distillation")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import ModelError
from edgeforge.losses import Loss, Training
from edgeforge.losses._layers import hidden_states

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class Contrastive(Loss):
    """Contrastive representation distillation, CRD, with the paper's memory of all training samples (arXiv:1910.10699).

    Student and teacher are embedded by learned linear maps, at unit length. Each embedding must tell the other
    network's memory of its own sample from those of `negatives` samples of other classes, drawn evenly and with
    replacement, by noise-contrastive estimation; both directions are summed, per sample, averaged over the batch
    (so values are near ``2 log(negatives)`` and more at first, and the authors weigh it 0.8). Unlabelled samples are
    every other sample's negatives, and all others are theirs.

    What is embedded is the last hidden state, since what comes before the logits has no name common to all families:
    of feature maps the mean over places, of tokens the first. The memory takes ``8 * width`` bytes per sample.
    """

    kind: Literal["contrastive"] = "contrastive"
    negatives: int = Field(default=16384, ge=1, description="Samples of other classes that each is told apart from.")
    width: int = Field(default=128, ge=1, description="Width of the embeddings.")
    temperature: float = Field(default=0.07, gt=0, description="Divides the cosines; small is strict.")
    momentum: float = Field(
        default=0.5, ge=0, lt=1, description="Share of its old value that a memory keeps when its sample comes again."
    )

    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._layers", "edgeforge.losses._memory")

    def modules(self, student: ModelOutput, teacher: ModelOutput | None, training: Training) -> torch.nn.Module | None:
        from edgeforge.losses._memory import Contrast

        if student.logits.dim() == 3:
            raise ModelError(
                "contrastive tells samples of different classes apart, and this model's samples have none",
                remedy="use losses on logits or hidden states for language models",
            )
        if training.samples < 2:
            raise ModelError("contrastive needs another training sample to tell one from", remedy="use more data")
        widths = (self._pooled(student, "student").shape[1], self._pooled(teacher, "teacher").shape[1])
        return Contrast(widths, self, training)

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        assert modules is not None
        loss: torch.Tensor = modules(self._pooled(student, "student"), self._pooled(teacher, "teacher").detach(), batch)
        return loss

    def _pooled(self, outputs: ModelOutput | None, who: str) -> torch.Tensor:
        """One vector per sample, float32, (N, width)."""
        state = hidden_states(outputs, who, self.kind)[-1].float()
        return state.mean(dim=(2, 3)) if state.dim() == 4 else state[:, 0]
