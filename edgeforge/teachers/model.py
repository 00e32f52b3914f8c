"""A model as the teacher, asked anew for every batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

import edgeforge.models
from edgeforge.core.artifact import Artifact
from edgeforge.core.kinds import OneOf
from edgeforge.teachers import OpenTeacher, Teacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch


class Model(Teacher):
    """The chain's model so far, an earlier stage's, or any other model of the same task."""

    kind: Literal["model"] = "model"
    stage: str | None = Field(default=None, description="An earlier stage by name; absent: the chain's model so far.")
    model: Annotated[edgeforge.models.Model, OneOf("edgeforge.models")] | None = Field(
        default=None, description="A model that is not part of the chain."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if self.stage is not None and self.model is not None:
            raise ValueError("a teacher is either a `stage` or a `model`, not both")
        return self

    def source(self) -> str | edgeforge.models.Model | None:
        return self.stage if self.model is None else self.model

    def open(self, artifact: Artifact, device: torch.device) -> OpenTeacher:
        """Raises ModelError where the artifact's files cannot be used."""
        from edgeforge.models import loading

        return _Answering(loading.load(artifact.path).to(device))


class _Answering(OpenTeacher):
    """Answers in evaluation mode: dropout off, batch statistics as learned."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model.eval().requires_grad_(False)

    def __call__(self, batch: Batch, outputs: Mapping[str, bool]) -> ModelOutput:
        import torch

        inputs = {name: value for name, value in batch.items() if name != "labels"}
        # no_grad, not inference_mode: the student's graph may keep these tensors for its backward pass.
        with torch.no_grad():
            return self._model(**inputs, **outputs, return_dict=True)
