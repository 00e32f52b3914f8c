"""Sealed artifacts -> Report. Everything here is read, counted or computed; nothing is measured or typed in."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

import edgeforge
from edgeforge import costs, provenance
from edgeforge.budgets import against_parents, judge, source_row
from edgeforge.comparison import RESAMPLES, Reference
from edgeforge.comparison import paired_interval as paired_interval
from edgeforge.core.artifact import Artifact, digest_files
from edgeforge.core.report import (
    ArtifactRow,
    BenchmarkConditions,
    Environment,
    LatencyComparison,
    MeasurementRow,
    MetricComparison,
    ParentComparison,
    Parity,
    Report,
    StageFacts,
    StageRow,
    Status,
    StepResult,
)
from edgeforge.core.report_teacher import Cost
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
    )


# -- the chain


def _stage_row(step: Step, results: Results) -> StageRow:
    result = results.get(step.name)
    artifact = result.artifact if result else None
    evaluation = _facts(results, f"{step.name}.evaluate")
    metrics, per_class = _metrics(evaluation)
    facts = {**(artifact.facts if artifact else {}), "metrics": metrics, "per_class_accuracy": per_class}
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
        per_class_accuracy=per_class,
        parity=Parity.model_validate(verified.get("parity") or {}),
        checks=verified.get("checks") or (),
        fidelity=verified.get("fidelity"),
        layers=verified.get("layers") or (),
        golden=_golden(row, verified) if status == "shipped" else None,
        files=dict(artifact.files) if artifact else {},
        warnings=tuple(text for name in _names(plan, source) for text in _warnings(results, name)),
        **_benchmarks(plan, results, source, devices),
    )
    if baseline is None:
        return found
    headline = next(iter(baseline.metrics), None)
    compared = _compared(_evaluation(plan, results, source), _evaluation(plan, results, BASELINE), headline)
    return found.model_copy(update={"deltas": deltas(found, baseline), "comparison": compared})


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


def _benchmarks(plan: Plan, results: Results, row: str, devices: Sequence[str]) -> dict[str, Any]:
    measurements: list[MeasurementRow] = []
    latency: list[LatencyComparison] = []
    parents: list[ParentComparison] = []
    conditions: list[BenchmarkConditions] = []
    for step in (*_steps(plan, row, "benchmark"), *_steps(plan, row, "estimate")):
        facts = _facts(results, step.name)
        measurements += [MeasurementRow.model_validate(item) for item in facts.get("measurements", ())]
        if facts.get("latency"):
            latency.append(LatencyComparison.model_validate(facts["latency"]))
        parents += against_parents(plan, row, step, facts)
        result = results.get(step.name)
        known = {name: facts[name] for name in ("threads", "min_sample_ms", "floor") if name in facts}
        why = facts.get("reason") or (result.error if result else "not reached")
        device = getattr(step.stage, "device", "")
        conditions.append(
            BenchmarkConditions.model_validate(
                {**known, **facts.get("conditions", {}), "device": device, "reason": why}
            )
        )
    for device in sorted(set(devices) - {item.device for item in conditions}):
        conditions.append(BenchmarkConditions(device=device, reason="this device cannot be reached from here yet"))
    return {
        "measurements": tuple(measurements),
        "latency": tuple(latency),
        "parents": tuple(parents),
        "conditions": tuple(conditions),
    }


# -- against the teacher


def _beside_teacher(plan: Plan, results: Results, rows: Sequence[ArtifactRow]) -> list[ArtifactRow]:
    """The rows with what each lost against the model that taught, and what its answers cost."""
    reference, found = Reference.of(plan, results), []
    for row in rows:
        source, _ = source_row(plan, results, row.name)
        against = None
        if reference is not None:
            probed = next((results.get(step.name) for step in _steps(plan, source, "probe")), None)
            against = reference.against(_evaluation(plan, results, source), probed.artifact if probed else None)
        cost: tuple[Cost, ...] = ()
        if row.name != BASELINE:
            cost = costs.of(plan, results, row, source=source, made=file_step(plan, source).name)
        found.append(row.model_copy(update={"against_teacher": against, "costs": cost}))
    return found


# -- against the baseline


def deltas(row: ArtifactRow, baseline: ArtifactRow) -> dict[str, float | None]:
    """Ratios are baseline over row (4: four times smaller, faster); metrics are row minus baseline."""
    found: dict[str, float | None] = {
        "size_ratio": baseline.bytes / row.bytes if row.bytes and baseline.bytes else None,
        "latency_ratio": row.latency[0].ratio if row.latency else None,
    }
    for name, value in row.metrics.items():
        before = baseline.metrics.get(name)
        found[name] = value - before if value is not None and before is not None else None
    return found


def _compared(row: Artifact | None, baseline: Artifact | None, headline: str | None) -> MetricComparison | None:
    """Predictions of two evaluated files side by side; None where one of them could not be evaluated.

    The interval is that of a difference of accuracies: it is left out where another metric is the headline.
    """
    if row is None or baseline is None:
        return None
    if "nll.npy" in row.files and "nll.npy" in baseline.files:
        return _compared_texts(row, baseline)
    if "logits.npy" not in row.files or "logits.npy" not in baseline.files:
        return None
    after = np.load(row.path / "logits.npy", allow_pickle=False).argmax(axis=-1)
    before = np.load(baseline.path / "logits.npy", allow_pickle=False).argmax(axis=-1)
    agreement = float((after == before).mean())
    if "labels.npy" not in row.files or headline != "accuracy":
        return MetricComparison(n=len(after), agreement=agreement)
    labels = np.load(row.path / "labels.npy", allow_pickle=False)
    gained = int(((after == labels) & (before != labels)).sum())
    lost = int(((after != labels) & (before == labels)).sum())
    return MetricComparison(
        n=len(after),
        agreement=agreement,
        difference=(gained - lost) / len(after),
        ci95=paired_interval(gained, lost, len(after)),
    )


def _compared_texts(row: Artifact, baseline: Artifact) -> MetricComparison | None:
    """Two evaluated language models, token by token; None where they read the texts as different tokens.

    Both agree where they find the same token likeliest; ids of another vocabulary are not those of the reference.

    The difference is that of perplexities; its interval is a bootstrap over windows (Efron, 1979).
    """
    pairs = {}
    for name in ("nll", "scored", "likeliest"):
        pairs[name] = [np.load(item.path / f"{name}.npy", allow_pickle=False) for item in (row, baseline)]
    scored, before = pairs["scored"]
    same_ids = all("top1.npy" in item.files for item in (row, baseline))
    if not same_ids or scored.shape != before.shape or not np.array_equal(scored, before):
        return None
    sums = np.stack([np.where(scored, values, 0.0).sum(axis=1, dtype=np.float64) for values in pairs["nll"]])
    counts = scored.sum(axis=1)
    drawn = np.random.RandomState(0).randint(len(counts), size=(RESAMPLES, len(counts)))
    perplexities = np.exp(sums[:, drawn].sum(axis=2) / counts[drawn].sum(axis=1))
    low, high = np.percentile(perplexities[0] - perplexities[1], [2.5, 97.5])
    after_all, before_all = np.exp(sums.sum(axis=1) / counts.sum())
    agreement = (pairs["likeliest"][0] == pairs["likeliest"][1])[scored.astype(bool)].mean()
    return MetricComparison(
        n=int(counts.sum()),
        agreement=float(agreement),
        difference=float(after_all - before_all),
        ci95=(float(low), float(high)),
    )


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
