"""A teacher's answers, computed once and kept for every student."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.seeds import derive, of_view
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import NO_LABEL, TaskData
from edgeforge.store import CHECKPOINT
from edgeforge.teachers import TEACHER
from edgeforge.teachers import _kept as kept
from edgeforge.teachers.cached import Cached, write_answers
from edgeforge.teachers.model import Model
from edgeforge.training.mixture import DATASET, Mix, open_mixed
from edgeforge.training.stream import Stream

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgeforge.core.task import Batch

    Ask = Callable[[Batch], torch.Tensor]

BATCH = 64
CHECKPOINT_SECONDS = 30.0
COMPARED, COMPARED_BATCH = 128, 32
LOGITS_AT_ONCE = 1 << 26
"""Of a language model's answers: 256 MB in float32."""


class Cache(Stage):
    """Ask a teacher about every sample of the transfer split. A stage with ``teacher: cached`` brings this step along.

    Facts: `samples`, `size_bytes`. Of answers about samples also `labels`, `views` (where samples are augmented),
    `bytes_per_sample` (of all its views together), and
    `max_difference_in_other_batches`, the greatest difference between an answer that is kept and the teacher's when
    asked again in another batch (128 samples, drawn at random): 0 means that students of this cache and of the live
    teacher are the same to the bit. Of answers about tokens `tokens`, `top_k`, `bytes_per_token`, and `kept_mass`: how
    much of a token's distribution the ids hold, on average and at the 5th percentile.
    """

    kind: Literal["cache"] = "cache"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Arithmetic of the teacher: as in the students' training."
    )
    top_k: int | None = Field(
        default=None, ge=1, description="The likeliest answers to keep for each token; absent: all."
    )
    views: int | None = Field(
        default=None, ge=1, description="Augmented views of each sample to ask about; absent: samples as they are."
    )

    makes: ClassVar[str] = "logits"
    in_chain: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.buckets",
        "edgeforge.models.loading",
        "edgeforge.models.outputs",
        "edgeforge.teachers._kept",
        "edgeforge.teachers._regular",
        "edgeforge.teachers.cached",
        "edgeforge.teachers.model",
        "edgeforge.training.mixture",
        "edgeforge.training.precision",
    )

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude={"name"})

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        device = job.accelerator.device
        mix = Mix(stage="") if DATASET in inputs else None  # shares are the students' own
        data = open_mixed(job.task, mix, inputs, reader="model")
        Cached(top_k=self.top_k, views=self.views).check_data(data)
        ask = self._asking(inputs["model"], device, data)
        if data.interface.per_token:
            return self._tokens(ask, data, job)
        seeds = [None] if self.views is None else [of_view(job.seed, view) for view in range(self.views)]
        logits = _answers(ask, data, job, seeds)
        if not logits.isfinite().all():
            raise _no_numbers()
        write_answers(logits[0] if self.views is None else logits, job.folder)
        views, samples, labels = logits.shape
        return {
            "samples": samples,
            "labels": labels,
            **({} if self.views is None else {"views": views}),
            "bytes_per_sample": views * labels * logits.element_size(),
            "size_bytes": logits.nbytes,
            "max_difference_in_other_batches": _difference(ask, data, logits, job.seed, seeds),
        }

    def _asking(self, model: Artifact, device: torch.device, data: TaskData) -> Ask:
        """A batch of the transfer split -> logits, as the teacher computes them."""
        from edgeforge.training.precision import autocast

        teacher = Model().open({TEACHER: model}, device, data)

        def ask(batch: Batch) -> torch.Tensor:
            with autocast(self.precision, device):
                found = teacher({name: value.to(device) for name, value in batch.items()}, frozenset())
                return found.logits  # type: ignore[no-any-return]

        return ask

    def _tokens(self, ask: Ask, data: TaskData, job: Job) -> dict[str, Any]:
        vocabulary = data.interface.text.vocabulary_size
        k = min(self.top_k or vocabulary, vocabulary)
        dtype, offsets = kept.record(k, vocabulary), _offsets(data)
        stream = Stream(job.folder / CHECKPOINT, kept.TOKENS)
        size, together = data.size("transfer"), max(1, LOGITS_AT_ONCE // (vocabulary * data.interface.text.max_length))
        for start in range(stream.done, size, together):
            end = min(size, start + together)
            content = [kept.header(int(offsets[-1]), dtype)] if start == 0 else []
            for row, labels in _answers_about_tokens(ask, data.batch("transfer", range(start, end))):
                content.append(kept.records(row[labels != NO_LABEL].float(), dtype).tobytes())
            stream.append(b"".join(content), end)
            job.progress.update(end, size)
        stream.finish(job.folder / kept.TOKENS)
        kept.write_about(job.folder, offsets, vocabulary)
        return {
            "samples": size,
            "tokens": int(offsets[-1]),
            "top_k": k,
            "bytes_per_token": dtype.itemsize,
            "size_bytes": int(offsets[-1]) * dtype.itemsize,
            "kept_mass": _mass(kept.Answers(job.folder)),
        }


def _no_numbers() -> ModelError:
    return ModelError("the teacher's answers are not all numbers", remedy="use a soundly trained teacher")


def _answers_about_tokens(ask: Ask, batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits (L, tokens), labels (L,)) of each sample."""
    logits = ask(batch)
    if not logits.isfinite().all():
        raise _no_numbers()
    yield from zip(logits, batch["labels"].to(logits.device), strict=True)


def _offsets(data: TaskData) -> np.ndarray:
    """Where the answers about each sample begin, and where the last end: int64, (samples + 1,)."""
    import numpy as np

    size = data.size("transfer")
    counts = [
        (data.batch("transfer", range(start, min(size, start + BATCH)))["labels"] != NO_LABEL).sum(dim=1).numpy()
        for start in range(0, size, BATCH)
    ]
    offsets: np.ndarray = np.concatenate([[0], np.concatenate(counts).cumsum()]).astype(np.int64)
    return offsets


def _mass(answers: kept.Answers) -> dict[str, float]:
    import numpy as np

    mass = answers.kept_mass()
    return {"mean": float(mass.mean(dtype=np.float64)), "p5": float(np.percentile(mass, 5))}


def _answers(ask: Ask, data: TaskData, job: Job, seeds: Sequence[int | None]) -> torch.Tensor:
    """The logits of every sample, (views, samples, labels), a view for each of `seeds` (None: samples as they are).

    Goes on from a checkpoint where an earlier attempt left one.
    """
    import torch

    from edgeforge.training import checkpoint

    order = _shortest_first(data)
    found = checkpoint.latest(job.folder / CHECKPOINT)
    done = int(checkpoint.read_state(found)["done"]) if found else 0
    shape = (len(seeds), len(order), len(data.interface.labels))
    logits = checkpoint.read(found, "answers")["logits"] if found else torch.empty(shape)
    total, saved = len(seeds) * len(order), time.monotonic()
    while done < total:
        view, start = divmod(done, len(order))
        indices = order[start : start + BATCH]
        logits[view, indices] = ask(data.batch("transfer", indices, augment_seed=seeds[view])).float().cpu()
        done += len(indices)
        job.progress.update(done, total)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS and done < total:
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


def _difference(ask: Ask, data: TaskData, logits: torch.Tensor, seed: int, seeds: Sequence[int | None]) -> float:
    """See the stage's facts; each batch is of the next view."""
    import torch

    generator = torch.Generator().manual_seed(derive(seed, "other batches"))
    drawn = torch.split(torch.randperm(logits.shape[1], generator=generator)[:COMPARED], COMPARED_BATCH)
    differences = []
    for number, rows in enumerate(drawn):
        view = number % len(seeds)
        again = ask(data.batch("transfer", rows.tolist(), augment_seed=seeds[view])).float().cpu()
        differences.append(float((again - logits[view, rows]).abs().max()))
    return max(differences)
