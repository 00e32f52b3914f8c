"""A teacher whose answers are computed once and kept (offline distillation)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.teachers import LOGITS, OpenTeacher, Teacher
from edgeforge.teachers import _kept as kept
from edgeforge.teachers._source import TeachingModel

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, Task, TaskData

ANSWERS = "logits.safetensors"
MOST_BYTES = 4 << 30
"""Of answers kept whole, where `top_k` would do."""


class Cached(TeachingModel, Teacher):
    """The same models as `model`, asked once about every sample students are taught on; all students share the answers.

    A step of its own computes them, so a later student of the same teacher, in this or another pipeline with the same
    store, starts without a teacher forward. Kept are logits, 4 bytes per sample and label. Losses that read a
    teacher's layers need a teacher that is asked each time: `model`.

    Where the task augments images, `views` of each are kept, 4 bytes per sample, view and label. In epoch e a student
    sees view e modulo `views`, the very crop and flip that the teacher saw (Beyer et al., 2022, "Knowledge
    distillation: A good teacher is patient and consistent"; Shen and Xing, 2022, FKD, keep such answers as well). A
    view is drawn from the run's seed, the sample and the view's number, so no crop is stored. For the first `views`
    epochs a student is therefore that of the live teacher; after them it sees no new images.

    A language model answers for every token, so that all it says would fill the disk (SmolLM2: 200 kB per token). With
    `top_k`, kept are the k likeliest tokens and the sum of all others: 4k + 2 bytes per token, and 6k + 2 of a
    vocabulary of more than 65,536. 64 hold 89 % of what SmolLM2 says on average, and 256 hold 95 %.
    """

    kind: Literal["cached"] = "cached"
    top_k: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Keep each token's k likeliest answers and the sum of all others (language models; `soft_targets`, "
        "`reverse_kl` and `jensen_shannon` at temperature 1); absent: every logit.",
    )

    views: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Keep answers about so many augmented views of every sample; the student sees the same ones, a "
        "view an epoch, over and over. Needed where the task augments.",
    )

    why_logits_only: ClassVar[str | None] = (
        "a `cached` teacher keeps its logits only: the states of every layer and sample would fill the disk"
    )
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.teachers._kept", "edgeforge.models.buckets")

    def keeps(self) -> int | None:
        return self.top_k

    def kept_views(self) -> int | None:
        return self.views

    def recorded(self) -> bool:
        return True

    def size_bytes(self, data: TaskData) -> int:
        """What answers about all of `data` take on disk; of a language model at most that."""
        samples, interface = data.size("transfer"), data.interface
        if not interface.per_token:
            return samples * len(interface.labels) * 4 * (self.views or 1)
        vocabulary = interface.text.vocabulary_size
        per_token = kept.record(min(self.top_k or vocabulary, vocabulary), vocabulary).itemsize
        return samples * interface.text.max_length * per_token

    def check_views(self, task: Task, where: str) -> None:
        """Refuse augmented samples without `views`, and views where nothing is. Raises IncompatiblePlanError."""
        if task.augments() and self.views is None:
            raise IncompatiblePlanError(
                "a cached teacher has answers about the images as they are, and the task's `augment` changes them",
                where=where,
                remedy="keep answers about some views of each, {kind: cached, views: 8}; or use `teacher: model`",
            )
        if self.views is not None and not task.augments():
            raise IncompatiblePlanError(
                "`views` are augmented copies of a sample, and this task changes none",
                where=f"{where}.views",
                remedy="leave `views` out, or give the task an `augment`",
            )

    def check_data(self, data: TaskData) -> None:
        interface = data.interface
        if self.views is not None and self.size_bytes(data) > MOST_BYTES:
            most = self.views * MOST_BYTES // self.size_bytes(data)
            raise IncompatiblePlanError(
                f"answers about {self.views} views of every sample would take {self.size_bytes(data) / 1e9:,.0f} GB, "
                "which a student holds in memory",
                where="teacher.views",
                remedy=f"keep at most {most}" if most else "use `teacher: model`",
            )
        if self.top_k is not None and not interface.per_token:
            raise IncompatiblePlanError(
                f"`top_k` is for answers about every token, and the task has {len(interface.labels)} labels a sample",
                where="teacher.top_k",
                remedy="leave it out: every logit is kept",
            )
        if self.top_k is None and interface.per_token and self.size_bytes(data) > MOST_BYTES:
            raise IncompatiblePlanError(
                f"every logit for every token would take {self.size_bytes(data) / 1e9:,.0f} GB",
                where="teacher",
                remedy=f"keep the likeliest: {{kind: cached, top_k: 64}} takes "
                f"{Cached(top_k=64).size_bytes(data) / 1e9:.2g} GB",
            )

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher; `LOGITS` holds the answers. Raises ModelError where they are not for these data."""
        path = inputs[LOGITS].path
        if data.interface.per_token:
            answers = kept.Answers(path)
            _check_count(len(answers), data, path)
            _check_vocabulary(answers.vocabulary, data, path)
            return _RememberingTokens(answers, device)
        logits = read_answers(path)
        _check_count(logits.shape[-2], data, path)
        return (_Remembering if self.views is None else _RememberingViews)(logits.to(device))


def _check_count(kept: int, data: TaskData, path: Path) -> None:
    wanted = data.size("transfer")
    if kept != wanted:
        raise ModelError(
            f"answers about {kept} samples are kept, and the data have {wanted}",
            where=str(path),
            remedy="the data changed while the pipeline ran: run it again",
        )


def _check_vocabulary(kept: int, data: TaskData, path: Path) -> None:
    if kept != data.interface.text.vocabulary_size:
        raise ModelError(
            f"answers about a vocabulary of {kept} are kept, and the student's has "
            f"{data.interface.text.vocabulary_size}",
            where=str(path),
            remedy="use `teacher: model`, whose answers are translated where the student's vocabulary was cut out of "
            "the teacher's; or distil by sequence: `generate`, then `finetune` with `mix`",
        )


class _Remembering(OpenTeacher):
    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        from transformers.modeling_outputs import SequenceClassifierOutput

        _refuse(outputs)
        return SequenceClassifierOutput(logits=self._of(batch))

    def _of(self, batch: Batch) -> torch.Tensor:
        return self._logits[batch["rows"]]


class _RememberingViews(_Remembering):
    """The same, for logits of shape (views, samples, labels)."""

    @property
    def views(self) -> int:
        return len(self._logits)

    def _of(self, batch: Batch) -> torch.Tensor:
        return self._logits[batch["views"], batch["rows"]]


class _RememberingTokens(OpenTeacher):
    """Answers for the labelled tokens of a batch, in order (see `edgeforge.losses._rows`); or dense, with all kept."""

    def __init__(self, answers: kept.Answers, device: torch.device) -> None:
        self._answers, self._device = answers, device

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        from transformers.modeling_outputs import CausalLMOutput
        from transformers.utils import ModelOutput

        from edgeforge.core.task import NO_LABEL

        _refuse(outputs)
        labelled = batch["labels"] != NO_LABEL
        ids, values = self._answers.of(batch["rows"].tolist())
        if len(ids) != int(labelled.sum()):
            raise ModelError(
                f"answers about {len(ids)} tokens are kept for texts in which {int(labelled.sum())} are to be learnt",
                remedy="the data changed while the pipeline ran: run it again",
            )
        ids, values = ids.to(self._device), values.to(self._device)
        if ids.shape[1] < self._answers.vocabulary:
            return ModelOutput(bucket_ids=ids, bucket_log_probabilities=values)
        logits = values.new_zeros(*labelled.shape, self._answers.vocabulary)
        logits[labelled] = values.new_empty(values.shape).scatter_(1, ids.long(), values)
        return CausalLMOutput(logits=logits)


def _refuse(outputs: frozenset[str]) -> None:
    if outputs:
        raise ModelError(f"a cached teacher keeps no {', '.join(sorted(outputs))}", remedy="use `teacher: model`")


def write_answers(logits: torch.Tensor, folder: Path) -> None:
    """Keep logits, float32, ([views,] samples, labels), by position in the transfer split."""
    from safetensors.torch import save_file

    save_file({"logits": logits.contiguous()}, folder / ANSWERS)


def read_answers(folder: Path) -> torch.Tensor:
    """What `write_answers` kept."""
    from safetensors.torch import load_file

    logits: torch.Tensor = load_file(folder / ANSWERS)["logits"]
    return logits
