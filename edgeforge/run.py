"""Execute a plan against a store: cached steps are skipped, an interrupted step goes on from its checkpoint."""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgeforge.budgets import source_row
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import (
    BudgetError,
    EdgeForgeError,
    EnvironmentProblem,
    IncompatiblePlanError,
    VerificationError,
)
from edgeforge.core.report import ArtifactRow, BudgetRow, Report, StepResult
from edgeforge.core.spec import perhaps
from edgeforge.core.stage import Job
from edgeforge.core.task import model_inputs
from edgeforge.pipeline import dump
from edgeforge.plan import Plan, Step
from edgeforge.renderers import write_all
from edgeforge.report import collect, file_step, folder_of, golden_path
from edgeforge.stages.initialize import Initialize
from edgeforge.stages.verify import Verify
from edgeforge.store import Store
from edgeforge.verification._golden import NAME as GOLDEN

if TYPE_CHECKING:
    from accelerate import Accelerator

    from edgeforge.core.task import Task

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


class Watcher(Protocol):
    """Who is told what happens, while it happens."""

    def started(self, step: Step, number: int, of: int) -> None:
        """Work on a step begins."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Progress inside the step that was started last."""

    def finished(self, step: Step, result: StepResult) -> None:
        """A step was made, found cached, or failed."""

    def warn(self, message: str) -> None:
        """Something the user should know."""


@dataclass
class _Notes:
    """A stage's progress, passed on, with its warnings kept for the report."""

    watcher: Watcher
    warnings: list[str] = field(default_factory=list)

    def update(self, done: int, total: int, note: str = "") -> None:
        self.watcher.update(done, total, note)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self.watcher.warn(message)


@dataclass(frozen=True)
class Outcome:
    """A finished run: its report, and the error that its exit code comes from (None: all is well)."""

    report: Report
    error: EdgeForgeError | None


def execute(plan: Plan, store: Store, out: Path, *, watcher: Watcher, rebuild: frozenset[str] = frozenset()) -> Outcome:
    """Make what is missing, then write the report and the shipped files into `out`.

    `rebuild` names steps whose sealed artifacts are not to be used. A target whose file fails is set aside while the
    others go on. Raises EdgeForgeError where the run itself cannot go on.
    """
    _check_out(out)
    runner = _Runner(plan, store, watcher, rebuild)
    for warning in plan.warnings:
        watcher.warn(warning)
    runner.rehearse()
    for number, step in enumerate(plan.steps, 1):
        runner.perform(step, number)
    report = collect(plan, runner.results)
    if _is_main():
        _write(plan, runner.results, report, out)
    return Outcome(report, _verdict(report))


def steps_from(plan: Plan, name: str) -> frozenset[str]:
    """The step of this name and all that depends on it. Raises IncompatiblePlanError for an unknown name."""
    names = [step.name for step in plan.steps]
    if name not in names:
        raise IncompatiblePlanError(
            perhaps("no step is named", name, names), where="--from", remedy="see `edgeforge plan`"
        )
    chosen = {name}
    for step in plan.steps:
        if chosen & set(step.inputs.values()):
            chosen.add(step.name)
    return frozenset(chosen)


class _Runner:
    def __init__(self, plan: Plan, store: Store, watcher: Watcher, rebuild: frozenset[str]) -> None:
        self.plan, self.store, self.watcher, self.rebuild = plan, store, watcher, rebuild
        self.results: dict[str, StepResult] = {}
        self.accelerator = functools.cache(_accelerator)

    # -- before any work

    def rehearse(self) -> None:
        """Pass a model of arbitrary weights through the chain, so that what cannot fit is found at minute zero."""
        chain = [step for step in self.plan.steps if step.name in {*self.plan.chain, *self.plan.datasets}]
        missing = [step for step in chain if step.name in self.rebuild or not self.store.has(step.key)]
        if not missing or not _is_main():
            return
        import torch

        task = self.plan.pipeline.task
        self._rehearse_teachers(task)
        data = task.open()
        batch = data.batch("train", [0, min(1, data.size("train") - 1)])
        batch = model_inputs(batch)
        model = self.plan.pipeline.model.build(task, data.interface)
        for step in chain:
            try:
                model = step.stage.rehearse(model, task)
                with torch.no_grad():
                    model.eval()(**batch)
            except EdgeForgeError as error:
                if error.where is None:
                    error.where = step.name
                raise
            except (RuntimeError, ValueError) as error:
                raise IncompatiblePlanError(
                    f"the model cannot take this task's inputs: {str(error).splitlines()[0]}",
                    where=step.name,
                    remedy="check the model's shape against the data's image size and channels",
                ) from error

    def _rehearse_teachers(self, task: Task) -> None:
        """Build the models beside the chain: one that answers for other labels is not to be found after its pupil's
        earlier stages."""
        for step in self.plan.steps:
            if not isinstance(step.stage, Initialize) or step.name in self.plan.chain or self.store.has(step.key):
                continue
            model = step.stage.model
            model.build(task, task.open(model.folder()).interface)

    # -- one step

    def perform(self, step: Step, number: int) -> None:
        """Do one step, or find it done. A target's failure is recorded; the chain's is raised."""
        failed = self._failed_input(step)
        if failed is not None:
            self.results[step.name] = StepResult(None, error=failed)
            return
        self.watcher.started(step, number, len(self.plan.steps))
        try:
            result = self._perform(step)
        except EnvironmentProblem:
            raise
        except EdgeForgeError as error:
            if step.row == "chain":
                error.where = error.where or step.name
                raise
            result = StepResult(None, error=error.what)
        except Exception as error:
            if step.row == "chain":
                raise
            # A converter's crash on one target must not take the others with it; the report names it.
            result = StepResult(None, error=f"{type(error).__name__}: {_first_line(error)}")
        self.results[step.name] = result
        self.watcher.finished(step, result)

    def _failed_input(self, step: Step) -> str | None:
        for source in step.inputs.values():
            if self.results[source].artifact is None:
                return f"{source} failed"
        verified = f"{step.row}.verify"
        if verified in self.results and not isinstance(step.stage, Verify) and not _passed(self.results[verified]):
            return "the file did not pass verification"
        return None

    def _perform(self, step: Step) -> StepResult:
        if not _distributed():
            return self._make(step)
        # Every process of `accelerate launch` runs this; one decides, makes and seals.
        accelerator = self.accelerator()
        from accelerate.utils import broadcast_object_list

        decision = [self._usable(step) is not None if accelerator.is_main_process else None]
        broadcast_object_list(decision)
        result = None
        if accelerator.is_main_process:
            result = self._make(step)
        elif step.stage.distributed and not decision[0]:
            inputs, folder = self._inputs(step), self.store.root / "drafts" / step.key
            step.stage.run(inputs, self._job(inputs, folder, _Notes(self.watcher)))
        accelerator.wait_for_everyone()
        if result is None:
            artifact = self.store.open(step.key)
            if artifact is None:
                raise EnvironmentProblem("the first process made no artifact", where=step.name, remedy="see its log")
            result = StepResult(artifact, bool(decision[0]), artifact.seconds)
        return result

    def _usable(self, step: Step) -> Artifact | None:
        if step.name in self.rebuild:
            return None
        damaged = self.store.has(step.key)
        artifact = self.store.open(step.key)
        if artifact is None and damaged:
            self.watcher.warn(f"{step.name}: its stored artifact was damaged (digest mismatch) and is made anew")
        return artifact

    def _make(self, step: Step) -> StepResult:
        artifact = self._usable(step)
        if artifact is None:
            waiting = functools.partial(self.watcher.warn, f"{step.name}: another run is making it; waiting")
            with self.store.lock(step.key, waiting=waiting):
                artifact = self._usable(step)
                if artifact is None:
                    return self._build(step)
        return StepResult(artifact, True, artifact.seconds, warnings=tuple(artifact.facts.get("warnings", ())))

    def _build(self, step: Step) -> StepResult:
        inputs = self._inputs(step)
        notes = _Notes(self.watcher)
        started = time.monotonic()
        try:
            draft = self.store.draft(
                step.key,
                step.stage.kind,
                parents={role: artifact.key for role, artifact in inputs.items()},
                recipe=step.stage.identity(),
            )
            facts = dict(step.stage.run(inputs, self._job(inputs, draft.path, notes)))
            if notes.warnings:
                facts["warnings"] = notes.warnings
            artifact = self.store.seal(draft, step.stage.makes_format(), facts, time.monotonic() - started)
        except Exception as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            raise EnvironmentProblem(
                f"the disk refused: {refusal}",
                where=f"{step.name} in {self.store.root}",
                remedy="make room or choose another --store; what is sealed stays, and the run goes on from there",
            ) from error
        return StepResult(artifact, False, artifact.seconds, warnings=tuple(notes.warnings))

    def _inputs(self, step: Step) -> Mapping[str, Artifact]:
        found = {role: self.results[source].artifact for role, source in step.inputs.items()}
        return {role: artifact for role, artifact in found.items() if artifact is not None}

    def _job(self, inputs: Mapping[str, Artifact], folder: Path, notes: _Notes) -> Job:
        pipeline = self.plan.pipeline
        artifact = inputs.get("model") or inputs.get("teacher")
        model = artifact.path if artifact else None
        return Job(pipeline.task, folder, pipeline.seed, self.accelerator, notes, model)


def _accelerator() -> Accelerator:
    from datetime import timedelta

    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    # Other processes wait while the first one exports and measures, which may take hours.
    return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])


def _distributed() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _passed(result: StepResult) -> bool:
    return result.artifact is not None and bool(result.artifact.facts["passed"])


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else ""


def _refusal(error: Exception) -> str | None:
    """What the operating system refused, if that is why a step failed."""
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return error.strerror
    # Libraries written in other languages report the same as text: Rust with its number, C++ in words.
    number = _OS_ERROR.search(str(error))
    if number and int(number[1]) in _REFUSALS:
        return os.strerror(int(number[1]))
    return next((text for text in map(os.strerror, (errno.ENOSPC, errno.EFBIG)) if text in str(error)), None)


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EnvironmentProblem(
            f"the output folder cannot be written: {error.strerror}", where=str(out), remedy="choose another with --out"
        ) from error


def _write(plan: Plan, results: Mapping[str, StepResult], report: Report, out: Path) -> None:
    try:
        for row in report.artifacts:
            source, _ = source_row(plan, results, row.name)
            artifact = results[file_step(plan, source).name].artifact
            _place(row.name, artifact, folder_of(row.name, row.status), out)
            verified = results[f"{source}.verify"].artifact if f"{source}.verify" in results else None
            _place_golden(row, verified, out)
        (out / "pipeline.yaml").write_text(dump(plan.pipeline), encoding="utf-8")
        write_all(report, out)
    except OSError as error:
        raise EnvironmentProblem(
            f"the results cannot be written: {error.strerror}",
            where=str(out),
            remedy="make room and run again: nothing is made twice",
        ) from error


def _place_golden(row: ArtifactRow, verified: Artifact | None, out: Path) -> None:
    """Copy what a file answered when it was verified, and remove what an earlier run left."""
    (out / golden_path(row.name)).unlink(missing_ok=True)
    if row.golden is not None and verified is not None:
        (out / row.golden.path).parent.mkdir(exist_ok=True)
        shutil.copyfile(verified.path / GOLDEN, out / row.golden.path)


def _place(row: str, artifact: Artifact | None, home: str | None, out: Path) -> None:
    """Copy a row's file to its folder by one rename, and remove what an earlier run left of this row."""
    for status in ("shipped", "quarantined"):
        earlier = folder_of(row, status)
        if earlier is not None:
            shutil.rmtree(out / earlier, ignore_errors=True)
    if home is None or artifact is None:
        return
    target = out / home
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in artifact.files:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, partial / name)
    partial.rename(target)


def _missed(budget: BudgetRow) -> str:
    where = f" on {budget.device}" if budget.device else ""
    value = "unknown" if budget.value is None else f"{budget.value:.4g}"
    said = f"{budget.target}: {budget.metric}{where} is {value}, the limit is {budget.limit:g}"
    return f"{said} ({budget.reason})" if budget.reason else said


def _verdict(report: Report) -> EdgeForgeError | None:
    broken = [row for row in report.artifacts if row.status == "quarantined" or (row.status == "absent" and row.reason)]
    if broken:
        return VerificationError(
            "; ".join(f"{row.name} is {row.status}: {row.reason}" for row in broken),
            remedy="see report.html; the other targets are sound",
        )
    missed = [budget for budget in report.budgets if not budget.passed]
    if missed:
        return BudgetError(
            "; ".join(map(_missed, missed)),
            remedy="every file is sound; loosen the budget or compress less",
        )
    return None
