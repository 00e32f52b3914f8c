"""Which model teaches: what every teacher that is a model asks the user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import Spec
from edgeforge.models import Model
from edgeforge.teachers import TEACHER

if TYPE_CHECKING:
    from typing import Self

    from edgeforge.core.task import TaskData


class TeachingModel(Spec):
    """The chain's model so far, an earlier stage's, or any other model of the same task."""

    stage: str | None = Field(default=None, description="An earlier stage by name; absent: the chain's model so far.")
    model: Annotated[Model, OneOf("edgeforge.models")] | None = Field(
        default=None, description="A model that is not part of the chain."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.stage is not None and self.model is not None:
            raise ValueError("a teacher is either a `stage` or a `model`, not both")
        return self

    def sources(self) -> Mapping[str, str | Model | None]:
        """See Teacher."""
        return {TEACHER: self.stage if self.model is None else self.model}

    def check_reads(self, data: TaskData) -> None:
        """Refuse a model of its own that reads raw data otherwise than the student. Raises ModelError."""
        if self.model is not None and (folder := self.model.folder()) is not None:
            data.for_model(folder)
