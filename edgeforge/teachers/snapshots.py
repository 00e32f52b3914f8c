"""The student as it was as its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.teachers import OpenTeacher, Request
from edgeforge.teachers._following import Following, SelfTeacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.task import TaskData


class Snapshots(SelfTeacher):
    """Snapshot distillation: the student at the end of a cycle teaches it in the next (Yang et al., 2019).

    With ``cycles: N`` in the stage the learning rate rises and falls N times; where it has fallen, the student is good
    enough to teach. In the first cycle there is no teacher, and the losses that need one are left out
    (arXiv:1812.00123). It takes one training and no other model; a step costs a forward pass of the snapshot more.
    """

    kind: Literal["snapshots"] = "snapshots"

    why_logits_only: ClassVar[str | None] = (
        "`snapshots` have no teacher in the first cycle, in which what such a loss trains beside the student would go "
        "untrained"
    )
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.outputs",)

    def check(self, request: Request) -> None:
        if request.cycles == 1:
            raise IncompatiblePlanError(
                "`snapshots` are taken where a cycle ends, and the stage has a single one",
                where="cycles",
                remedy="set `cycles: 2` or more beside the teacher",
            )
        super().check(request)

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher; nothing is read."""
        return _Remembering()


class _Remembering(Following):
    _taken = False

    @property
    def teaches(self) -> bool:
        return self._taken

    def follow(self, student: PreTrainedModel, step: int, *, ends_cycle: bool) -> None:
        if ends_cycle:
            self.take(student.state_dict())
            self._taken = True

    def state(self) -> Mapping[str, torch.Tensor]:
        return super().state() if self._taken else {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        self._taken = bool(state)
        if state:
            super().restore(state)
