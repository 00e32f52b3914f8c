"""A model as the teacher, asked anew for every batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.task import model_inputs
from edgeforge.teachers import TEACHER, OpenTeacher, Teacher
from edgeforge.teachers._regular import regular
from edgeforge.teachers._source import TeachingModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, Interface, TaskData


BY_SEQUENCE = (
    "distil by sequence, which works between any two vocabularies: let the teacher write texts (`generate`) and "
    "fine-tune the student on them (`finetune` with `mix`)"
)


class Model(TeachingModel, Teacher):
    """The chain's model so far, an earlier stage's, or any other model of the same task.

    Of a language model, the student's vocabulary may have been cut out of its own: its answers are then those for the
    tokens that were kept, which a softmax makes a distribution again.
    """

    kind: Literal["model"] = "model"

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.outputs", "edgeforge.teachers._regular")

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher. Raises ModelError where the artifact's files cannot be used, too."""
        from edgeforge.models import loading

        path = inputs[TEACHER].path
        try:
            translated = data.for_model(path)
        except ModelError as error:
            remedy = BY_SEQUENCE if data.interface.per_token else error.remedy
            raise ModelError(error.what, where=error.where, remedy=remedy) from error
        return answering(loading.load(path).to(device), translated, data.interface)


def answering(model: PreTrainedModel, translated: Callable[[Batch], Batch], interface: Interface) -> OpenTeacher:
    """A model as the teacher, frozen where it lies; `translated` makes of the student's batches the model's."""
    answers = _AnsweringTokens if interface.per_token else _Answering
    return answers(model, translated, interface)


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


class _AnsweringTokens(OpenTeacher):
    """The same for every token. Batches are asked about as they come: they are large, and of one length mostly."""

    def __init__(self, model: PreTrainedModel, translated: Callable[[Batch], Batch], interface: Interface) -> None:
        self._translated = translated
        self._model = model.eval().requires_grad_(False)
        self._tokens = self._own_ids(interface, model.device)

    def _own_ids(self, interface: Interface, device: torch.device) -> torch.Tensor | None:
        """The ids here of the student's tokens, int64, (tokens,); None where they are the same."""
        import torch

        ids = torch.arange(interface.text.vocabulary_size, device=device)
        own = self._translated({"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]})["input_ids"][0]
        return None if torch.equal(own, ids) else own

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        import torch

        from edgeforge.models.outputs import run

        with torch.no_grad():
            answer = run(self._model, model_inputs(self._translated(batch)), outputs)
        if self._tokens is not None:
            answer["logits"] = answer.logits.index_select(-1, self._tokens)
        return answer
