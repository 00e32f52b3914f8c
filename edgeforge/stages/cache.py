"""A teacher's answers, computed once and kept for every student."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import TaskData
from edgeforge.store import CHECKPOINT
from edgeforge.teachers.cached import write_answers
from edgeforge.teachers.model import Model

if TYPE_CHECKING:
    import torch

    from edgeforge.teachers import OpenTeacher

    Ask = Callable[[Sequence[int]], torch.Tensor]

BATCH = 64
CHECKPOINT_SECONDS = 30.0
COMPARED, COMPARED_BATCH = 128, 32


class Cache(Stage):
    """Ask a teacher about every sample of the transfer split. A stage with ``teacher: cached`` brings this step along.

    Facts: `samples`, `labels`, `size_bytes`, `bytes_per_sample`, and `max_difference_in_other_batches`, the greatest
    difference between an answer that is kept and the teacher's when asked again in another batch (128 samples, drawn
    at random): 0 means that students of this cache and of the live teacher are the same to the bit.
    """

    kind: Literal["cache"] = "cache"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic of the teacher: as in the students' training."
    )

    makes: ClassVar[str] = "logits"
    in_chain: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.loading",
        "edgeforge.models.outputs",
        "edgeforge.teachers.cached",
        "edgeforge.teachers.model",
        "edgeforge.teachers._regular",
        "edgeforge.training.precision",
    )

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"name"})

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        device, data = job.accelerator.device, job.data
        ask = self._asking(Model().open(inputs["model"], device, data), data, device)
        logits = _answers(ask, data, job)
        if not logits.isfinite().all():
            raise ModelError("the teacher's answers are not all numbers", remedy="use a soundly trained teacher")
        write_answers(logits, job.folder)
        per_sample = logits.shape[1] * logits.element_size()
        return {
            "samples": logits.shape[0],
            "labels": logits.shape[1],
            "bytes_per_sample": per_sample,
            "size_bytes": logits.shape[0] * per_sample,
            "max_difference_in_other_batches": _difference(ask, logits, job.seed),
        }

    def _asking(self, teacher: OpenTeacher, data: TaskData, device: torch.device) -> Ask:
        """Positions in the transfer split -> logits, float32 on the CPU."""
        from edgeforge.training.precision import autocast

        def ask(indices: Sequence[int]) -> torch.Tensor:
            batch = {name: value.to(device) for name, value in data.batch("transfer", indices).items()}
            with autocast(self.precision, device):
                return teacher(batch, frozenset()).logits.float().cpu()  # type: ignore[no-any-return]

        return ask


def _answers(ask: Ask, data: TaskData, job: Job) -> torch.Tensor:
    """The logits of every sample, by position; goes on from a checkpoint where an earlier attempt left one."""
    import torch

    from edgeforge.training import checkpoint

    order = _shortest_first(data)
    found = checkpoint.latest(job.folder / CHECKPOINT)
    done = int(checkpoint.read_state(found)["done"]) if found else 0
    logits = (
        checkpoint.read(found, "answers")["logits"] if found else torch.empty(len(order), len(data.interface.labels))
    )
    saved = time.monotonic()
    while done < len(order):
        indices = order[done : done + BATCH]
        logits[indices] = ask(indices)
        done += len(indices)
        job.progress.update(done, len(order))
        if time.monotonic() - saved >= CHECKPOINT_SECONDS and done < len(order):
            checkpoint.save(job.folder / CHECKPOINT, done, {"answers": {"logits": logits}}, {"done": done})
            saved = time.monotonic()
    return logits


def _shortest_first(data: TaskData) -> list[int]:
    """Every position, texts of like length together, so that little padding is computed."""
    import torch

    size = data.size("transfer")
    if data.interface.tokens is None:
        return list(range(size))
    lengths = [
        data.batch("transfer", range(start, min(size, start + BATCH)))["attention_mask"].sum(dim=1)
        for start in range(0, size, BATCH)
    ]
    return torch.cat(lengths).argsort(stable=True).tolist()


def _difference(ask: Ask, logits: torch.Tensor, seed: int) -> float:
    """See the stage's facts."""
    import torch

    generator = torch.Generator().manual_seed(derive(seed, "other batches"))
    drawn = torch.split(torch.randperm(len(logits), generator=generator)[:COMPARED], COMPARED_BATCH)
    return max(float((ask(indices.tolist()) - logits[indices]).abs().max()) for indices in drawn)
