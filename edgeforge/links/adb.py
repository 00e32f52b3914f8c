"""An Android phone on a cable or in the network, by Android's own `adb` client."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from edgeforge.core.errors import DeviceProblem
from edgeforge.core.stage import Progress
from edgeforge.links import Link, Subject, Timings, Workload, _remote, _runner
from edgeforge.links._programs import NativeRunner

if TYPE_CHECKING:
    import numpy as np

TEMPORARY = "/data/local/tmp"
LIST_TIMEOUT_S = 30
COPY_TIMEOUT_S = 900

# What `adb devices` says of a device that cannot be used, and what to do.
_STATES = {
    "unauthorized": ("it has not allowed this computer", "unlock it and allow USB debugging, then try again"),
    "authorizing": ("it has not allowed this computer yet", "unlock it and allow USB debugging, then try again"),
    "offline": ("it is offline", "unplug it and plug it in again; adb kill-server helps where that does not"),
    "no permissions": (
        "this user may not use it",
        "install Android's udev rules (apt-get install android-sdk-platform-tools-common)",
    ),
    "recovery": ("it is in recovery mode", "start Android"),
    "sideload": ("it is in sideload mode", "start Android"),
    "bootloader": ("it is in its boot loader", "start Android"),
}
_LOST = re.compile(r"device '.*' not found|no devices|device offline|error: closed|protocol fault|connection reset")


class Adb(Link):
    """Copies a runner of its own to an Android phone (Arm64; x86-64 in an emulator), runs it, brings the samples back.

    Nothing is installed on the phone: everything is in a folder under /data/local/tmp, which is removed. The runner
    uses ONNX Runtime's CPU provider with a C library of its own, so NNAPI and NPUs are not measured.
    """

    kind: Literal["adb"] = "adb"
    serial: str | None = Field(
        default=None, description="Which of several devices, as `adb devices` names it; absent: ANDROID_SERIAL, if set."
    )
    model: str | None = Field(
        default=None, description="The model it must be, as it names itself: Pixel 8. It chooses among several."
    )

    def unavailable(self, runtime: str) -> str | None:
        return None if runtime == _remote.RUNTIME else f"on Android, ONNX files are measured; {runtime} is not"

    def missing(self) -> str | None:
        """See Link. Whether a phone is connected shows when it is asked."""
        try:
            _program()
        except DeviceProblem as problem:
            found: DeviceProblem | None = problem
        else:
            found = _runner.missing(_runner.MACHINES.values())
        return f"{found.what} ({found.remedy})" if found else None

    def measure(self, workload: Workload, progress: Progress) -> Timings:
        shell = self._shell()
        return _remote.measure(shell, NativeRunner(_machine(shell)), workload, progress)

    def outputs(self, subject: Subject, inputs: Path, progress: Progress) -> np.ndarray:
        shell = self._shell()
        return _remote.outputs(shell, NativeRunner(_machine(shell)), subject, inputs, progress)

    def _shell(self) -> _Adb:
        program = _program()
        return _Adb(program, _chosen(_connected(program), self.serial or os.environ.get("ANDROID_SERIAL"), self.model))


def _program() -> str:
    """The client. Raises DeviceProblem where it is not installed."""
    program = shutil.which("adb")
    if program is None:
        raise DeviceProblem(
            "the command `adb` is not installed",
            where="adb",
            remedy="apt-get install adb, or Android's platform-tools",
        )
    return program


@dataclass(frozen=True)
class _Connected:
    """A line of `adb devices -l`."""

    serial: str
    state: str
    model: str

    def __str__(self) -> str:
        return f"{self.serial} ({self.model or self.state})"


def _connected(program: str) -> list[_Connected]:
    try:
        done = subprocess.run(
            [program, "devices", "-l"], capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceProblem("adb does not answer", where="adb devices", remedy="adb kill-server") from error
    if done.returncode != 0:
        raise DeviceProblem(f"adb does not work: {_said(done.stderr)}", where="adb devices", remedy="adb kill-server")
    return list(map(_parsed, filter(_is_device, done.stdout.splitlines())))


def _is_device(line: str) -> bool:
    return bool(line.strip()) and not line.startswith(("List of devices", "*"))


def _parsed(line: str) -> _Connected:
    serial, _, rest = line.partition(" ")
    rest = rest.strip()
    state = "no permissions" if rest.startswith("no permissions") else rest.partition(" ")[0]
    model = next((word.removeprefix("model:") for word in rest.split() if word.startswith("model:")), "")
    return _Connected(serial.strip(), state, model.replace("_", " "))


def _chosen(found: list[_Connected], serial: str | None, model: str | None) -> str:
    """The serial of the one device that is meant. Raises DeviceProblem."""
    if not found:
        raise DeviceProblem(
            "no Android device is connected",
            where="adb",
            remedy="switch on USB debugging in its developer options and plug it in; `adb devices` must list it",
        )
    listed = ", ".join(map(str, found))
    meant = [one for one in found if serial in (None, one.serial) and (model is None or _same(model, one.model))]
    if not meant:
        wanted = " and ".join(filter(None, (serial, model)))
        raise DeviceProblem(f"{wanted} is not connected", where="adb", remedy=f"connected: {listed}")
    if len(meant) > 1:
        raise DeviceProblem(
            f"{len(meant)} devices are connected: {', '.join(map(str, meant))}",
            where="adb",
            remedy=f"say which: `connection: {{serial: {meant[0].serial}}}` in its device file, or ANDROID_SERIAL",
        )
    (device,) = meant
    if device.state != "device":
        what, remedy = _STATES.get(device.state, (f"it is in the state '{device.state}'", "see `adb devices`"))
        raise DeviceProblem(what, where=device.serial, remedy=remedy)
    return device.serial


def _same(wanted: str, model: str) -> bool:
    """A device that has not allowed this computer does not say what it is, and is not ruled out."""
    return not model or wanted.replace("_", " ").casefold() == model.casefold()


def _machine(shell: _Adb) -> _runner.Machine:
    asked = "getprop ro.product.cpu.abilist; getprop ro.product.cpu.abi"
    abis = _remote.run(shell, asked, "asking for its processor").replace(",", " ").split()
    for machine in _runner.MACHINES.values():
        if machine.abi in abis:
            return machine
    known = ", ".join(machine.abi for machine in _runner.MACHINES.values())
    raise DeviceProblem(
        f"its processor ({abis[0] if abis else 'unknown'}) is none that the runner exists for",
        where=shell.where,
        remedy=f"use a 64-bit device: {known}",
    )


class _Adb:
    """See _remote.Shell. Needs Android 7 or later, whose shell tells exit codes."""

    temporary = TEMPORARY

    def __init__(self, program: str, serial: str) -> None:
        self.where = serial
        self._command = [program, "-s", serial]

    def start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, "shell", "-T", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )

    def push(self, files: Mapping[str, Path], folder: str) -> None:
        for name, path in files.items():
            self._copy("push", str(path), f"{folder}/{name}", f"copying {name} to it")
        programs = [f"{folder}/{name}" for name, path in files.items() if os.access(path, os.X_OK)]
        if programs:
            _remote.run(self, f"chmod 755 {' '.join(programs)}", "making the runner executable")

    def pull(self, path: str, target: Path) -> None:
        self._copy("pull", path, str(target), "bringing files from it")

    def _copy(self, direction: str, source: str, target: str, doing: str) -> None:
        try:
            done = subprocess.run(
                [*self._command, direction, source, target],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COPY_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceProblem(f"{doing} did not end", where=self.where, remedy="check the cable") from error
        if done.returncode != 0:
            raise self.problem(done.returncode, done.stderr + done.stdout, doing)

    def problem(self, code: int, noise: str, doing: str) -> DeviceProblem:
        line = _said(noise)
        if "No space left on device" in noise:
            return DeviceProblem(f"no space is left on it while {doing}", where=self.where, remedy="free some there")
        if "not executable" in noise or "Exec format error" in noise:
            return DeviceProblem(f"its processor does not run the runner: {line}", where=self.where)
        if _LOST.search(noise.lower()) or not self._answers():
            return DeviceProblem(
                f"the device was lost while {doing}", where=self.where, remedy="check the cable, and try again"
            )
        return DeviceProblem(f"{doing} ended with exit code {code}: {line or 'no message'}", where=self.where)

    def _answers(self) -> bool:
        try:
            done = subprocess.run(
                [*self._command, "get-state"], capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0 and done.stdout.strip() == "device"


def _said(noise: str) -> str:
    """The last line that is not adb's news about its own server."""
    lines = [line.strip() for line in noise.splitlines() if line.strip() and not line.startswith("*")]
    return lines[-1] if lines else ""
