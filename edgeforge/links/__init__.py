"""How a device is reached: one file per link. A link runs model files on its device and brings back raw timings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from edgeforge.core.kinds import discover
from edgeforge.core.measurement import Origin
from edgeforge.core.spec import Spec
from edgeforge.core.stage import Progress


class Subject(Spec):
    """A model file to measure: the runtime's kind, and the folder that runtime opens."""

    runtime: str
    folder: Path


class Workload(Spec):
    """What to measure, side by side.

    `inputs` is an ``.npz`` of real samples, one array of shape (N, ...) for each input; each call takes one sample.
    `starts` says in how many fresh processes each subject is started; every subject takes part in the latency rounds.
    """

    subjects: dict[str, Subject]
    inputs: Path
    threads: int
    samples: int
    starts: dict[str, int]
    warmup: int
    min_sample_ms: float
    seed: int = 0


class Start(Spec):
    """One fresh process that loaded a model and ran it once. MB are 10^6 bytes of the process's peak memory."""

    load_ms: float
    first_inference_ms: float
    peak_rss_mb: float


class Timings(Spec):
    """Raw results by subject. Samples ``latency_ms[subject][i]`` of all subjects come from the same round `i`."""

    starts: dict[str, tuple[Start, ...]]
    latency_ms: dict[str, tuple[float, ...]]
    calls_per_sample: dict[str, int]
    waiting_share: float | None = Field(
        description="Part of the span in which other programs held the core, not counted in any time; null: unknown."
    )
    conditions: dict[str, Any] = Field(description="What the device was doing meanwhile, as plain JSON.")


class Link(Spec):
    """Base of every link. `origin` says what its numbers are."""

    kind: str
    origin: ClassVar[Origin] = "measured"

    def unavailable(self, runtime: str) -> str | None:
        """None where this runtime can run on the device, else the reason it cannot, as a sentence."""
        raise NotImplementedError

    def measure(self, workload: Workload, progress: Progress) -> Timings:
        """Run the workload on the device. Raises EnvironmentProblem where the device or a process on it fails."""
        raise NotImplementedError


def link_of(kind: str) -> Link:
    """The link of that kind. Raises KeyError for one that is not installed."""
    cls = discover("edgeforge.links", Link)[kind]
    return cls.model_validate({"kind": kind})  # type: ignore[return-value]
