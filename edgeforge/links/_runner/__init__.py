"""The native runner, for devices without Python: ``efrun.c`` and the libraries it needs, built on this machine.

A runner is ONNX Runtime as Microsoft builds it for Linux, the C library it wants with that library's own loader (an
Android phone has another one), and a small program. Only the source of the last is EdgeForge's; ONNX Runtime is
fetched (``edgeforge fetch android-runner``) and the C library is that of the cross compiler.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from edgeforge.core.errors import DeviceProblem

SOURCE = Path(__file__).parent / "efrun.c"
ONNXRUNTIME = "libonnxruntime.so.1"
LIBRARIES = (
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
)


@dataclass(frozen=True)
class Machine:
    """One instruction set: its names on Linux and on Android, and what builds for it."""

    name: str
    abi: str
    loader: str
    install: str

    @property
    def compilers(self) -> tuple[str, ...]:
        cross = f"{self.name.replace('_', '-')}-linux-gnu-gcc"
        here = platform.system() == "Linux" and platform.machine() == self.name
        return (f"{self.name}-linux-gnu-gcc", cross, *(("gcc",) if here else ()))


MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "aarch64",
            "arm64-v8a",
            "ld-linux-aarch64.so.1",
            "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross",
        ),
        Machine("x86_64", "x86_64", "ld-linux-x86-64.so.2", "apt-get install gcc libc6-dev libstdc++6"),
    )
}


def folder() -> Path:
    """Where the fetched and built parts are kept, in the user's cache folder."""
    return user_cache_path("edgeforge", appauthor=False) / "runners"


def library(machine: str) -> str:
    """The file of an instruction set's ONNX Runtime there."""
    return f"onnxruntime-{machine}.so"


def built(machine: Machine) -> dict[str, Path]:
    """Every file of the runner: its path on the device -> its path here. Built where it is not there yet.

    Raises DeviceProblem where ONNX Runtime or the compiler is missing.
    """
    onnxruntime, compiler = _parts(machine)
    files = {f"lib/{name}": _library(compiler, name, machine) for name in (*LIBRARIES, machine.loader)}
    return {**files, f"lib/{ONNXRUNTIME}": onnxruntime, "efrun": _program(compiler, machine)}


def missing(machines: Iterable[Machine]) -> DeviceProblem | None:
    """What must be fetched or installed first, where no runner can be built for any of them."""
    first = None
    for machine in machines:
        try:
            _parts(machine)
        except DeviceProblem as problem:
            first = first or problem
        else:
            return None
    return first


def _parts(machine: Machine) -> tuple[Path, str]:
    """ONNX Runtime, and a compiler. Raises DeviceProblem where one is missing."""
    onnxruntime = folder() / library(machine.name)
    if not onnxruntime.is_file():
        raise DeviceProblem(
            f"the runner for {machine.abi} is not on this machine yet",
            where=str(onnxruntime),
            remedy="edgeforge fetch android-runner",
        )
    compiler = next(filter(None, map(shutil.which, machine.compilers)), None)
    if compiler is None:
        raise DeviceProblem(
            f"no C compiler for {machine.name} is installed ({machine.compilers[0]})",
            where="the runner of the links adb and ssh",
            remedy=machine.install,
        )
    return onnxruntime, compiler


def command(machine: Machine) -> str:
    """What starts the program, in the folder where its files are: by its own loader, with its own C library."""
    return f"./lib/{machine.loader} --library-path lib ./efrun"


def _program(compiler: str, machine: Machine) -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes() + compiler.encode()).hexdigest()[:12]
    path = folder() / f"efrun-{machine.name}-{digest}"
    if not path.exists():
        draft = path.with_suffix(".draft")
        _run([compiler, "-O2", "-o", str(draft), str(SOURCE), "-ldl", "-lm"], machine)
        draft.replace(path)
    return path


def _library(compiler: str, name: str, machine: Machine) -> Path:
    """Where the compiler has a library of the device's architecture; it repeats the name of one it has not."""
    path = Path(_run([compiler, f"-print-file-name={name}"], machine).strip())
    if not path.is_absolute():
        raise DeviceProblem(f"{compiler} has no {name} beside it", remedy=machine.install)
    return path.resolve()


def _run(command: list[str], machine: Machine) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise DeviceProblem(f"{command[0]} failed: {lines[-1]}", where=str(SOURCE), remedy=machine.install)
    return done.stdout
