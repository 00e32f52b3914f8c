"""What a student is taught with: one file per loss. A stage's loss is the weighted sum of those it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


@dataclass(frozen=True)
class Training:
    """What a loss may know of the training that it serves: the number of samples, and a seed for what it draws."""

    samples: int
    seed: int


class Loss(Spec):
    """Base of every loss.

    Class facts: `needs_teacher`; `outputs` names the extra model outputs it reads (see `edgeforge.models.outputs`),
    which are computed only when some loss asks; `compares_buckets` says whether it can learn from a teacher's k
    likeliest answers and the sum of all others (see `edgeforge.models.buckets`), at temperature 1.
    """

    kind: str
    weight: float = Field(default=1.0, ge=0, description="Its factor in the sum of all losses.")

    needs_teacher: ClassVar[bool] = True
    outputs: ClassVar[frozenset[str]] = frozenset()
    compares_buckets: ClassVar[bool] = False

    def modules(self, student: ModelOutput, teacher: ModelOutput | None, training: Training) -> torch.nn.Module | None:
        """What this loss keeps beside the student, shaped by one batch's outputs; usually nothing.

        Parameters (projections) are trained with the student; buffers (a memory) are the loss's own to change. Both
        are checkpointed, and thrown away afterwards. What a loss draws at random must follow from the seed, the batch
        and the buffers alone, so that a run that was killed goes on to the same bits.
        """
        return None

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        """The unweighted loss, a float32 scalar averaged over the batch; outputs may come in bfloat16.

        `batch` has the model's inputs (texts: ``attention_mask``, int64, (N, length), 0 at padding), ``labels`` (int64,
        (N,), or (N, length) where logits are (N, length, tokens): the token that follows each position, so nothing is
        shifted here; `edgeforge.core.task.NO_LABEL` where there is none) and ``rows`` (int64, (N,), positions in the
        split, below ``Training.samples``). Losses on logits are averaged over labelled tokens, each counting equally.
        """
        raise NotImplementedError
