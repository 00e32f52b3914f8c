"""The report: data only; renderers draw it. ``report.json`` is this model's JSON, schema ``edgeforge.report/1``.

Readers ignore fields they do not know. Numbers that do not exist are null, never NaN or Infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.report_device import Basis as Basis
from edgeforge.core.report_device import BenchmarkConditions as BenchmarkConditions
from edgeforge.core.report_device import DeviceRow as DeviceRow
from edgeforge.core.report_device import LatencyComparison as LatencyComparison
from edgeforge.core.report_device import MeasurementRow as MeasurementRow
from edgeforge.core.report_device import OnDevice as OnDevice
from edgeforge.core.report_device import ParentComparison as ParentComparison
from edgeforge.core.report_device import Sustained as Sustained
from edgeforge.core.report_device import Verdict as Verdict
from edgeforge.core.report_part import Part as _Part
from edgeforge.core.report_part import finite as finite
from edgeforge.core.report_teacher import Cost, Lineage, TeacherComparison

FALLING = frozenset(
    {"perplexity", "bits_per_byte", "mean_kld", "p99_kld", "tokens_per_answer", "tokens_per_answer_direct"}
)
"""Metrics that improve by falling. They are plain numbers; every other metric is a share, 1 at best."""

Status = Literal["shipped", "quarantined", "absent"]
PromptGroups = dict[str, dict[str, float | None]]
"""What became of a group of prompts: how many there are (`prompts`), and their metrics."""


@dataclass(frozen=True)
class StepResult:
    """What became of one step of a plan. `artifact` is None where the step failed or was not reached.

    `error` is one sentence for the user; `warnings` are what the stage said through ``progress.warn`` when it ran
    (for a cached step: when it ran first).
    """

    artifact: Artifact | None
    cached: bool = False
    seconds: float = 0.0
    error: str | None = None
    warnings: tuple[str, ...] = ()


class Environment(_Part):
    """The machine that ran the pipeline."""

    cpu: str
    cores: int
    ram_gb: float
    os: str
    python: str
    packages: dict[str, str]
    physical_cores: int | None = None
    cpu_features: tuple[str, ...] = ()


class StageFacts(_Part):
    """What is known of the model a stage made. Stages record more than these; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow")

    params: int | None = None
    macs: int | None = None
    metrics: dict[str, float | None] = {}
    per_class_accuracy: dict[str, float | None] = {}
    prompt_groups: PromptGroups = {}


class StageRow(_Part):
    """One step of the chain. `seconds` is the time its work took, in this run or in the one it is cached from."""

    name: str
    kind: str
    key: str
    cached: bool
    seconds: float
    facts: StageFacts
    error: str | None = None
    warnings: tuple[str, ...] = ()


class Parity(_Part):
    """How far the written file is from what it should be. `passed` is null where that cannot be evaluated here."""

    model_config = ConfigDict(extra="allow")

    reference: str | None = None
    max_abs_error: float | None = None
    tolerance: float | None = None
    cosine: float | None = None
    passed: bool | None = None


class Check(_Part):
    """One thing that verification looked at. `passed` is null where it could not be looked at here."""

    name: str
    passed: bool | None
    detail: str = ""


class Fidelity(_Part):
    """A quantized file against the float model, on validation samples; `metric_drop` is positive for a loss."""

    model_config = ConfigDict(extra="allow")

    agreement: float | None = None
    cosine: float | None = None
    metric: str | None = None
    metric_drop: float | None = None
    samples: int | None = None


class MetricComparison(_Part):
    """The written file against the baseline's file, sample by sample on the test split.

    `difference` is this file's accuracy (language models: perplexity) minus the baseline's, `ci95` its paired interval,
    both left out where another metric is the headline; `agreement` is the share of samples (tokens) on which both
    predict the same.
    """

    n: int
    agreement: float
    difference: float | None = None
    ci95: tuple[float, float] | None = None


class LayerNoise(_Part):
    """One quantized layer: signal over quantization noise (dB) of its weights, and of what it gives on real inputs."""

    name: str
    weight_db: float | None = None
    output_db: float | None = None


class Golden(_Part):
    """Real inputs with what the file answered to them, for `edgeforge verify`; `path` is relative to the run."""

    path: str
    sha256: str
    samples: int
    runtime: str


class ArtifactRow(_Part):
    """One file (or folder) that the pipeline was to ship, and the baseline.

    `path`, `bytes` and `sha256` are those of what a runtime loads; `companions` are the files beside it
    (labels, preprocessing) with their bytes, `files` the sha256 of every one of them by its path in the row's folder.
    `latency` is against the baseline; `parents` against what the file came from, measured in the same rounds.
    `coverage_percent` is the share of parameters that were quantized; `layers` are those, the worst first.
    `evaluated` says on what a language model's metrics are: windows, their length and stride in tokens, the tokens that
    were predicted, the bytes they stand for; `metric_reasons`, why a metric is null.
    Where a model taught, `against_teacher` is what the file lost; `costs` are those of its answers, device by device.
    """

    name: str
    status: Status
    reason: str | None = None
    format: str
    path: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    quantization: dict[str, Any] = {}
    lineage: dict[str, Any] = {}
    metrics: dict[str, float | None] = {}
    parity: Parity = Parity()
    measurements: tuple[MeasurementRow, ...] = ()
    deltas: dict[str, float | None] = {}
    per_class_accuracy: dict[str, float | None] = {}
    prompt_groups: PromptGroups = {}
    metrics_reason: str | None = None
    metrics_runtime: str | None = None
    metric_reasons: dict[str, str] = {}
    evaluated: dict[str, int] = {}
    comparison: MetricComparison | None = None
    latency: tuple[LatencyComparison, ...] = ()
    parents: tuple[ParentComparison, ...] = ()
    conditions: tuple[BenchmarkConditions, ...] = ()
    checks: tuple[Check, ...] = ()
    fidelity: Fidelity | None = None
    coverage_percent: float | None = None
    companions: dict[str, int] = {}
    warnings: tuple[str, ...] = ()
    files: dict[str, str] = {}
    layers: tuple[LayerNoise, ...] = ()
    golden: Golden | None = None
    against_teacher: TeacherComparison | None = None
    costs: tuple[Cost, ...] = ()

    def measurement(self, metric: str, device: str | None = None) -> MeasurementRow | None:
        """The first measurement of `metric` (on `device`, where given); an estimate only where there is no other."""
        found = [row for row in self.measurements if row.metric == metric and device in (None, row.device)]
        return min(found, key=lambda row: row.origin == "estimated", default=None)


class BudgetRow(_Part):
    """One limit on one target. `value` is null where it could not be measured."""

    target: str
    metric: str
    limit: float
    value: float | None
    passed: bool
    device: str | None = None
    reason: str | None = None

    @property
    def kept(self) -> bool | None:
        """None where nobody knows, and the pipeline lets that pass."""
        return None if self.passed and self.value is None else self.passed


class Report(_Part):
    """Everything one run found out. `teacher` names the model that all teaching goes back to, where one taught."""

    schema_: Literal["edgeforge.report/1"] = Field(default="edgeforge.report/1", alias="schema")
    pipeline: str
    run: str
    edgeforge: str
    created: str
    environment: Environment
    stages: tuple[StageRow, ...]
    artifacts: tuple[ArtifactRow, ...]
    budgets: tuple[BudgetRow, ...] = ()
    task: str | None = None
    seed: int | None = None
    baseline: str | None = None
    warnings: tuple[str, ...] = ()
    teacher: str | None = None
    lineage: Lineage | None = None
    devices: tuple[DeviceRow, ...] = ()

    def artifact(self, name: str) -> ArtifactRow | None:
        """The row of that name."""
        return next((row for row in self.artifacts if row.name == name), None)

    def targets(self) -> Iterator[ArtifactRow]:
        """Every row but the baseline."""
        return (row for row in self.artifacts if row.name != "baseline")

    def to_json(self) -> str:
        """The text of ``report.json``."""
        return self.model_dump_json(by_alias=True, indent=1)
