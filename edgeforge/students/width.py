"""The teacher's architecture, narrower: with fresh weights, or with a part of the teacher's own."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.students import Student
from edgeforge.students._blocks import Blocks

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.architectures import Architecture
    from edgeforge.core.task import Interface, Task


class Width(Student, Blocks):
    """Every width of the teacher times one factor; as deep, unless `keep` or `every` also leaves blocks out.

    With ``weights: teacher`` a transformer starts from the teacher's own numbers: the hidden dimensions, attention
    heads and neurons with the largest weights are copied, the others left behind, as in Minitron (Muralidharan et al.,
    2024, https://arxiv.org/abs/2407.14679, which ranks by activations). Heads stay whole, and query heads with the keys
    that they share. It learns faster than from fresh weights; before any training it is hardly better.
    """

    kind: Literal["width"] = "width"
    multiple: float = Field(gt=0, le=1, description="Factor on every width; 0.5 leaves about a quarter of the weights.")
    weights: Literal["random", "teacher"] = Field(
        default="random",
        description="Where they come from: fresh, or the teacher's, of its most important dimensions, heads and "
        "neurons (transformers only).",
    )

    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.building",
        "edgeforge.models.surgery",
        "edgeforge.students._blocks",
        "edgeforge.students._endings",
        "edgeforge.students._slices",
    )

    def check(self, teacher: PretrainedConfig) -> None:
        family = _family(teacher)
        shape = family.of(teacher)
        if self.chooses():
            self.check_blocks(teacher)
        if self.weights == "teacher":
            _check_divisible(teacher, shape.scaled(self.multiple))

    def build(self, teacher: PreTrainedModel, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import build_new
        from edgeforge.students._endings import end_texts_alike
        from edgeforge.students._slices import take_over

        self.check(teacher.config)
        if self.chooses():
            teacher = self.without_the_others(teacher)
        family = _family(teacher.config)
        measured = family.measured(teacher)
        student = build_new(family.of(measured).scaled(self.multiple).config(interface), task, interface)
        if self.weights == "teacher":
            take_over(student, teacher, measured)
        end_texts_alike(student, teacher)
        return student


def _check_divisible(config: PretrainedConfig, narrower: Architecture) -> None:
    """Raise ModelError where a part of a teacher's weights does not make the narrower shape."""
    from edgeforge.students._slices import check_heads

    if not narrower.axes(config):
        raise ModelError(
            f"a narrower {config.model_type} cannot take over a part of its teacher's weights",
            where="student.weights",
            remedy="narrow the teacher itself: `{kind: prune, structure: channels}`; or leave `weights` out",
        )
    described = copy.deepcopy(config)
    for name, value in narrower:
        if name != "kind":
            setattr(described, name, value)
    check_heads(described, config)


def _family(config: PretrainedConfig) -> type[Architecture]:
    family = architecture_of(config)
    if family is None:
        raise ModelError(
            f"EdgeForge does not know how to narrow a {config.model_type}",
            where="student",
            remedy="use `{kind: config, architecture: ...}` to say the student's shape",
        )
    return family
