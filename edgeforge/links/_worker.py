"""The process that a benchmark is measured in: one JSON job on stdin, one JSON answer on stdout.

It imports the runtime and nothing heavier, so that its peak memory is the runtime's own. Jobs:

- ``start``: load one model, run it once -> load_ms, first_inference_ms, peak_rss_mb.
- ``race``: open every model, then time them in shuffled rounds -> latency_ms, calls_per_sample.

An EdgeForge error is answered as ``{"error": what}``; anything else ends the process with a traceback on stderr.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import EdgeForgeError
from edgeforge.core.kinds import discover
from edgeforge.runtimes import Runtime, Session

if TYPE_CHECKING:
    import numpy as np

    Feeds = list[dict[str, np.ndarray]]


def main() -> None:
    """Serve one job."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # native libraries print to stdout; the answer must stand there alone
    job = json.load(sys.stdin)
    if job["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cores"])
    try:
        answer = {"start": start, "race": race}[job["what"]](job)
    except EdgeForgeError as error:
        answer = {"error": str(error)}
    with os.fdopen(answer_to, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)


def start(job: Mapping[str, Any]) -> dict[str, float]:
    """Load the one subject and run it once, with every library already imported."""
    (subject,) = job["subjects"].values()
    feeds = _feeds(job)
    runtime = _runtime(subject["runtime"])
    clock = Clock()
    begin = clock.now_ns()
    session = runtime.open(Path(subject["folder"]), threads=job["threads"])
    loaded = clock.now_ns()
    session.run(feeds[0])
    answered = clock.now_ns()
    return {
        "load_ms": (loaded - begin) / 1e6,
        "first_inference_ms": (answered - loaded) / 1e6,
        "peak_rss_mb": peak_rss_bytes() / 1e6,
    }


def race(job: Mapping[str, Any]) -> dict[str, Any]:
    """Time all subjects in rounds of shuffled order, so that what disturbs the machine disturbs all of them alike."""
    parent = os.getppid()
    feeds = _feeds(job)
    sessions = {
        name: _runtime(subject["runtime"]).open(Path(subject["folder"]), threads=job["threads"])
        for name, subject in job["subjects"].items()
    }
    clock = Clock()
    laps = {name: _Lap(session, feeds, job["min_sample_ms"], clock) for name, session in sessions.items()}
    latency: dict[str, list[float]] = {name: [] for name in sessions}
    shuffle = random.Random(job["seed"]).sample
    gc.collect()
    gc.disable()
    for number in range(-job["warmup"], job["samples"]):
        if os.getppid() != parent:
            sys.exit("whoever asked for this benchmark is gone")
        for name in shuffle(sorted(laps), k=len(laps)):
            sample = laps[name].sample()
            if number >= 0:
                latency[name].append(sample)
    return {
        "latency_ms": latency,
        "calls_per_sample": {name: lap.calls for name, lap in laps.items()},
        "waiting_share": clock.waiting_share(),
    }


class _Lap:
    """Takes samples of one session: the mean time of a call (ms) over calls that last `min_sample_ms` together."""

    def __init__(self, session: Session, feeds: Feeds, min_sample_ms: float, clock: Clock) -> None:
        self.run = session.run
        self.feeds: Iterator[dict[str, np.ndarray]] = itertools.cycle(feeds)
        self.min_ns = min_sample_ms * 1e6
        self.clock = clock
        self.calls = 1
        # The first calls allocate and compile; doubling ends once they are a small part of the batch.
        while (elapsed := self._batch(self.calls)) < self.min_ns:
            self.calls *= 2
        # The quickest of a few: a batch that something slowed down says that fewer calls would do.
        quickest = min(elapsed, *(self._batch(self.calls) for _ in range(3)))
        self.calls = max(1, math.ceil(self.calls * self.min_ns / quickest))

    def _batch(self, calls: int) -> int:
        run, feeds = self.run, self.feeds
        begin = self.clock.now_ns()
        for _ in range(calls):
            run(next(feeds))
        return self.clock.now_ns() - begin

    def sample(self) -> float:
        self.run(next(self.feeds))  # the model before left its own data in the caches
        calls, elapsed = self.calls, self._batch(self.calls)
        while elapsed < self.min_ns:  # the machine became faster than it was when the calls were counted
            more = max(1, self.calls // 8)
            elapsed += self._batch(more)
            calls += more
        return elapsed / calls / 1e6


def _runtime(kind: str) -> Runtime:
    cls = discover("edgeforge.runtimes", Runtime)[kind]
    runtime: Runtime = cls.model_validate({"kind": kind})  # type: ignore[assignment]
    if reason := runtime.available():
        raise EdgeForgeError(reason)
    runtime.prepare()
    return runtime


def _feeds(job: Mapping[str, Any]) -> Feeds:
    import numpy as np

    with np.load(job["inputs"], allow_pickle=False) as file:
        samples = dict(file)
    count = min(map(len, samples.values()))
    return [{name: array[index : index + 1] for name, array in samples.items()} for index in range(count)]


class Clock:
    """Wall-clock time less the time this process was ready to run but another program held its core.

    Linux counts that to the nanosecond; without it, a machine that is shared by three makes every model three times
    slower. Elsewhere, and for the threads that a runtime starts beside the first, it is plain wall-clock time.
    """

    def __init__(self) -> None:
        path = Path("/proc/self/schedstat")
        self._counters = os.open(path, os.O_RDONLY) if path.exists() else None
        self._begin = time.perf_counter_ns(), self._waited()

    def _waited(self) -> int:
        return 0 if self._counters is None else int(os.pread(self._counters, 100, 0).split()[1])

    def now_ns(self) -> int:
        return time.perf_counter_ns() - self._waited()

    def waiting_share(self) -> float | None:
        """The part of the time since this clock was made that the process waited; None where nobody counts it."""
        if self._counters is None:
            return None
        begin, waited = self._begin
        return (self._waited() - waited) / (time.perf_counter_ns() - begin)


def peak_rss_bytes() -> int:
    """Most memory this process ever held (bytes)."""
    if sys.platform == "linux":
        # Not getrusage: its ru_maxrss starts from the parent's memory, which fork and exec hand down.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert match is not None
        return int(match.group(1)) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


if __name__ == "__main__":
    main()
