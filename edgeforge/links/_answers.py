"""What a runner says, line by line, gathered: the same lines from the worker in Python and the one in C."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from edgeforge.links import Start, Timings, Workload


class Answers:
    """The lines of one job so far. Lines that are not JSON are what libraries print, and are left out."""

    def __init__(self) -> None:
        self.start: Start | None = None
        self.rounds: list[dict[str, float]] = []
        self.prefill_ms: list[dict[str, float]] = []
        self.memory_gb_per_s: list[float] = []
        self.runs: list[dict[str, Any]] = []
        self.sustained: dict[str, list[tuple[float, float]]] = {}
        self.instructions: list[dict[str, int]] = []
        self.end: dict[str, Any] | None = None
        self.shape: tuple[int, ...] | None = None
        self.done = 0
        self.error: str | None = None
        self.processor_s = 0.0
        self.runtime: str | None = None

    @classmethod
    def of(cls, text: str) -> Answers:
        """All lines at once."""
        answers = cls()
        for line in text.splitlines():
            answers.take(line)
        return answers

    @property
    def finished(self) -> bool:
        """Whether the job came to its end."""
        return bool(self.start or self.end or self.shape)

    def take(self, line: str) -> None:
        """One line. Raises KeyError, TypeError or ValidationError for one that no runner says."""
        said = _object(line)
        self.processor_s = said.get("processor_s", self.processor_s)
        self.runtime = said.get("runtime", self.runtime)
        self.done = int(said.get("done", self.done))
        self.error = said.get("error", self.error)
        if "start" in said:
            self.start = Start.model_validate(said["start"])
        elif "round" in said:
            self.rounds.append({name: float(value) for name, value in said["round"].items()})
            if "prefill_ms" in said:
                self.prefill_ms.append({name: float(value) for name, value in said["prefill_ms"].items()})
            if "memory_gb_per_s" in said:
                self.memory_gb_per_s.append(float(said["memory_gb_per_s"]))
        elif "instructions" in said:
            self.instructions.append({name: int(count) for name, count in said["instructions"].items()})
        elif "run" in said:
            self.runs.append(said["run"])
        elif "sustained" in said:
            sample = said["sustained"]
            self.sustained.setdefault(sample["subject"], []).append((sample["at_s"], sample["latency_ms"]))
        elif "end" in said:
            self.end = said["end"]
        elif "outputs" in said:
            self.shape = tuple(said["outputs"]["shape"])


def timings(
    workload: Workload, starts: Mapping[str, Iterable[Start]], race: Answers, conditions: Mapping[str, Any]
) -> Timings:
    """The results of a workload, as far as its race went."""
    end = race.end or {}
    return Timings(
        starts={name: tuple(found) for name, found in starts.items()},
        latency_ms={name: tuple(one[name] for one in race.rounds) for name in workload.subjects},
        calls_per_sample=end.get("calls_per_sample", {}),
        waiting_share=end.get("waiting_share"),
        conditions={**conditions, **end.get("conditions", {})},
        sustained={name: tuple(samples) for name, samples in race.sustained.items()},
        prefill_ms={name: tuple(one[name] for one in race.prefill_ms) for name in workload.subjects if race.prefill_ms},
        memory_gb_per_s=tuple(race.memory_gb_per_s),
    )


def _object(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        said = json.loads(line)
    except ValueError:
        return {}  # cut off in the middle: the link was lost
    return said if isinstance(said, dict) else {}
