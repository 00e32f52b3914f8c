"""The student's own average as its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.teachers import OpenTeacher
from edgeforge.teachers._following import Following, SelfTeacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.task import TaskData


class Ema(SelfTeacher):
    """Mean teacher: the exponential moving average of the student's own weights (Tarvainen & Valpola, 2017).

    After every step the teacher's weights become ``d * teacher + (1 - d) * student`` with d = min(1 - 1 / (step + 1),
    decay), steps counted from 1, so that early weights do not linger (arXiv:1703.01780). Batch statistics are averaged
    alike. No other model is needed. Samples without a label teach, too, which is where the method is strongest; a loss
    on labels must stand beside it.

    The teacher answers without dropout about the very samples that the student sees; the paper disturbs each of the two
    on its own, and lets the consistency's weight rise slowly, which is not done here. What goes on is the student;
    with `ema` in the stage its average.
    """

    kind: Literal["ema"] = "ema"
    decay: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="d: at 0.999 the teacher is about the mean of the last 1000 steps; short training wants less.",
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.outputs",)

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher; nothing is read."""
        return _Averaging(self.decay)


class _Averaging(Following):
    def __init__(self, decay: float) -> None:
        self._decay = decay

    def follow(self, student: PreTrainedModel, step: int, *, ends_cycle: bool) -> None:
        decay = min(1 - 1 / (step + 1), self._decay)
        theirs = student.state_dict()
        for name, value in self._own.items():
            if value.is_floating_point():
                value.lerp_(theirs[name], 1 - decay)
            else:
                value.copy_(theirs[name])
