"""This machine. Everything is measured in processes of their own, which this module starts, watches and ends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import psutil
from pydantic import Field

import edgeforge
from edgeforge.core.errors import EnvironmentProblem
from edgeforge.core.stage import Progress
from edgeforge.links import Link, Start, Subject, Timings, Workload, _conditions
from edgeforge.links._answers import Answers, timings
from edgeforge.links._conditions import DISTURBING_SHARE
from edgeforge.runtimes import PROCESSOR, Processor, _cuda, runtime_on

TIMEOUT_S = 3600.0
BUSY_PERCENT = 5.0
DISTURBING_PERCENT = 50
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


class Local(Link):
    """Runs `edgeforge.links._local_worker` in fresh processes, pinned to the idlest cores where it can."""

    kind: Literal["local"] = "local"
    processor: Processor = Field(default="cpu", description=PROCESSOR)

    times_texts: ClassVar[bool] = True

    def unavailable(self, runtime: str) -> str | None:
        found = runtime_on(runtime, self.processor)
        return f"{runtime} does not compute on a GPU here" if found is None else found.available()

    def measure(self, workload: Workload, progress: Progress) -> Timings:
        cores = idle_cores(workload.threads)
        starts: dict[str, list[Start]] = {name: [] for name in workload.starts}
        order = [name for name, count in sorted(workload.starts.items()) for _ in range(count)]
        random.Random(workload.seed).shuffle(order)
        computing = {"processor": self.processor}
        with watching() as conditions:
            for done, name in enumerate(order):
                progress.update(done, len(order) + 1, f"starting {name}")
                if found := _ask({**_job("start", workload, cores, name), **computing}).start:
                    starts[name].append(found)
            progress.update(len(order), len(order) + 1, "timing")
            raced = _ask({**_job("race", workload, cores, *workload.subjects), **computing})
            progress.update(len(order) + 1, len(order) + 1)
        if self.processor == "cuda":
            raced.memory_gb_per_s.clear()  # the processor's memory, which a GPU does not read its weights from
        said = {"pinned_to_cores": cores, "threads": workload.threads, **conditions, **self._gpu()}
        return timings(workload, starts, raced, {**said, "busy": busy(said["busy"], raced)})

    def outputs(self, subject: Subject, inputs: Path, progress: Progress) -> np.ndarray:
        with tempfile.TemporaryDirectory(prefix="edgeforge-") as name:
            path = Path(name) / "outputs.bin"
            job = {
                "what": "outputs",
                "subjects": {"model": subject.model_dump(mode="json")},
                "inputs": str(inputs.absolute()),
                "outputs": str(path),
                "threads": 1,
                "cores": [],
                "processor": self.processor,
            }
            shape = _ask(job).shape
            return np.fromfile(path, np.float32).reshape(shape or ())

    def _gpu(self) -> dict[str, Any]:
        """Which GPU computed, where one did."""
        if self.processor == "cpu":
            return {}
        return {"gpu": next(iter(_cuda.names()), None), "hardware": _cuda.UNTESTED}


def _job(what: str, workload: Workload, cores: list[int], *names: str) -> dict[str, Any]:
    plain = workload.model_dump(mode="json")
    subjects = {name: plain["subjects"][name] for name in names}
    return {**plain, "what": what, "cores": cores, "subjects": subjects}


def _ask(job: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> Answers:
    """One job to one worker process. Raises EnvironmentProblem where it fails, hangs or refuses."""
    what = f"{job['what']} of {', '.join(job['subjects'])}"
    folder = Path(job["inputs"]).parent
    worker = subprocess.Popen(
        [sys.executable, "-m", "edgeforge.links._local_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=_environment(job["threads"]),
        cwd=folder,  # `-m` puts the working folder on the import path: not the user's, whose files may shadow modules
    )
    try:
        out, noise = worker.communicate(json.dumps(job), timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"the {what} did not end within {timeout_s:.0f} s",
            where="benchmark",
            remedy="see what else the machine does",
        ) from error
    finally:
        if worker.poll() is None:  # timed out or interrupted
            worker.kill()
            worker.communicate()
    if worker.returncode != 0:
        lines = noise.strip().splitlines()
        raise EnvironmentProblem(
            f"the {what} ended with exit code {worker.returncode}: {lines[-1] if lines else 'no message'}",
            where="benchmark",
            remedy="a negative exit code is a signal: -9 usually means that memory ran out",
        )
    answers = Answers.of(out)
    if answers.error is not None:
        raise EnvironmentProblem(f"the {what} failed: {answers.error}", where="benchmark")
    return answers


def _environment(threads: int) -> dict[str, str]:
    package_parent = str(Path(edgeforge.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (package_parent, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONPATH": path}


def idle_cores(count: int) -> list[int]:
    """The `count` least busy of the cores this process may use; empty where all are needed or none can be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    allowed = sorted(os.sched_getaffinity(0))
    if count >= len(allowed):
        return []
    busy = psutil.cpu_percent(interval=0.3, percpu=True)
    return sorted(sorted(allowed, key=lambda core: busy[core] if core < len(busy) else 100.0)[:count])


@contextmanager
def watching() -> Iterator[dict[str, Any]]:
    """Fill the yielded dict, at the end, with what else the machine did: load, clock, heat, and busy programs by name.

    A program that both began and ended inside the block is not seen.
    """
    conditions: dict[str, Any] = {}
    cold = _conditions.here()
    before, begin = _processor_seconds(), time.monotonic()
    conditions["load_average_before"] = _load_average()
    conditions["cpu_mhz_before"] = _clock_mhz()
    yield conditions
    seconds = time.monotonic() - begin
    busy: Counter[str] = Counter()
    for process, (name, used) in _processor_seconds().items():
        percent = 100 * (used - before.get(process, (name, 0.0))[1]) / seconds
        if percent > BUSY_PERCENT:
            busy[name] += round(percent)
    conditions["load_average_after"] = _load_average()
    conditions["cpu_mhz_after"] = _clock_mhz()
    conditions |= _conditions.heat(cold, _conditions.here())
    conditions["other_programs"] = [{"name": name, "cpu_percent": share} for name, share in busy.most_common()]
    conditions["seconds"] = round(seconds, 3)
    conditions["busy"] = None
    if disturbing := [
        f"{name} ({share} % of a core)" for name, share in busy.most_common() if share >= DISTURBING_PERCENT
    ]:
        conditions["busy"] = f"the machine was busy: {', '.join(disturbing)}"


def busy(programs: str | None, race: Answers) -> str | None:
    """What disturbed: `programs` that were seen, and those that held the core, which short-lived ones do too."""
    waited = race.end["waiting_share"] if race.end else None
    if waited is None or waited < DISTURBING_SHARE:
        return programs
    held = f"other programs held the measured program's core {100 * waited:.0f} % of the time"
    return f"{programs}; {held}" if programs else f"the machine was busy: {held}"


def _processor_seconds() -> dict[tuple[int, float], tuple[str, float]]:
    """(pid, start time) -> name and processor time so far (s), of every other process that may be read."""
    found = {}
    for process in psutil.process_iter(["pid", "name", "create_time", "cpu_times"]):
        times = process.info["cpu_times"]
        if times is not None and process.pid != os.getpid():
            key = (process.pid, process.info["create_time"])
            found[key] = (process.info["name"] or "unnamed", times.user + times.system)
    return found


def _load_average() -> list[float] | None:
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _clock_mhz() -> float | None:
    if not hasattr(psutil, "cpu_freq"):
        return None
    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None  # virtual machines and Apple silicon often hide it
    return round(clock.current) if clock is not None and clock.current else None
