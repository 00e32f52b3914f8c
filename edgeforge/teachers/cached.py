"""A teacher whose answers are computed once and kept (offline distillation)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.teachers import OpenTeacher, Teacher
from edgeforge.teachers._source import TeachingModel

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, TaskData

ANSWERS = "logits.safetensors"


class Cached(TeachingModel, Teacher):
    """The same models as `model`, asked once about every sample students are taught on; all students share the answers.

    A step of its own computes them, so a later student of the same teacher, in this or another pipeline with the same
    store, starts without a teacher forward. Kept are logits, 4 bytes per sample and label. Losses that read a
    teacher's layers, and augmented images, need a teacher that is asked each time: `model`.
    """

    kind: Literal["cached"] = "cached"

    logits_only: ClassVar[bool] = True

    def open(self, artifact: Artifact, device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher; `artifact` holds the answers. Raises ModelError where they are not for these data."""
        logits = read_answers(artifact.path)
        wanted = data.size("transfer")
        if len(logits) != wanted:
            raise ModelError(
                f"answers about {len(logits)} samples are kept, and the data have {wanted}",
                where=str(artifact.path),
                remedy="the data changed while the pipeline ran: run it again",
            )
        return _Remembering(logits.to(device))


class _Remembering(OpenTeacher):
    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        from transformers.modeling_outputs import SequenceClassifierOutput

        if outputs:
            raise ModelError(f"a cached teacher keeps no {', '.join(sorted(outputs))}", remedy="use `teacher: model`")
        return SequenceClassifierOutput(logits=self._logits[batch["rows"]])


def write_answers(logits: torch.Tensor, folder: Path) -> None:
    """Keep logits, float32, shape (samples, labels), by position in the transfer split."""
    from safetensors.torch import save_file

    save_file({"logits": logits.contiguous()}, folder / ANSWERS)


def read_answers(folder: Path) -> torch.Tensor:
    """What `write_answers` kept."""
    from safetensors.torch import load_file

    logits: torch.Tensor = load_file(folder / ANSWERS)["logits"]
    return logits
