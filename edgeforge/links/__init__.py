"""How a device is reached: one file per link. A link runs model files on its device and brings back raw timings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, ValidationError

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import discover
from edgeforge.core.measurement import Origin
from edgeforge.core.spec import Spec, perhaps
from edgeforge.core.stage import Progress

if TYPE_CHECKING:
    import numpy as np


class Subject(Spec):
    """A model file to measure: the runtime's kind, and the folder that runtime opens."""

    runtime: str
    folder: Path


class Workload(Spec):
    """What to measure, side by side.

    `inputs` is an ``.npz`` of real samples, one array of shape (N, ...) for each input; each call takes one sample.
    `starts` says in how many fresh processes each subject is started; every subject takes part in the latency rounds.
    `sustained` says for how many seconds a subject then runs without a pause, which shows a device that throttles.

    With `new_tokens`, the subjects are language models: `inputs` holds one prompt, ``input_ids`` of shape (1, length),
    and in each of `samples` rounds each subject reads it, forgets it, and writes so many tokens one by one.
    """

    subjects: dict[str, Subject]
    inputs: Path
    threads: int
    samples: int
    starts: dict[str, int]
    warmup: int
    min_sample_ms: float
    seed: int = 0
    new_tokens: int = 0
    sustained: dict[str, float] = Field(default={})


class Start(Spec):
    """One fresh process that loaded a model and ran it once. MB are 10^6 bytes of the process's peak memory.

    A language model's first inference is its reading of the prompt; it has written before its memory is looked at.
    """

    load_ms: float
    first_inference_ms: float
    peak_rss_mb: float | None = Field(default=None, description="None where the system does not say.")


class Timings(Spec):
    """Raw results by subject. Samples ``latency_ms[subject][i]`` of all subjects come from the same round `i`.

    A device that was lost halfway leaves whole rounds, perhaps fewer than were asked for, and
    ``conditions["partial"]`` says what happened. ``conditions["busy"]`` is a sentence where other programs disturbed.
    Of language models, `latency_ms` is the time for one token that is written. An emulator has no times: it counts.
    """

    starts: dict[str, tuple[Start, ...]]
    latency_ms: dict[str, tuple[float, ...]]
    calls_per_sample: dict[str, int]
    waiting_share: float | None = Field(
        description="Part of the span in which other programs held the core, not counted in any time; null: unknown."
    )
    conditions: dict[str, Any] = Field(description="What the device was doing meanwhile, as plain JSON.")
    sustained: dict[str, tuple[tuple[float, float], ...]] = Field(
        default={}, description="(seconds since its begin, latency in ms) of each subject that ran without a pause."
    )
    prefill_ms: dict[str, tuple[float, ...]] = Field(
        default={}, description="Of language models: the time to read the prompt and choose the first token, by round."
    )
    memory_gb_per_s: tuple[float, ...] = Field(
        default=(), description="How fast memory could be read (10^9 bytes a second), by round."
    )
    counts: dict[str, tuple[dict[str, float], ...]] = Field(
        default={}, description="Where there are no times: what one call costs, as metric -> value, by fresh process."
    )


class Link(Spec):
    """Base of every link. `origin` says what its numbers are."""

    kind: str
    origin: ClassVar[Origin] = "measured"
    times_texts: ClassVar[bool] = False
    """Whether it can take a workload with `new_tokens`."""

    def unavailable(self, runtime: str) -> str | None:
        """None where this runtime can run on the device, else the reason it cannot, as a sentence."""
        raise NotImplementedError

    def missing(self) -> str | None:
        """What must be installed on this machine first, and how, as a sentence; None where nothing is known to be.

        Unlike what makes a runtime `unavailable`, it may be there the next time.
        """
        return None

    def measure(self, workload: Workload, progress: Progress) -> Timings:
        """Run the workload on the device.

        Raises EnvironmentProblem where a process on this machine fails, DeviceProblem where another device does.
        """
        raise NotImplementedError

    def outputs(self, subject: Subject, inputs: Path, progress: Progress) -> np.ndarray:
        """What the device itself answers: float32, shape (N, ...), for the N samples of `inputs` (see Workload).

        One sample a call, as an app asks: what is quantized at run time depends on what shares a batch.
        Raises EnvironmentProblem or DeviceProblem, as `measure` does.
        """
        raise NotImplementedError


def link_of(kind: str, connection: Mapping[str, Any] | None = None) -> Link:
    """The link of that kind, with what the device's profile says of the way to it.

    Raises ConfigurationError for a kind that is not there, or a connection that it does not understand.
    """
    known = discover("edgeforge.links", Link)
    if kind not in known:
        raise ConfigurationError(perhaps("unknown link", kind, list(known)), where="link", remedy="see docs/devices.md")
    cls = known[kind]
    try:
        return cls.model_validate({"kind": kind, **(connection or {})})  # type: ignore[return-value]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("connection", *first["loc"])))
        raise ConfigurationError(first["msg"], where=where, remedy=f"see docs/devices.md on `{kind}`") from error
