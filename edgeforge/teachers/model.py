"""A model as the teacher, asked anew for every batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.artifact import Artifact
from edgeforge.core.task import model_inputs
from edgeforge.teachers import OpenTeacher, Teacher
from edgeforge.teachers._regular import regular
from edgeforge.teachers._source import TeachingModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, Interface, TaskData


class Model(TeachingModel, Teacher):
    """The chain's model so far, an earlier stage's, or any other model of the same task."""

    kind: Literal["model"] = "model"

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.outputs", "edgeforge.teachers._regular")

    def open(self, artifact: Artifact, device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher. Raises ModelError where the artifact's files cannot be used, too."""
        from edgeforge.models import loading

        model = loading.load(artifact.path).to(device)
        return _Answering(model, data.for_model(artifact.path), data.interface)


class _Answering(OpenTeacher):
    """Answers in evaluation mode: dropout off, batch statistics as learned."""

    def __init__(self, model: PreTrainedModel, translated: Callable[[Batch], Batch], interface: Interface) -> None:
        self._translated, self._interface = translated, interface
        self._model = model.eval().requires_grad_(False)

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        import torch

        from edgeforge.models.outputs import run

        asked = batch if outputs else regular(batch, self._interface)  # a student's states lie beside the teacher's
        # no_grad, not inference_mode: the student's graph may keep these tensors for its backward pass.
        with torch.no_grad():
            answer = run(self._model, model_inputs(self._translated(asked)), outputs)
        answer["logits"] = answer.logits[: len(next(iter(batch.values())))]
        return answer
