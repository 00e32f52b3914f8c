"""The teacher's architecture, narrower."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.students import Student

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.architectures import Architecture
    from edgeforge.core.task import Interface, Task


class Width(Student):
    """As deep as the teacher, every width times one factor, fresh weights."""

    kind: Literal["width"] = "width"
    multiple: float = Field(gt=0, le=1, description="Factor on every width; 0.5 leaves about a quarter of the weights.")

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.building",)

    def build(self, teacher: PreTrainedModel, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import build_new

        family = _family(teacher.config)
        shape = family.of(family.measured(teacher))
        return build_new(shape.scaled(self.multiple).config(interface), task, interface)

    def check(self, teacher: PretrainedConfig) -> None:
        _family(teacher).of(teacher)


def _family(config: PretrainedConfig) -> type[Architecture]:
    family = architecture_of(config)
    if family is None:
        raise ModelError(
            f"EdgeForge does not know how to narrow a {config.model_type}",
            where="student",
            remedy="use `{kind: config, architecture: ...}` to say the student's shape",
        )
    return family
