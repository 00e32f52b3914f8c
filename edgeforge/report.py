"""Sealed artifacts -> Report. Everything here is read, counted or computed; nothing is measured or typed in."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import edgeforge
from edgeforge import costs, measurements, provenance, teaching
from edgeforge.budgets import judge, source_row
from edgeforge.comparison import Reference, unasked
from edgeforge.core.artifact import Artifact, digest_files
from edgeforge.core.report import (
    ArtifactRow,
    Environment,
    Parity,
    Report,
    StageFacts,
    StageRow,
    Status,
    StepResult,
)
from edgeforge.core.report_teacher import Cost, TeacherComparison
from edgeforge.deltas import compared, deltas
from edgeforge.environment import describe
from edgeforge.models import tokenizer
from edgeforge.plan import Plan, Step
from edgeforge.stages.quantize import Quantize
from edgeforge.teaching import behind

Results = Mapping[str, StepResult]

BASELINE = "baseline"
_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def collect(
    plan: Plan,
    results: Results,
    *,
    run: str | None = None,
    created: datetime.datetime | None = None,
) -> Report:
    """What a run found out.

    `results` maps step names to what became of them (a missing step was not reached). `run` names this run, by
    default after the pipeline and the time. Artifact paths are relative to the run's folder: `folder_of` says where
    a row's files go.
    """
    created = created or datetime.datetime.now(datetime.timezone.utc)
    baseline = _artifact_row(plan, results, BASELINE, None)
    rows = [baseline, *(_artifact_row(plan, results, row, baseline) for row in plan.targets)]
    rows = _beside_teacher(plan, results, rows)
    said = [f"{name}: {text}" for name, result in results.items() for text in result.warnings]
    return Report(
        pipeline=plan.pipeline.name,
        run=run or f"{plan.pipeline.name}-{created:%Y%m%dT%H%M%SZ}",
        edgeforge=edgeforge.__version__,
        created=created.isoformat(timespec="seconds"),
        environment=Environment.model_validate(describe()),
        stages=tuple(_stage_row(step, results) for step in plan.steps if step.name in {*plan.chain, *plan.datasets}),
        artifacts=tuple(rows),
        budgets=tuple(judge(plan.pipeline.budgets, plan.targets, {row.name: row for row in rows})),
        task=plan.pipeline.task.kind,
        seed=plan.pipeline.seed,
        baseline=plan.baseline,
        warnings=tuple(dict.fromkeys((*plan.warnings, *said))),
        teacher=plan.lesson.title if plan.lesson else None,
        lineage=provenance.lineage(plan, results),
        devices=measurements.devices(device for target in plan.targets.values() for device in target.devices),
    )


# -- the chain


def _stage_row(step: Step, results: Results) -> StageRow:
    result = results.get(step.name)
    artifact = result.artifact if result else None
    evaluation = _facts(results, f"{step.name}.evaluate")
    metrics, per_class = _metrics(evaluation)
    facts = {**(artifact.facts if artifact else {}), "metrics": metrics, "per_class_accuracy": per_class}
    facts["prompt_groups"] = _told(evaluation, "prompt_groups")
    return StageRow(
        name=step.name,
        kind=step.stage.kind,
        key=step.key,
        cached=bool(result and result.cached),
        seconds=artifact.seconds if artifact else result.seconds if result else 0.0,
        facts=StageFacts.model_validate(facts),
        error=result.error if result else "not reached",
        warnings=result.warnings if result else (),
    )


def _metrics(evaluation: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scalar metrics, and the accuracy per class."""
    found = evaluation.get("metrics") or {}
    scalars = {name: value for name, value in found.items() if not isinstance(value, Mapping)}
    return scalars, dict(found.get("per_class_accuracy") or {})


def _told(evaluation: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What stands beside the metrics under a name of its own."""
    return dict((evaluation.get("metrics") or {}).get(name) or {})


# -- files


def file_step(plan: Plan, row: str) -> Step:
    """The step whose artifact holds the file that a row ships."""
    (verify,) = _steps(plan, row, "verify")
    return plan.step(verify.inputs["file"])


def status_of(plan: Plan, results: Results, row: str) -> tuple[Status, str | None]:
    """Whether a row's file is shipped, and if not, why."""
    step = file_step(plan, row)
    made = results.get(step.name)
    if made is None or made.artifact is None:
        return "absent", _first_error(plan, results, step) or "the run ended before it was made"
    (verify,) = _steps(plan, row, "verify")
    checked = results.get(verify.name)
    if checked is None or checked.artifact is None:
        return "quarantined", (checked and checked.error) or "the run ended before it was verified"
    facts = checked.artifact.facts
    return ("shipped", None) if facts["passed"] else ("quarantined", facts.get("reason"))


def folder_of(row: str, status: Status) -> str | None:
    """Where a row's files are put, relative to the run's folder; None for a file that does not exist."""
    return {"shipped": f"artifacts/{row}", "quarantined": f"quarantine/{row}", "absent": None}[status]


def _first_error(plan: Plan, results: Results, step: Step) -> str | None:
    """The error of the earliest failed step that `step` depends on."""
    for source in step.inputs.values():
        if error := _first_error(plan, results, plan.step(source)):
            return error
    result = results.get(step.name)
    return f"{step.name}: {result.error}" if result and result.error else None


def _artifact_row(plan: Plan, results: Results, row: str, baseline: ArtifactRow | None) -> ArtifactRow:
    source, instead = source_row(plan, results, row)
    status, reason = status_of(plan, results, source)
    step = file_step(plan, source)
    artifact = results[step.name].artifact if status != "absent" else None
    folder = folder_of(row, status)
    evaluation = _facts_of(plan, results, source, "evaluate")
    metrics, per_class = _metrics(evaluation)
    verified = _facts_of(plan, results, source, "verify")
    quantization, coverage = _quantization(plan, results, source)
    devices = plan.targets[row].devices if row in plan.targets else ()
    found = ArtifactRow(
        name=row,
        status=status,
        reason=reason or instead,
        format=step.stage.makes_format(),
        **(_weighed(artifact, folder) if artifact and folder else {}),
        quantization=quantization,
        coverage_percent=coverage,
        lineage=_lineage(plan, results, source),
        metrics=metrics,
        metrics_reason=evaluation.get("reason"),
        metrics_runtime=evaluation.get("runtime"),
        metric_reasons=_told(evaluation, "reasons"),
        evaluated=_told(evaluation, "evaluated"),
        per_class_accuracy=per_class,
        prompt_groups=_told(evaluation, "prompt_groups"),
        parity=Parity.model_validate(verified.get("parity") or {}),
        checks=verified.get("checks") or (),
        fidelity=verified.get("fidelity"),
        layers=verified.get("layers") or (),
        golden=_golden(row, verified) if status == "shipped" else None,
        files=dict(artifact.files) if artifact else {},
        warnings=tuple(text for name in _names(plan, source) for text in _warnings(results, name)),
        **measurements.of_row(plan, results, source, devices),
    )
    if baseline is None:
        return found
    headline = next(iter(baseline.metrics), None)
    beside = compared(_evaluation(plan, results, source), _evaluation(plan, results, BASELINE), headline)
    return found.model_copy(update={"deltas": deltas(found, baseline), "comparison": beside})


def _golden(row: str, verified: Mapping[str, Any]) -> dict[str, Any] | None:
    found = verified.get("golden")
    return {"path": golden_path(row), **found} if found else None


def golden_path(row: str) -> str:
    """Where a row's recorded answers are in the run's folder."""
    return f"golden/{row}.npz"


def _weighed(artifact: Artifact, folder: str) -> dict[str, Any]:
    """Path, bytes and digest of what a runtime loads; JSON at the top and the tokenizer's files are companions.

    Where several files at the top are loaded together, the path is the folder.
    """
    size = {name: (artifact.path / name).stat().st_size for name in artifact.files}
    loaded = [name for name in sorted(size) if "/" in name or not (name.endswith(".json") or name in tokenizer.FILES)]
    counted = {
        "bytes": sum(size[name] for name in loaded),
        "companions": {name: size[name] for name in sorted(size.keys() - set(loaded))},
    }
    tops = {PurePosixPath(name).parts[0] for name in loaded}
    if len(tops) != 1:
        return {**counted, "path": folder, "sha256": digest_files({name: artifact.files[name] for name in loaded})}
    (top,) = tops
    inside = {name.removeprefix(f"{top}/"): artifact.files[name] for name in loaded}
    sha256 = artifact.files[top] if top in artifact.files else digest_files(inside)
    return {**counted, "path": f"{folder}/{top}", "sha256": sha256}


def _quantization(plan: Plan, results: Results, row: str) -> tuple[dict[str, Any], float | None]:
    """What the quantizer says of its work, and the coverage that the last step to touch the file saw."""
    quantization: dict[str, Any] = {}
    coverage = None
    for step in plan.steps:
        if step.row != row or step.stage.kind not in ("quantize", "export"):
            continue
        facts = _facts(results, step.name)
        said = dict(facts.get("quantization") or {})
        coverage = facts.get("coverage_percent", said.pop("coverage_percent", coverage))
        if isinstance(step.stage, Quantize):
            said.pop("bytes", None)
            quantization = {"kind": step.stage.quantizer.kind, **said}
        elif not quantization and (types := facts.get("types")):
            # Of a file that says so: a GGUF file in floats is float16 unless the exporter was told otherwise.
            quantization = {"scheme": _FLOATS.get(max(types, key=types.get), "mixed")}
    return quantization, coverage


def _lineage(plan: Plan, results: Results, row: str) -> dict[str, Any]:
    """Every step behind a file, in the order they ran: the keys that name their artifacts in the store, and digests."""
    wanted = behind(plan, file_step(plan, row).name)
    return {
        "steps": [
            {
                "step": step.name,
                "kind": step.stage.kind,
                "key": step.key,
                "digest": made.artifact.digest if (made := results.get(step.name)) and made.artifact else None,
                "training_steps": provenance.training_steps(_facts(results, step.name)),
            }
            for step in plan.steps
            if step.name in wanted
        ]
    }


# -- against the teacher


def _beside_teacher(plan: Plan, results: Results, rows: Sequence[ArtifactRow]) -> list[ArtifactRow]:
    """The rows with what each lost against the model that taught, and what its answers cost."""
    reference, found = Reference.of(plan, results), []
    for row in rows:
        source, _ = source_row(plan, results, row.name)
        against = _unasked(plan, source)
        if reference is not None:
            probed = next((results.get(step.name) for step in _steps(plan, source, "probe")), None)
            against = reference.against(_evaluation(plan, results, source), probed.artifact if probed else None)
        cost: tuple[Cost, ...] = ()
        if row.name != BASELINE:
            cost = costs.of(plan, results, row, source=source, made=file_step(plan, source).name)
        found.append(row.model_copy(update={"against_teacher": against, "costs": cost}))
    return found


def _unasked(plan: Plan, row: str) -> TeacherComparison | None:
    """Of a file whose teacher cannot be asked about the test split, that this is so; else None."""
    made_by = behind(plan, file_step(plan, row).name)
    for names, wrote in ((teaching.writers(plan), True), (teaching.files(plan), False)):
        if found := sorted(made_by.intersection(names)):
            return unasked(found, wrote=wrote)
    return None


# -- looking things up


def _steps(plan: Plan, row: str, kind: str) -> list[Step]:
    return [step for step in plan.steps if step.row == row and step.stage.kind == kind]


def _names(plan: Plan, row: str) -> list[str]:
    return [step.name for step in plan.steps if step.row == row]


def _warnings(results: Results, name: str) -> tuple[str, ...]:
    return results[name].warnings if name in results else ()


def _facts(results: Results, name: str) -> Mapping[str, Any]:
    result = results.get(name)
    return result.artifact.facts if result and result.artifact else {}


def _facts_of(plan: Plan, results: Results, row: str, kind: str) -> Mapping[str, Any]:
    return next((_facts(results, step.name) for step in _steps(plan, row, kind)), {})


def _evaluation(plan: Plan, results: Results, row: str) -> Artifact | None:
    found = (results.get(step.name) for step in _steps(plan, row, "evaluate"))
    return next((result.artifact for result in found if result), None)
