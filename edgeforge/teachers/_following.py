"""Teachers that are made of the student itself, while it learns: what they share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.task import model_inputs
from edgeforge.teachers import OpenTeacher, Request, Teacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch
    from edgeforge.models import Model


class SelfTeacher(Teacher):
    """Base of teachers that are the student as it was, or on average was."""

    def sources(self) -> Mapping[str, str | Model | None]:
        """No artifact: it is made of the student."""
        return {}

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def check(self, request: Request) -> None:
        super().check(request)
        if request.on_policy:
            raise IncompatiblePlanError(
                f"`{self.kind}` makes the teacher of the student, and to it what the student writes always seems right",
                where="on_policy",
                remedy="use `teacher: model`, or leave `on_policy` out",
            )
        if not any(loss.weight > 0 and not loss.needs_teacher for loss in request.losses):
            raise IncompatiblePlanError(
                f"`{self.kind}` makes the teacher of the student, and every loss asks it: nothing says what is right",
                where="losses",
                remedy="add `- hard_labels`",
            )


class Following(OpenTeacher):
    """A copy of the student, asked in evaluation mode. Kinds say in `follow` how it changes.

    What the student never changes (weights under adapters) is copied once, and not kept in checkpoints.
    """

    _own: dict[str, torch.Tensor]
    """The copy's own tensors that may change, by name; changing them changes it. Tied ones are there once."""

    def begin(self, student: PreTrainedModel) -> None:
        frozen = {name for name, value in student.named_parameters(remove_duplicate=False) if not value.requires_grad}
        self._model = copy.deepcopy(student).eval().requires_grad_(False)
        self._own, seen = {}, set()
        for name, value in self._model.state_dict().items():
            if name not in frozen and value.data_ptr() not in seen:
                self._own[name] = value
                seen.add(value.data_ptr())

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        import torch

        from edgeforge.models.outputs import run

        with torch.no_grad():
            return run(self._model, model_inputs(batch), outputs)

    def take(self, values: Mapping[str, torch.Tensor]) -> None:
        """Become what `values` say; they may hold more than the copy has of its own."""
        for name, value in self._own.items():
            value.copy_(values[name])

    def state(self) -> Mapping[str, torch.Tensor]:
        return self._own

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        if state.keys() != self._own.keys():
            raise RuntimeError(f"not this teacher's state: {sorted(state.keys() ^ self._own.keys())[:3]} ...")
        self.take(state)
