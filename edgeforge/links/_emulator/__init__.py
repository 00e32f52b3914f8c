"""An Arm64 processor on this machine: qemu's user-mode emulator, what ONNX Runtime may see of it, and its counter.

The program that runs is the one that is copied to phones (`_runner`). ``count.c`` is a plugin of qemu's that counts
its instructions; it is compiled here and kept beside the runner.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeforge.core.errors import DeviceProblem
from edgeforge.links import _runner
from edgeforge.links._programs import NativeRunner

WHERE = "qemu-aarch64"
PROGRAMS = ("qemu-aarch64", "qemu-aarch64-static")
COMPILERS = ("cc", "gcc")
SOURCE = Path(__file__).parent / "count.c"
ARM64 = _runner.MACHINES["aarch64"]
ROOT, PLUGIN = "root", "count.so"
ASKING_S = 30


@dataclass(frozen=True)
class Processor:
    """What qemu calls it, and its part number in the files that Linux has about processors."""

    cpu: str
    part: str


PROCESSORS = {
    "cortex-a76": Processor("cortex-a76", "0xd0b"),
    # Of the processors in QEMU 7.2 only `max` multiplies matrices of bytes. It has SVE and SME too, with which ONNX
    # Runtime's INT8 answers are wrong there. It calls itself by no part number; this is the Cortex-A710's.
    "i8mm": Processor("max,sve=off,sme=off", "0xd47"),
}

_CRASH = re.compile(r"uncaught target signal \d+ \(([^)]*)\)")
_UNKNOWN = re.compile(r"unable to find CPU model|Property '.*' not found|can't apply global")


class EmulatedRunner(NativeRunner):
    """The native runner for Arm64, begun by qemu; `plugin` counts instructions in jobs of that name."""

    def __init__(self, processor: Processor, program: str, plugin: Path | None = None) -> None:
        super().__init__(ARM64)
        self.processor, self.program, self.plugin = processor, program, plugin

    def files(self, inputs: Path, scratch: Path) -> Mapping[str, Path]:
        found = dict(super().files(inputs, scratch))
        for number, (name, text) in enumerate(_seen_by_linux(self.processor).items()):
            path = scratch / f"seen{number}"
            path.write_text(text, encoding="ascii")
            found[f"{ROOT}/{name}"] = path
        return found | ({PLUGIN: self.plugin} if self.plugin else {})

    def command(self, what: str, job: str) -> str:
        # Without a limit, a crash leaves the emulated program's memory in a file.
        words = ["ulimit -c 0 &&", shlex.quote(self.program), "-cpu", self.processor.cpu, "-L", ROOT]
        words += ["-U", "LD_PRELOAD", "-U", "LD_LIBRARY_PATH"]  # they are for programs of this machine
        words += ["-plugin", f"./{PLUGIN}"] if what == "count" else []
        return " ".join((*words, super().command(what, job)))


def _seen_by_linux(processor: Processor) -> dict[str, str]:
    """Files by their path: ONNX Runtime reads there what processor this is, and crashes where it finds this machine's.

    What a processor can do it asks the kernel's auxiliary vector, which qemu answers.
    """
    cpuinfo = f"processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {processor.part}\n"
    folder = "sys/devices/system/cpu"
    return {
        "proc/cpuinfo": cpuinfo,
        **{f"{folder}/{name}": "0\n" for name in ("possible", "present", "online", "kernel_max")},
    }


# -- what must be there


def emulator() -> str:
    """The emulator's path. Raises DeviceProblem where it is not installed."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise DeviceProblem("the emulator is not installed", where=WHERE, remedy="apt-get install qemu-user")
    return found


def missing() -> DeviceProblem | None:
    """What is not on this machine yet, all of it at once."""
    wanted = {
        "qemu-user": ("the emulator qemu-aarch64", PROGRAMS),
        "gcc libc6-dev": ("a C compiler", COMPILERS),
        ARM64.install.removeprefix("apt-get install "): ("a C compiler for Arm64", ARM64.compilers),
    }
    absent = {packages: what for packages, (what, names) in wanted.items() if not any(map(shutil.which, names))}
    said, remedies = list(absent.values()), [f"apt-get install {' '.join(absent)}"] if absent else []
    if not (_runner.folder() / _runner.library(ARM64.name)).is_file():
        said.append("ONNX Runtime for Arm64")
        remedies.append("edgeforge fetch android-runner")
    if said:
        return DeviceProblem(f"not on this machine: {', '.join(said)}", where=WHERE, remedy="; then ".join(remedies))
    program = emulator()
    return None if counts(program) else _without_plugins(program)


def counts(program: str) -> bool:
    """Whether this qemu takes plugins. Those that are linked statically do not."""
    return "-plugin" in _asked(program, "--help")


def version(program: str) -> str:
    """``7.2.22``."""
    found = re.search(r"version (\S+)", _asked(program, "--version"))
    return found.group(1) if found else "of unknown version"


def _asked(program: str, option: str) -> str:
    done = subprocess.run([program, option], capture_output=True, text=True, timeout=ASKING_S, check=False)
    return done.stdout + done.stderr


def _without_plugins(program: str) -> DeviceProblem:
    return DeviceProblem(
        f"{program} takes no plugins, so it gives answers but counts no instructions",
        where=WHERE,
        remedy="apt-get install qemu-user (Debian 12, Ubuntu 22.04 and 24.04 have one that does)",
    )


def plugin() -> Path:
    """The counter, compiled where it is not there yet. Raises DeviceProblem where it does not compile."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), COMPILERS[0])
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    path = _runner.folder() / f"count-{platform.machine()}-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        command = [compiler, "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-o", str(draft), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise DeviceProblem(f"the instruction counter does not compile: {lines[-1]}", where=str(SOURCE))
        draft.replace(path)
    return path


# -- what went wrong


def problem(code: int, noise: str, doing: str) -> DeviceProblem:
    """What an exit code and the text on stderr mean."""
    lines = [line.strip() for line in noise.splitlines() if line.strip()]
    line = lines[-1] if lines else "no message"
    if crash := _CRASH.search(noise):
        illegal = "Illegal instruction" in crash.group(1)
        return DeviceProblem(
            f"the emulated program crashed in {doing}: {crash.group(1)}",
            where=WHERE,
            remedy="this processor has not all instructions that the file's kernels use" if illegal else None,
        )
    if _UNKNOWN.search(noise):
        return DeviceProblem(
            f"this qemu does not know the processor: {line}", where=WHERE, remedy="install QEMU 7.2 or later"
        )
    if "ELF image" in noise or "Exec format error" in noise or "wrong ELF class" in noise:
        return DeviceProblem(
            f"what was to run is not for Arm64: {line}",
            where=str(_runner.folder()),
            remedy="remove that folder, then: edgeforge fetch android-runner",
        )
    if "plugin" in noise.lower():
        return DeviceProblem(
            f"this qemu does not load the instruction counter: {line}",
            where=WHERE,
            remedy="it is written for QEMU 7.2 to 8.2 (Debian 12, Ubuntu 24.04)",
        )
    if "No space left on device" in noise:
        return DeviceProblem(f"no space is left in the folder for temporary files while {doing}", where=WHERE)
    return DeviceProblem(f"{doing} ended with exit code {code}: {line}", where=WHERE)
