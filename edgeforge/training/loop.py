"""The one training loop, on accelerate. It does not know which task, loss or model it trains.

A step is a pure function of (weights, optimizer state, seed, step): data order, augmentation and dropout are derived
from the seed and the step, so a run that was killed goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.seeds import derive, of_view
from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL, Batch, Split, TaskData
from edgeforge.losses import Training
from edgeforge.store import CHECKPOINT
from edgeforge.training import checkpoint
from edgeforge.training.adapters import changing, restore
from edgeforge.training.mixture import Mixture, passes
from edgeforge.training.objective import Trainee
from edgeforge.training.on_policy import OnPolicy
from edgeforge.training.precision import autocast, uses_bfloat16
from edgeforge.training.recipe import Recipe
from edgeforge.training.validation import score, validated

REPORT_EVERY = 10  # steps between progress updates, each of which reads the loss off the device


@dataclass
class _State:
    """What changes while training, beside weights and optimizer."""

    step: int = 0
    history: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "validation": []})
    loss_sum: float = 0.0
    loss_count: int = 0
    best: float = -math.inf
    best_step: int = 0


def fit(
    trainee: Trainee,
    recipe: Recipe,
    *,
    data: TaskData,
    job: Job,
    split: Split = "train",
    rows: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Train a student in place on a split of `data`, or on some rows of it; return its history for the report.

    Goes on from ``job.folder/checkpoint`` where a checkpoint is there. The recipe's adapters are merged at the end.
    Raises ConfigurationError where the loss stops being a number.
    """
    training = _Training(trainee, recipe, data, _Samples(split, passes(data, split) if rows is None else rows), job)
    training.resume()
    training.run()
    return training.finish()


@dataclass(frozen=True)
class _Samples:
    """What is trained on: positions in a split, in no order; an epoch is all of them."""

    split: Split
    rows: Iterable[int]


class _Training:
    def __init__(self, trainee: Trainee, recipe: Recipe, data: TaskData, chosen: _Samples, job: Job) -> None:
        self.recipe, self.job, self.split = recipe, job, chosen.split
        self.samples = data
        self.data = data.own if isinstance(data, Mixture) else data
        self.accelerator = job.accelerator
        self.epoch = list(chosen.rows)
        self.size = len(self.epoch)
        self.per_epoch = max(1, self.size // recipe.batch_size)
        self.total = recipe.total_steps(self.size)
        self.state = _State()
        self.on_policy: OnPolicy | None = getattr(recipe, "on_policy", None)
        torch.manual_seed(derive(job.seed, "adapters"))
        self.adapters = recipe.lora.attach(trainee.student) if recipe.lora is not None else None
        torch.manual_seed(derive(job.seed, "projections"))
        self.trainee = trainee.to(self.accelerator.device)
        self.teacher = self.trainee.teacher
        if self.teacher is not None:
            self.teacher.begin(self.trainee.student)
        self.views = None if self.teacher is None else self.teacher.views
        example = self._batch(self.epoch[:2], epoch=0)
        self.trainee.make_loss_modules(example, Training(samples=data.size(self.split), seed=job.seed))
        if self.data.interface.pixels is not None:
            self.trainee.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = _optimizer(self.trainee, recipe)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.trainee, optimizer)
        self.average = _copy(self.trainee.student) if recipe.ema else {}
        self.best: dict[str, torch.Tensor] = {}
        self.bfloat16 = uses_bfloat16(recipe.precision, self.accelerator.device)

    # -- one step

    def run(self) -> None:
        self.wrapped.train()
        saved = time.monotonic()
        pending = torch.zeros(())
        while self.state.step < self.total:
            step = self.state.step
            pending = pending + self._step(step)
            self.state.step = step = step + 1
            last = step == self.total
            ends_epoch = step % self.per_epoch == 0 or last
            if step % REPORT_EVERY and not ends_epoch:
                continue
            self._note(float(pending), step)
            pending = torch.zeros(())
            if ends_epoch:
                self._end_epoch()
            if time.monotonic() - saved >= self.recipe.checkpoint_seconds and not last:
                self._checkpoint()
                saved = time.monotonic()

    def _step(self, step: int) -> torch.Tensor:
        epoch, position = divmod(step, self.per_epoch)
        indices = self._order(epoch)[position * self.recipe.batch_size : (position + 1) * self.recipe.batch_size]
        torch.manual_seed(derive(self.job.seed, "dropout", step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * _rate(self.recipe, step, self.total)
        total = torch.zeros((), device=self.accelerator.device)
        batches = [self._batch(piece, epoch=epoch) for piece in self._pieces(indices)]
        own_words = self.on_policy is not None and self.on_policy.applies(self.job.seed, step)
        if own_words:
            batches = self._rewritten(batches, step)
        for number, (batch, share) in enumerate(zip(batches, self._shares(batches, len(indices)), strict=True)):
            waits = nullcontext() if number == len(batches) - 1 else self.accelerator.no_sync(self.wrapped)
            with waits, self._precision():
                loss = self.wrapped(batch, self.trainee.teacher_outputs(batch), own_words) * share
                loss = loss * self.accelerator.num_processes
            self.accelerator.backward(loss)
            total += loss.detach() / self.accelerator.num_processes
        if self.recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.trainee.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()
        if self.teacher is not None:
            ends_cycle = step + 1 == _cycle(self.recipe, step, self.total).stop
            self.teacher.follow(self.trainee.student, step + 1, ends_cycle=ends_cycle)
        return total.cpu()

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_ordered", None) != epoch:
            generator = torch.Generator().manual_seed(derive(self.job.seed, "order", epoch))
            order = torch.randperm(self.size, generator=generator).tolist()
            self._indices: list[int] = [self.epoch[position] for position in order]
            self._ordered = epoch
        return self._indices

    def _pieces(self, indices: list[int]) -> Iterator[list[int]]:
        """This process's share of a batch, in `accumulate` pieces. Every process has the same number of pieces."""
        mine = indices[self.accelerator.process_index :: self.accelerator.num_processes] or indices[:1]
        count = min(self.recipe.accumulate, max(1, len(indices) // self.accelerator.num_processes))
        for number in range(count):
            yield mine[number::count]

    def _shares(self, batches: Sequence[Batch], samples: int) -> list[float]:
        """What part of the whole batch, over all processes, each piece is: by its samples, or by its labelled tokens.

        So that every token counts the same wherever it stands.
        """
        if not self.data.interface.per_token:
            return [len(batch["rows"]) / samples for batch in batches]
        counts = torch.stack([(batch["labels"] != NO_LABEL).sum() for batch in batches])
        whole = self.accelerator.reduce(counts.sum(), reduction="sum").clamp(min=1)
        shares: list[float] = (counts.double() / whole).tolist()
        return shares

    def _rewritten(self, batches: Sequence[Batch], step: int) -> list[Batch]:
        """The same pieces, in the student's own words."""
        assert self.on_policy is not None
        seeds = [
            derive(self.job.seed, "own words", step, self.accelerator.process_index, piece)
            for piece in range(len(batches))
        ]
        with self._precision():
            pairs = zip(batches, seeds, strict=True)
            found = [self.on_policy.rewritten(batch, self.trainee.student, seed) for batch, seed in pairs]
        self.wrapped.train()
        return found

    def _batch(self, indices: Sequence[int], *, epoch: int) -> Batch:
        """These samples as an epoch shows them: each in a view of its own, or in turn those the teacher answered about.

        Teaching is consistent: teacher and student see the same view (Beyer et al., 2022, arXiv:2106.05237).
        """
        view = epoch if self.views is None else epoch % self.views
        batch = self.samples.batch(self.split, indices, augment_seed=of_view(self.job.seed, view))
        if self.views is not None:
            batch["views"] = torch.full_like(batch["rows"], view)
        device = self.accelerator.device
        return {
            name: value.to(device, memory_format=torch.channels_last) if value.dim() == 4 else value.to(device)
            for name, value in batch.items()
        }

    def _precision(self) -> AbstractContextManager[Any]:
        return autocast(self.recipe.precision, self.accelerator.device)

    def _average(self) -> None:
        if self.recipe.ema is None:
            return
        # The usual warm-up of the decay keeps early, untrained weights from lingering.
        decay = min(self.recipe.ema, (1 + self.state.step) / (10 + self.state.step))
        for name, value in changing(self.trainee.student).items():
            kept = self.average[name]
            if value.is_floating_point():
                kept.lerp_(value.detach(), 1 - decay)
            else:
                kept.copy_(value)

    # -- bookkeeping

    def _note(self, loss_sum: float, step: int) -> None:
        self.state.loss_sum += loss_sum
        self.state.loss_count = (step - 1) % self.per_epoch + 1
        mean = self.state.loss_sum / self.state.loss_count
        if not math.isfinite(mean):
            raise ConfigurationError(
                f"the loss is no longer a number at step {step} of {self.total}",
                where="training",
                remedy="lower learning_rate, raise warmup, or set clip_norm",
            )
        if self.accelerator.is_main_process:
            self.job.progress.update(step, self.total, f"loss {mean:.4f}")

    def _end_epoch(self) -> None:
        self.state.history["loss"].append(self.state.loss_sum / max(1, self.state.loss_count))
        self.state.loss_sum, self.state.loss_count = 0.0, 0
        if self.recipe.keep == "last":
            return
        name, value = self._validate()
        self.state.history["validation"].append(value)
        if score(name, value) > self.state.best:
            self.state.best, self.state.best_step = score(name, value), self.state.step
            self.best = {name: value.clone() for name, value in self._kept().items()}

    def _validate(self) -> tuple[str, float]:
        """The headline metric on the validation split, by name, with the weights that would be kept."""
        current = _copy(self.trainee.student)
        restore(self.trainee.student, self._kept())
        self.trainee.student.eval()
        task, device = self.job.task, self.accelerator.device
        found = [validated(answer, task=task, data=self.data, device=device) for answer in self.trainee.answering()]
        restore(self.trainee.student, current)
        self.wrapped.train()
        return max(found, key=lambda one: score(*one))

    def _kept(self) -> dict[str, torch.Tensor]:
        return self.average if self.recipe.ema else changing(self.trainee.student)

    # -- interruption

    def _checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            tensors = {
                "trainee": changing(self.trainee),
                "optimizer": checkpoint.optimizer_tensors(self.optimizer),
                "average": self.average,
                "best": self.best,
                "teacher": {} if self.teacher is None else self.teacher.state(),
            }
            state = {**vars(self.state), "total": self.total}
            checkpoint.save(self.job.folder / CHECKPOINT, self.state.step, tensors, _finite(state))

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = checkpoint.latest(self.job.folder / CHECKPOINT)
        if found is None:
            return
        state = checkpoint.read_state(found)
        state.pop("total")
        state["best"] = -math.inf if state["best"] is None else state["best"]
        self.state = _State(**state)
        restore(self.trainee, checkpoint.read(found, "trainee"))
        checkpoint.restore_optimizer(self.optimizer, checkpoint.read(found, "optimizer"))
        self.average = checkpoint.read(found, "average")
        self.best = checkpoint.read(found, "best")
        if self.teacher is not None:
            self.teacher.restore(checkpoint.read(found, "teacher"))

    def finish(self) -> dict[str, Any]:
        """Leave the kept weights in the model, in eval mode on the CPU; return the history."""
        kept = self.best if self.recipe.keep == "best" else self._kept()
        restore(self.trainee.student, kept)
        if self.adapters is not None:
            self.adapters.merge()
        self.trainee.student.to("cpu", memory_format=torch.contiguous_format)
        self.trainee.student.eval()
        history = {name: values for name, values in self.state.history.items() if values}
        facts: dict[str, Any] = {"steps": self.total, "precision": "bfloat16" if self.bfloat16 else "float32"}
        if self.recipe.keep == "best":
            facts["kept_step"] = self.state.best_step
        return {**facts, "history": history}


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [value for value in module.parameters() if value.requires_grad]
    groups = [
        {"params": [value for value in trained if value.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [value for value in trained if value.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _rate(recipe: Recipe, step: int, total: int) -> float:
    """Factor of the peak learning rate for the step that is about to be taken (0-based)."""
    cycle = _cycle(recipe, step, total)
    step, total = step - cycle.start, len(cycle)
    warm = max(1, round(recipe.warmup * total)) if recipe.warmup else 0
    if step < warm:
        return (step + 1) / warm
    if recipe.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _cycle(recipe: Recipe, step: int, total: int) -> range:
    """The steps of the cycle that a step (0-based) is in."""
    number = ((step + 1) * recipe.cycles - 1) // total
    return range(number * total // recipe.cycles, (number + 1) * total // recipe.cycles)


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in changing(model).items()}


def _finite(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "best": state["best"] if math.isfinite(state["best"]) else None}
