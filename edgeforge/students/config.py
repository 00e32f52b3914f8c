"""A student of any shape, whatever the teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import Architecture, nested
from edgeforge.core.kinds import OneOf
from edgeforge.students import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface, Task


class Config(Student):
    """Fresh weights. The family's fields stand beside it: ``{kind: config, architecture: vit, hidden_size: 96}``."""

    kind: Literal["config"] = "config"
    architecture: Annotated[Architecture, OneOf("edgeforge.architectures")] = Field(
        description="The model family, which need not be the teacher's; its fields are written beside it."
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.building", "edgeforge.students._endings")

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return nested(value, cls.model_fields)

    def build(self, teacher: PreTrainedModel, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import build_new
        from edgeforge.students._endings import end_texts_alike

        student = build_new(self.architecture.config(interface), task, interface)
        end_texts_alike(student, teacher)
        return student
