"""The process that a benchmark is measured in: one JSON job on stdin, lines of JSON on stdout.

This file stands alone: it is copied to devices that have Python and ONNX Runtime and no EdgeForge, and run there as
a program. `_runner/efrun.c` does the same where there is no Python. Here it serves `_local_worker`, which knows every
runtime. It imports the runtime and nothing heavier, so that its peak memory is the runtime's own. Jobs:

- ``start``: load one model, run it once -> ``{"start": {load_ms, first_inference_ms, peak_rss_mb}, ...}``.
- ``race``: open every model, time them in shuffled rounds -> a ``{"round": {subject: ms}}`` after each, then
  ``{"sustained": {subject, at_s, latency_ms}}`` for those that run on without a pause, then ``{"end": {...}}``.
- ``outputs``: the answers to all samples, raw float32, in the file that the job names -> ``{"outputs": {shape}}``.

What a model or its runtime refuses is answered as ``{"error": what}``; anything else ends the process with a
traceback on stderr.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    Feeds = list[dict[str, np.ndarray]]

Processor = Literal["cpu", "cuda"]  # as in `edgeforge.runtimes`, which a device does not have

SUSTAINED_SAMPLES = 200
"""Into how many samples a run without a pause is cut."""
BROKEN_PIPE = 141
"""The exit code of a process whose reader is gone, as a shell says it."""


class Session(Protocol):
    """An opened model file, as in `edgeforge.runtimes`."""

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray: ...


class Runtimes(Protocol):
    """How subjects are opened: what differs between this machine and a device without EdgeForge."""

    refusals: tuple[type[Exception], ...]
    """What is raised where a file cannot be opened or run."""
    version: str | None
    """The library that was prepared, where nobody else knows it."""

    def prepare(self, kind: str, processor: Processor) -> Callable[[Path, int], Session]:
        """Import a runtime's library; what opens a folder with so many threads, to run on that processor."""


def main(runtimes: Runtimes, others: Mapping[str, Any] | None = None) -> None:
    """Serve one job: one of those above, or of `others`, by their names."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # native libraries print to stdout; the answer must stand there alone

    def say(answer: Mapping[str, Any]) -> None:
        stream.write(json.dumps(answer) + "\n")
        stream.flush()

    job = json.load(sys.stdin)
    if job["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, job["cores"])
    try:
        kinds = dict.fromkeys(subject["runtime"] for subject in job["subjects"].values())
        opened = {kind: runtimes.prepare(kind, job.get("processor", "cpu")) for kind in kinds}
        if runtimes.version:
            say({"runtime": runtimes.version})
        {"start": start, "race": race, "outputs": outputs, **(others or {})}[job["what"]](job, opened, say)
    except BrokenPipeError:
        os._exit(BROKEN_PIPE)  # whoever asked is gone; the ordinary way out would write to the pipe again
    except MemoryError:
        say({"error": "out of memory"})
    except runtimes.refusals as error:
        say({"error": str(error)})


def start(job: Mapping[str, Any], opened: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> None:
    """Load the one subject and run it once, with every library already imported."""
    (subject,) = job["subjects"].values()
    feeds = _feeds(job)
    clock = Clock()
    begin = clock.now_ns()
    session = opened[subject["runtime"]](Path(subject["folder"]), job["threads"])
    loaded = clock.now_ns()
    session.run(feeds[0])
    answered = clock.now_ns()
    found = {
        "load_ms": (loaded - begin) / 1e6,
        "first_inference_ms": (answered - loaded) / 1e6,
        "peak_rss_mb": peak_rss_bytes() / 1e6,
    }
    say({"start": found, "processor_s": time.process_time()})


def race(job: Mapping[str, Any], opened: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> None:
    """Time all subjects in rounds of shuffled order, so that what disturbs the machine disturbs all of them alike."""
    parent = os.getppid()
    feeds = _feeds(job)
    sessions = {
        name: opened[subject["runtime"]](Path(subject["folder"]), job["threads"])
        for name, subject in job["subjects"].items()
    }
    clock = Clock()
    laps = {name: _Lap(session, feeds, job["min_sample_ms"], clock) for name, session in sessions.items()}
    shuffle = random.Random(job["seed"]).sample
    gc.collect()
    gc.disable()
    for number in range(-job["warmup"], job["samples"]):
        if os.getppid() != parent:
            sys.exit("whoever asked for this benchmark is gone")
        latency = {name: laps[name].sample() for name in shuffle(sorted(laps), k=len(laps))}
        if number >= 0:
            say({"round": latency})
    for name, seconds in job.get("sustained", {}).items():
        for at_s, latency_ms in laps[name].sustained(seconds):
            say({"sustained": {"subject": name, "at_s": at_s, "latency_ms": latency_ms}})
    end = {
        "calls_per_sample": {name: lap.calls for name, lap in laps.items()},
        "waiting_share": clock.waiting_share(),
    }
    say({"end": end, "processor_s": time.process_time()})


def outputs(job: Mapping[str, Any], opened: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> None:
    """The answers of the one subject to every sample, one sample a call."""
    (subject,) = job["subjects"].values()
    session = opened[subject["runtime"]](Path(subject["folder"]), job["threads"])
    feeds = _feeds(job)
    shape: tuple[int, ...] = ()
    with Path(job["outputs"]).open("wb") as file:
        for done, feed in enumerate(feeds, 1):
            answer = session.run(feed)
            shape = answer.shape[1:]
            file.write(answer.astype("float32").tobytes())
            if done % 32 == 0:
                say({"done": done})
    say({"outputs": {"shape": [len(feeds), *shape]}})


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
        return self._mean_ms(self.min_ns)

    def sustained(self, seconds: float) -> Iterator[tuple[float, float]]:
        """(seconds since its begin, latency in ms), one call after the other without a pause."""
        least_ns = max(self.min_ns, seconds * 1e9 / SUSTAINED_SAMPLES)
        begin, at_s = time.perf_counter(), 0.0
        while at_s < seconds:
            latency_ms = self._mean_ms(least_ns)
            yield at_s, latency_ms
            at_s = time.perf_counter() - begin

    def _mean_ms(self, least_ns: float) -> float:
        calls, elapsed = self.calls, self._batch(self.calls)
        while elapsed < least_ns:  # also where the machine became faster than it was when the calls were counted
            more = max(1, self.calls // 8)
            elapsed += self._batch(more)
            calls += more
        return elapsed / calls / 1e6


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


class Refusal(Exception):
    """A file that cannot be opened here, in a sentence."""


class OnnxFiles:
    """ONNX Runtime's CPU or CUDA provider, as `edgeforge.runtimes.onnxruntime` sets it up."""

    refusals: tuple[type[Exception], ...] = (Refusal,)
    version: str | None = None

    def __init__(self) -> None:
        self.providers = ["CPUExecutionProvider"]

    def prepare(self, kind: str, processor: Processor) -> Callable[[Path, int], Session]:
        if kind != "onnxruntime":
            sys.exit(f"this worker opens ONNX files only, not those of {kind}")
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # its thread and files have no place on a device
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        self.version = f"ONNX Runtime {onnxruntime.__version__}"
        # Every exception the library defines; they have no base class of their own.
        found = (item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))
        self.refusals = (Refusal, *found)
        if processor == "cuda":
            self.providers = ["CUDAExecutionProvider", *self.providers]
            if self.providers[0] not in onnxruntime.get_available_providers():
                raise Refusal(f"{self.version} has no CUDA there: install onnxruntime-gpu in its place")
            onnxruntime.preload_dlls()  # CUDA and cuDNN, where pip brought them
        return self.open

    def open(self, folder: Path, threads: int) -> Session:
        try:
            return OnnxFile(folder, threads, self.providers)
        except Refusal:
            raise
        except self.refusals as error:
            raise Refusal(f"{self.version} cannot open it: {str(error).strip().splitlines()[0]}") from error


class OnnxFile:
    """One opened file with one output. Raises Refusal where it would not run on the first of `providers`."""

    def __init__(self, folder: Path, threads: int, providers: list[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; the log would say it a second time
        options.inter_op_num_threads = 1
        options.intra_op_num_threads = threads
        path = str(folder / "model.onnx")
        # By default a session that fails on a GPU goes on on the CPU.
        self._session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
        if self._session.get_providers()[:1] != providers[:1]:
            raise Refusal(f"ONNX Runtime would run it on the CPU: {providers[0]} does not start there")
        self._first_output = [self._session.get_outputs()[0].name]

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._session.run(self._first_output, inputs)[0]  # type: ignore[no-any-return]


if __name__ == "__main__":
    main(OnnxFiles())
