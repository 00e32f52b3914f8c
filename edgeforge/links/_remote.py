"""One measurement on a device behind a shell: what the links `ssh`, `adb` and `qemu` have in common.

Everything happens in one temporary folder on the device, which is removed at the end, after an error and after
Ctrl-C. Where the link itself is lost, the runner removes the folder when it finds nobody reading what it says;
where that cannot be known, the user is told which folder may be left.
"""

from __future__ import annotations

import queue
import random
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from edgeforge.core.errors import DeviceProblem
from edgeforge.core.stage import Progress
from edgeforge.links import Start, Subject, Timings, Workload, _conditions
from edgeforge.links._answers import Answers, timings
from edgeforge.links._programs import OUTPUTS, Program, model_folder

RUNTIME = "onnxruntime"
MODELS = {RUNTIME: "model.onnx", "llama_cpp": "model.gguf"}
"""Runtime -> the file of a model's folder that is copied."""
SILENCE_S = 900.0
"""A runner that says nothing for so long is given up."""
CLEANUP_PAUSES_S = (0.0, 1.0, 3.0)
KILLED = 137
BROKEN_PIPE = 141
_OF_ONE = ("start", "count")
"""Jobs of one subject, which its name is part of."""
UNTESTED = "no one has run this link on such hardware yet; it is tested against a stand-in for the device"


class Shell(Protocol):
    """A shell on a device, and files to and from it."""

    where: str
    """What the user calls the device."""
    temporary: str
    """Folder on the device for temporary folders, as shell text."""

    def start(self, command: str) -> subprocess.Popen[str]:
        """Begin a command; its stdout and stderr are pipes of text."""

    def push(self, files: Mapping[str, Path], folder: str) -> None:
        """Copy files there: path in `folder` -> path here. Raises DeviceProblem."""

    def pull(self, path: str, target: Path) -> None:
        """Bring one file. Raises DeviceProblem."""

    def problem(self, code: int, noise: str, doing: str) -> DeviceProblem:
        """What an exit code and the text on stderr mean."""


def run(shell: Shell, command: str, doing: str, *, timeout_s: float = 60.0) -> str:
    """What a short command prints. Raises DeviceProblem where it fails or hangs."""
    process = shell.start(command)
    try:
        out, noise = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise DeviceProblem(f"no answer within {timeout_s:.0f} s while {doing}", where=shell.where) from error
    finally:
        end(process)
    if process.returncode != 0:
        raise shell.problem(process.returncode, noise or out, doing)
    return out


def answer(shell: Shell, command: str, doing: str) -> str:
    """The last line that a short command prints: what stands before it, the user's own start-up files said."""
    lines = run(shell, command, doing).strip().splitlines()
    return lines[-1].strip() if lines else ""


def end(process: subprocess.Popen[Any]) -> None:
    """Make sure that a client on this machine is gone."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def measure(shell: Shell, program: Program, workload: Workload, progress: Progress) -> Timings:
    """See Link.measure."""
    order = [name for name, count in sorted(workload.starts.items()) for _ in range(count)]
    random.Random(workload.seed).shuffle(order)
    total = len(order) + workload.samples
    starts: dict[str, list[Start]] = {name: [] for name in workload.starts}
    processor_s = 0.0
    with prepared(shell, program, workload, progress) as device:
        before = device.state()
        for done, name in enumerate(order):
            progress.update(done, total, f"starting {name}")
            answers = device.ask("start", name, Answers())
            processor_s += answers.processor_s
            if answers.start:
                starts[name].append(answers.start)
        race = Answers()
        lost = _race(device, race, lambda: progress.update(len(order) + len(race.rounds), total, "timing"))
        after = None if lost else device.state()
    waiting = race.end["waiting_share"] if race.end else None
    conditions: dict[str, Any] = {"pinned_to_cores": [], "threads": workload.threads, "hardware": UNTESTED}
    conditions |= _conditions.between(before, after, processor_s=processor_s + race.processor_s, waiting_share=waiting)
    if race.runtime:
        conditions["runtime_on_device"] = race.runtime
    if lost:
        conditions["partial"] = f"{len(race.rounds)} of {workload.samples} rounds were measured: {lost.what}"
        progress.warn(f"{shell.where}: {conditions['partial']}; `edgeforge bench` measures again")
    return timings(workload, starts, race, conditions)


def outputs(shell: Shell, program: Program, subject: Subject, inputs: Path, progress: Progress) -> np.ndarray:
    """See Link.outputs."""
    with np.load(inputs, allow_pickle=False) as file:
        size = min(len(file[name]) for name in file.files)
    workload = Workload(
        subjects={"model": subject}, inputs=inputs, threads=1, samples=1, starts={}, warmup=0, min_sample_ms=1
    )
    with prepared(shell, program, workload, progress) as device, tempfile.TemporaryDirectory() as name:
        answers = Answers()
        device.ask("outputs", "model", answers, lambda: progress.update(answers.done, size, "answering"))
        path = Path(name) / OUTPUTS
        shell.pull(f"{device.folder}/{OUTPUTS}", path)
        values = np.fromfile(path, np.float32)
    shape = answers.shape or ()
    if values.size != np.prod(shape, dtype=np.int64):
        raise DeviceProblem("the file of outputs did not arrive whole", where=shell.where, remedy="try again")
    progress.update(size, size)
    return values.reshape(shape)


def _race(device: Device, race: Answers, heard: Callable[[], None]) -> DeviceProblem | None:
    """Time all subjects; what ended it early, where whole rounds are kept all the same."""
    try:
        device.ask("race", "", race, heard)
    except DeviceProblem as problem:
        if not race.rounds:
            raise
        return problem
    return None


class Device:
    """A folder on a device with a program, its jobs, models and inputs in it."""

    def __init__(self, shell: Shell, program: Program, folder: str) -> None:
        self.shell, self.program, self.folder = shell, program, folder

    def state(self) -> _conditions.State:
        return _conditions.parse(run(self.shell, _conditions.COMMAND, "asking for its state"))

    def ask(self, what: str, name: str, answers: Answers, heard: Callable[[], None] = lambda: None) -> Answers:
        """Do one job. Raises DeviceProblem where it does not come to its end; `answers` holds what was said."""
        job, doing = _job_file(what, name), f"{what} of {name}" if name else what
        process = self.shell.start(
            # What libraries leave in the folder for temporary files (ONNX Runtime does) is removed with the rest.
            f"cd {self.folder} && export TMPDIR={self.folder} && {self.program.command(what, job)}; code=$?; "
            f"if [ $code -eq {BROKEN_PIPE} ]; then rm -rf {self.folder}; fi; exit $code"
        )
        try:
            with _noise_of(process) as noise:
                for line in _lines(process, self.shell.where):
                    answers.take(line)
                    heard()
                code = process.wait()
        finally:
            end(process)
        if answers.error is not None:
            raise DeviceProblem(
                f"the {doing} failed: {answers.error}", where=self.shell.where, remedy=_remedy(answers.error)
            )
        if code == KILLED:
            raise DeviceProblem(
                f"the device ended the {doing} (signal 9)",
                where=self.shell.where,
                remedy="it usually means that its memory ran out: close other apps, or take a smaller model",
            )
        if code != 0 or not answers.finished:
            raise self.shell.problem(code, "".join(noise), f"the {doing}")
        return answers


@contextmanager
def prepared(shell: Shell, program: Program, workload: Workload, progress: Progress) -> Iterator[Device]:
    """The device with all it needs in a folder of its own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="edgeforge-") as name:
        files = {**program.files(workload.inputs, Path(name)), **_models(workload)}
        jobs = {"race": ("race", *workload.subjects), "outputs": ("outputs", *workload.subjects)}
        jobs |= {f"start {subject}": ("start", subject) for subject in workload.starts}
        jobs |= {f"count {subject}": ("count", subject) for subject in workload.subjects}
        for what, *subjects in jobs.values():
            job = Path(name) / _job_file(what, subjects[0] if what in _OF_ONE else "")
            job.write_text(program.job(what, workload, subjects), encoding="utf-8")
            files[job.name] = job
        size_mb = sum(path.stat().st_size for path in files.values()) / 1e6
        with _folder_on(shell, progress) as folder:
            progress.update(0, 1, f"copying {size_mb:.0f} MB to {shell.where}")
            shell.push(files, folder)
            yield Device(shell, program, folder)


def _job_file(what: str, name: str) -> str:
    return f"{what}-{name}.job" if what in _OF_ONE else f"{what}.job"


def _models(workload: Workload) -> dict[str, Path]:
    files = {name: MODELS[subject.runtime] for name, subject in workload.subjects.items()}
    return {f"{model_folder(name)}/{file}": workload.subjects[name].folder / file for name, file in files.items()}


@contextmanager
def _folder_on(shell: Shell, progress: Progress) -> Iterator[str]:
    made = answer(shell, f"mktemp -d {shell.temporary}/edgeforge-XXXXXXXX", "making a folder on the device")
    if "/edgeforge-" not in made or len(made.split()) != 1:
        raise DeviceProblem(f"mktemp gave no folder: {made}", where=shell.where)
    folder = shlex.quote(made)
    try:
        yield folder
    finally:
        _remove(shell, folder, progress)


def _remove(shell: Shell, folder: str, progress: Progress) -> None:
    for pause_s in CLEANUP_PAUSES_S:  # a cable that moved is often back after a second
        time.sleep(pause_s)
        try:
            run(shell, f"rm -rf {folder}", "removing the folder", timeout_s=20)
        except DeviceProblem as problem:
            last = problem.what
        else:
            return
    progress.warn(f"{shell.where}: {folder} may be left on the device: {last}")


def _remedy(error: str) -> str | None:
    """What to do where ONNX Runtime says that it cannot."""
    old = (
        "opset",
        "ir version",
        "not a registered function",
        "no op registered",
        "not implemented",
        "could not find an",
    )
    text = error.lower()
    if any(word in text for word in ("unknown model architecture", "unknown pre-tokenizer", "invalid ggml type")):
        return "its llama.cpp is too old for this file: install a newer llama-cpp-python there"
    if any(word in text for word in old):
        return "its ONNX Runtime is too old for this file: install a newer one there, or export with an older opset"
    if "bad_alloc" in text or "allocate" in text or "memory" in text:
        return "the device's memory ran out: close other programs, or take a smaller model"
    return None


@contextmanager
def _noise_of(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    """What stands on stderr, complete when the block ends; a full pipe would stop the process."""
    assert process.stderr is not None
    said: list[str] = []
    thread = threading.Thread(target=lambda stream: said.extend(stream), args=(process.stderr,), daemon=True)
    thread.start()
    yield said
    thread.join(timeout=5)


def _lines(process: subprocess.Popen[str], where: str) -> Iterator[str]:
    """Its lines as they come. Raises DeviceProblem after a long silence."""
    assert process.stdout is not None
    heard: queue.Queue[str | None] = queue.Queue()

    def listen(stream: IO[str]) -> None:
        for line in stream:
            heard.put(line)
        heard.put(None)

    threading.Thread(target=listen, args=(process.stdout,), daemon=True).start()
    while True:
        try:
            line = heard.get(timeout=SILENCE_S)
        except queue.Empty:
            raise DeviceProblem(f"nothing was heard for {SILENCE_S:.0f} s", where=where) from None
        if line is None:
            return
        yield line
