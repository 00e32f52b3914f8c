"""Arm64 kernels without an Arm64 device: what they answer, and what they cost in instructions, under qemu-user."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import statistics
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import DeviceProblem
from edgeforge.core.measurement import Origin
from edgeforge.core.stage import Progress
from edgeforge.links import Link, Subject, Timings, Workload, _emulator, _remote
from edgeforge.links._answers import Answers

if TYPE_CHECKING:
    import numpy as np

ARITHMETIC = ("dot_product", "int8_matrix", "multiply_add", "vector_other")
MEMORY = ("load", "store", "vector_load", "vector_store")
"""Classes of `_emulator/count.c`."""


class Qemu(Link):
    """Runs the runner that phones get on an emulated Arm64 processor: its own kernels, its own rounding.

    It gives the answers of that processor (`--accuracy`), and counts the instructions of a call by class: a cost that
    is the same on every machine and every day. It gives no times: an emulator's say nothing about a phone's. Counts are
    of one thread, the mean over the inputs, in as many fresh processes as load times are taken from.
    """

    kind: Literal["qemu"] = "qemu"
    cpu: Literal["cortex-a76", "i8mm"] = Field(
        default="cortex-a76",
        description="The processor: a Cortex-A76, with dot products of bytes; or one with matrix products of bytes too "
        "(`i8mm`: what phones since about 2022 have).",
    )

    origin: ClassVar[Origin] = "emulated"

    def unavailable(self, runtime: str) -> str | None:
        return None if runtime == _remote.RUNTIME else f"under qemu, ONNX files run; {runtime} does not"

    def missing(self) -> str | None:
        found = _emulator.missing()
        return f"{found.what} ({found.remedy})" if found else None

    def measure(self, workload: Workload, progress: Progress) -> Timings:
        """See Link. The workload's `samples`, `warmup` and `min_sample_ms` are about times, and not used."""
        if workload.threads != 1 or workload.sustained:
            asked = "how long it keeps up" if workload.sustained else f"{workload.threads} threads"
            raise DeviceProblem(
                f"instructions of one thread are counted; {asked} cannot be asked of an emulated processor",
                where=_emulator.WHERE,
                remedy="leave `--sustained` out" if workload.sustained else "use one thread",
            )
        program = self._program(counting=True)
        order = [name for name in workload.subjects for _ in range(workload.starts.get(name, 1) or 1)]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in workload.subjects}
        answers = Answers()
        with _remote.prepared(_Here(), program, workload, progress) as device:
            for done, name in enumerate(order):
                answers, note = Answers(), f"counting instructions of {name}"
                say = partial(progress.update, done, len(order), note)
                say()
                found[name].append(_of_one_call(device.ask("count", name, answers, say)))
        progress.update(len(order), len(order))
        emulator = f"QEMU {_emulator.version(program.program)}"
        return Timings(
            starts={},
            latency_ms={},
            calls_per_sample={},
            waiting_share=None,
            conditions={
                "threads": workload.threads,
                "emulator": emulator,
                "processor": self.cpu,
                "runtime_on_device": answers.runtime,
                "calls": len(answers.instructions),
                "instructions": {name: counts[0] for name, counts in found.items()},
                "hardware": f"{self.cpu} emulated by {emulator}: its answers and its instructions, and no times",
            },
            counts={name: tuple(map(metrics, counts)) for name, counts in found.items()},
        )

    def outputs(self, subject: Subject, inputs: Path, progress: Progress) -> np.ndarray:
        return _remote.outputs(_Here(), self._program(counting=False), subject, inputs, progress)

    def _program(self, *, counting: bool) -> _emulator.EmulatedRunner:
        """Raises DeviceProblem where something is not installed. Answers need less of qemu than counts do."""
        if counting and (absent := _emulator.missing()):
            raise absent
        plugin = _emulator.plugin() if counting else None
        return _emulator.EmulatedRunner(_emulator.PROCESSORS[self.cpu], _emulator.emulator(), plugin)


def metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """What is reported of a call's instructions by class: all of them, and those that tell kernels apart."""
    return {
        "instructions": sum(counts.values()),
        "instructions_vector": sum(counts[name] for name in ARITHMETIC),
        "instructions_dot_product": counts["dot_product"],
        "instructions_int8_matrix": counts["int8_matrix"],
        "instructions_memory": sum(counts[name] for name in MEMORY),
    }


def _of_one_call(answers: Answers) -> dict[str, float]:
    """Class -> mean over the calls of one process. Raises DeviceProblem where not every call was counted."""
    calls = answers.instructions
    if answers.end is None or len(calls) != answers.end["calls"]:
        raise DeviceProblem("the instruction counter did not count every call", where=_emulator.WHERE)
    return {name: statistics.fmean(call[name] for call in calls) for name in calls[0]}


class _Here:
    """See _remote.Shell: a shell on this machine, whose programs end with it."""

    where = _emulator.WHERE
    temporary = "${TMPDIR:-/tmp}"

    def start(self, command: str) -> subprocess.Popen[str]:
        return _Group(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def push(self, files: Mapping[str, Path], folder: str) -> None:
        """As links: they are read only, and stay as long as the folder does."""
        for name, path in files.items():
            place = _plain(folder) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.absolute())

    def pull(self, path: str, target: Path) -> None:
        shutil.copyfile(_plain(path), target)

    def problem(self, code: int, noise: str, doing: str) -> DeviceProblem:
        return _emulator.problem(code, noise, doing)


def _plain(path: str) -> Path:
    """A path that was quoted for a shell."""
    (word,) = shlex.split(path)
    return Path(word)


class _Group(subprocess.Popen[str]):
    """A process that is killed together with all that it started."""

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
