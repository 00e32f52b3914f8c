"""A new model with random weights, of a shape the pipeline file says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import Architecture, nested
from edgeforge.core.kinds import OneOf
from edgeforge.models import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface, Task


class Config(Model):
    """Fresh weights. The family's fields stand beside it: ``{kind: config, architecture: resnet, depths: [2, 2]}``."""

    kind: Literal["config"] = "config"
    architecture: Annotated[Architecture, OneOf("edgeforge.architectures")] = Field(
        description="The model family; its fields are written beside it."
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.building",)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return nested(value, cls.model_fields)

    def untrained(self) -> bool:
        return True

    def build(self, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import build_new

        return build_new(self.architecture.config(interface), task, interface)
