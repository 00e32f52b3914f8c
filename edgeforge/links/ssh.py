"""A laptop, a board or a GPU box over SSH, by the OpenSSH client of this machine."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import DeviceProblem
from edgeforge.core.stage import Progress
from edgeforge.links import Link, Subject, Timings, Workload, _remote, _runner
from edgeforge.links._programs import LlamaWorker, NativeRunner, Program, PythonWorker
from edgeforge.runtimes import Processor

if TYPE_CHECKING:
    import numpy as np

TEXTS = "llama_cpp"
LIBRARIES = {_remote.RUNTIME: ("onnxruntime", "onnxruntime"), TEXTS: ("llama_cpp", "llama-cpp-python")}
"""Runtime -> the module that must be there, and the package that brings it."""
SSH_FAILED = 255
OPTIONS = {
    "BatchMode": "yes",  # a password prompt would wait for ever
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "4",
    "LogLevel": "ERROR",
}

# (what ssh says, what that means, what to do); {host} is replaced.
_REFUSALS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed",
        "its SSH host key is not the one that was known",
        "if it was installed anew: ssh-keygen -R {host}, then connect once by hand; if not, find out who answers there",
    ),
    (
        "Host key verification failed|No .* host key is known",
        "its SSH host key is not known yet",
        "connect once by hand and compare the fingerprint: ssh {host}",
    ),
    ("Permission denied", "it does not accept this machine's SSH keys", "ssh-copy-id {host}"),
    ("Could not resolve|Name or service not known", "no device has that name", "check the host, or use its address"),
    (
        "Connection refused",
        "it is there but no SSH server answers",
        "start one there (Raspberry Pi: raspi-config, interface options, SSH)",
    ),
    (
        "timed out|No route to host|unreachable",
        "it does not answer",
        "check that it is switched on and in the same network",
    ),
    ("Bad configuration|Can't open user config|no such identity", "ssh cannot be set up: {line}", "check `config`"),
)


class Ssh(Link):
    """Runs a self-contained worker on another computer with a POSIX shell (Linux, macOS), and brings the samples back.

    Everything else about the way there (port, key, jump host) is said in ssh's own configuration, where `host` may be
    an alias. Nothing is asked for: keys are set up, and the host key is known, before the first measurement.
    """

    kind: Literal["ssh"] = "ssh"
    host: str | None = Field(default=None, description="`user@address`, or an alias of the SSH configuration.")
    config: Path | None = Field(default=None, description="An SSH configuration file; absent: ssh's own.")
    runner: Literal["python", "native"] = Field(
        default="python",
        description="`python` needs Python there, and onnxruntime (for GGUF files llama-cpp-python); `native` brings "
        "its own ONNX Runtime (Linux).",
    )
    python: str = Field(
        default="python3", description="The command that starts Python there, as shell text: ~/venv/bin/python."
    )
    processor: Processor = Field(
        default="cpu",
        description="`cuda`: the NVIDIA GPU there, by its onnxruntime-gpu or its llama.cpp. Untested on hardware.",
    )

    times_texts: ClassVar[bool] = True

    def unavailable(self, runtime: str) -> str | None:
        if self.processor == "cuda" and self.runner == "native":
            return "the native runner measures the CPU; a GPU is measured with `runner: python`"
        if runtime == TEXTS and self.runner == "native":
            return "the native runner takes ONNX files; GGUF files are measured with `runner: python`"
        return None if runtime in _remote.MODELS else f"over ssh, ONNX and GGUF files are measured; {runtime} is not"

    def missing(self) -> str | None:
        """See Link. Whether the device answers shows when it is asked."""
        try:
            self._shell()
        except DeviceProblem as problem:
            found: DeviceProblem | None = problem
        else:
            found = _runner.missing(_runner.MACHINES.values()) if self.runner == "native" else None
        return f"{found.what} ({found.remedy})" if found else None

    def measure(self, workload: Workload, progress: Progress) -> Timings:
        shell = self._shell()
        runtime = _one_runtime(workload)
        timings = _remote.measure(shell, self._program(shell, runtime), workload, progress)
        if self.processor == "cuda":  # a GPU does not read its weights from the memory that was looked at
            return timings.model_copy(update={"memory_gb_per_s": ()})
        return timings

    def outputs(self, subject: Subject, inputs: Path, progress: Progress) -> np.ndarray:
        shell = self._shell()
        return _remote.outputs(shell, self._program(shell, subject.runtime), subject, inputs, progress)

    def _shell(self) -> _Ssh:
        if self.host is None:
            raise DeviceProblem(
                "nobody has said where this device is",
                where="ssh",
                remedy="write `connection: {host: user@address}` in a device file of your own (docs/devices.md)",
            )
        if self.host.startswith("-") or not self.host.strip():
            raise DeviceProblem("this is no host name", where=f"ssh {self.host}", remedy="write user@address")
        program = shutil.which("ssh")
        if program is None:
            raise DeviceProblem("the command `ssh` is not installed", where="ssh", remedy="install OpenSSH")
        return _Ssh(program, self.host, self.config)

    def _program(self, shell: _Ssh, runtime: str) -> Program:
        """What measures files of this runtime there."""
        if self.runner == "python":
            self._check_python(shell, runtime)
            return (LlamaWorker if runtime == TEXTS else PythonWorker)(self.python, self.processor)
        name = _remote.answer(shell, "uname -m", "asking for its processor")
        if name not in _runner.MACHINES:
            raise DeviceProblem(
                f"the native runner does not exist for its processor ({name})",
                where=shell.where,
                remedy=f"it exists for {', '.join(_runner.MACHINES)}",
            )
        return NativeRunner(_runner.MACHINES[name])

    def _check_python(self, shell: _Ssh, runtime: str) -> None:
        """Raises DeviceProblem where there is no Python, or not the runtime's library (which is not imported here)."""
        module, package = LIBRARIES[runtime]
        code = f"import importlib.util as u; print(u.find_spec('{module}') is not None)"
        command = f"{self.python} -c {shlex.quote(code)} || echo absent"
        answer = _remote.answer(shell, command, "asking for its Python")
        if answer == "True":
            return
        native = "; or say `runner: native` in `connection`" if runtime == _remote.RUNTIME else ""
        if answer == "False":
            missing, remedy = f"has no {package} there", f"there: {self.python} -m pip install {package}"
        else:
            missing, remedy = "does not start there", "say which (python: ~/venv/bin/python)"
        raise DeviceProblem(f"`{self.python}` {missing}", where=shell.where, remedy=f"{remedy}{native}")


def _one_runtime(workload: Workload) -> str:
    """That of all its files. Raises DeviceProblem where there are several, or it is not for what is asked of it."""
    found = {subject.runtime for subject in workload.subjects.values()}
    if found != {TEXTS if workload.new_tokens else _remote.RUNTIME}:
        what = "language models are measured over ssh as GGUF files, and nothing else is"
        raise DeviceProblem(f"{what}; these are of {', '.join(sorted(found))}", where="ssh")
    return found.pop()


class _Ssh:
    """See _remote.Shell."""

    temporary = "${TMPDIR:-/tmp}"

    def __init__(self, program: str, host: str, config: Path | None) -> None:
        self.where = host
        chosen = ["-F", str(config.expanduser())] if config else []
        options = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
        self._command = [program, "-T", *chosen, *options, host]

    def start(self, command: str) -> subprocess.Popen[str]:
        return self._begin(command, stdin=subprocess.DEVNULL)

    def push(self, files: Mapping[str, Path], folder: str) -> None:
        """As one tar archive, written into the connection while it is made."""
        process = subprocess.Popen(
            [*self._command, _in_sh(f"tar -xf - -C {folder}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None and process.stderr is not None
        try:
            with suppress(BrokenPipeError):  # what went wrong there stands on stderr
                _archive(files, process.stdin)
                process.stdin.close()
            noise = process.stderr.read().decode(errors="replace")
            code = process.wait()
        finally:
            _remote.end(process)
        if code != 0:
            raise self.problem(code, noise, "copying files to it")

    def pull(self, path: str, target: Path) -> None:
        with target.open("wb") as stream:
            done = subprocess.run(
                [*self._command, _in_sh(f"cat {path}")],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.PIPE,
                check=False,
            )
        if done.returncode != 0:
            raise self.problem(done.returncode, done.stderr.decode(errors="replace"), "bringing files from it")

    def problem(self, code: int, noise: str, doing: str) -> DeviceProblem:
        line = _last_line(noise)
        if "No space left on device" in noise or "Disk quota exceeded" in noise:
            return DeviceProblem(f"no space is left on it while {doing}", where=self.where, remedy="free some there")
        if code == SSH_FAILED:
            for pattern, meaning, remedy in _REFUSALS:
                if re.search(pattern, noise, re.IGNORECASE):
                    return DeviceProblem(
                        meaning.format(line=line), where=self.where, remedy=remedy.format(host=self.where)
                    )
            return DeviceProblem(
                f"the connection was lost while {doing}" + (f": {line}" if line else ""),
                where=self.where,
                remedy="check the network and its power, and try again",
            )
        return DeviceProblem(f"{doing} ended with exit code {code}: {line or 'no message'}", where=self.where)

    def _begin(self, command: str, *, stdin: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, _in_sh(command)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )


def _archive(files: Mapping[str, Path], stream: IO[bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w|", dereference=True) as archive:
        for name, path in files.items():
            archive.add(path, arcname=name)


def _in_sh(command: str) -> str:
    """The user's shell there may be one that reads other commands."""
    return f"exec sh -c {shlex.quote(command)}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
