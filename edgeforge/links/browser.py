"""A web browser on this machine: ONNX and GGUF files as WebAssembly runs them, in Chromium without a window."""

from __future__ import annotations

import json
import queue
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.errors import DeviceProblem
from edgeforge.core.stage import Progress
from edgeforge.links import Link, Start, Subject, Timings, Workload, _browser, _conditions
from edgeforge.links._answers import Answers, timings
from edgeforge.links._browser.process import Browser as Process
from edgeforge.links._browser.process import browsing
from edgeforge.links._browser.server import Gone, Server, serving

WHERE = "browser"
OPEN_S = 120.0
"""A browser that does not open the page within so long is given up."""
SILENCE_S = 900.0
"""And a page that says nothing for so long."""
LOOK_S = 0.5
ELEMENT_TYPES = ("float32", "float64", "int32", "int64", "uint8", "bool")
"""numpy's names, which are also those of the page's tensors."""


class Browser(Link):
    """Starts the Chromium or Chrome of this machine without a window, and measures in a page that it opens.

    What a site gets that loads the file with onnxruntime-web: WebAssembly with SIMD, in a worker, in a page that is
    isolated from other origins, so that it has threads. Not WebGPU or WebNN. Every start is a browser of its own, with
    an empty profile; load time begins when the page has the file's bytes, and peak memory is that of the page's
    process. The page cannot know when other programs held its core: that time is in its latencies.

    A language model is read by wllama, which is llama.cpp. It writes by itself, so its times have the choice of each
    token in them, its load time has wllama's own, and how fast memory can be read is not known there.
    """

    kind: Literal["browser"] = "browser"
    times_texts: ClassVar[bool] = True
    binary: Path | None = Field(
        default=None,
        description="The browser's program; absent: $EDGEFORGE_BROWSER, else the Chromium or Chrome that is installed.",
    )

    def unavailable(self, runtime: str) -> str | None:
        if runtime in _browser.LIBRARIES:
            return None
        return f"in a browser, ONNX and GGUF files are measured; {runtime} is not"

    def missing(self) -> str | None:
        try:
            _browser.program(self.binary)
            for library in _browser.LIBRARIES.values():
                library.files()
        except DeviceProblem as problem:
            return f"{problem.what} ({problem.remedy})"
        return None

    def measure(self, workload: Workload, progress: Progress) -> Timings:
        order = [name for name, count in sorted(workload.starts.items()) for _ in range(count)]
        random.Random(workload.seed).shuffle(order)
        total = len(order) + workload.samples
        starts: dict[str, list[Start]] = {name: [] for name in workload.starts}
        page = _Page(_browser.program(self.binary), workload.inputs, progress)
        before, own_s = _conditions.here(), time.process_time()
        if workload.new_tokens:
            page.probe(workload)
        for done, name in enumerate(order):
            progress.update(done, total, f"starting {name}")
            answers = page.ask("start", _one(workload, name), Answers())
            assert answers.start is not None
            starts[name].append(answers.start)
        race = Answers()
        lost = _race(page, workload, race, lambda: progress.update(len(order) + len(race.rounds), total, "timing"))
        used_s = page.processor_s + time.process_time() - own_s
        conditions: dict[str, Any] = {"pinned_to_cores": [], "threads": workload.threads}
        conditions |= _conditions.between(before, _conditions.here(), processor_s=used_s, waiting_share=None)
        conditions["runtime_on_device"] = race.runtime
        if lost:
            conditions["partial"] = f"{len(race.rounds)} of {workload.samples} rounds were measured: {lost.what}"
            progress.warn(f"{WHERE}: {conditions['partial']}; `edgeforge bench` measures again")
        return timings(workload, starts, race, conditions)

    def outputs(self, subject: Subject, inputs: Path, progress: Progress) -> np.ndarray:
        workload = Workload(
            subjects={"model": subject}, inputs=inputs, threads=1, samples=1, starts={}, warmup=0, min_sample_ms=1
        )
        page, answers = _Page(_browser.program(self.binary), inputs, progress), Answers()
        page.ask("outputs", workload, answers, lambda: progress.update(answers.done, page.size, "answering"))
        values, shape = np.frombuffer(page.outputs, np.float32), answers.shape or ()
        if values.size != np.prod(shape, dtype=np.int64):
            raise DeviceProblem("its answers did not arrive whole", where=WHERE, remedy="try again")
        progress.update(page.size, page.size)
        return values.reshape(shape)


class _Page:
    """The page with its samples, opened anew in a browser of its own for every job."""

    def __init__(self, program: Path, inputs: Path, progress: Progress) -> None:
        self.program, self.progress = program, progress
        self.inputs, self.samples = _inputs(inputs)
        self.size = min((shape["shape"][0] for shape in self.inputs), default=0)
        self.processor_s = 0.0
        self.outputs = b""
        self.prompt: dict[str, int] = {}

    def probe(self, workload: Workload) -> None:
        """Of language models: find the prompt that all other jobs use. Raises DeviceProblem."""
        name = next(iter(workload.subjects))
        end = self.ask("probe", _one(workload, name), Answers()).end or {}
        self.prompt = {key: int(end["conditions"][key]) for key in ("prompt_words", "new_tokens")}

    def ask(self, what: str, workload: Workload, answers: Answers, heard: Callable[[], None] = lambda: None) -> Answers:
        """Do one job. Raises DeviceProblem where it does not come to its end; `answers` holds what was said."""
        doing = f"{what} of {', '.join(workload.subjects)}"
        with self._open(what, workload) as (server, browser):
            for line in _lines(server, browser, doing):
                _take(answers, line, browser)
                heard()
                if answers.error is not None or answers.finished:
                    break
            self.processor_s += browser.processor_s()
            self.outputs = server.outputs
        if answers.error is not None:
            raise DeviceProblem(f"the {doing} failed: {answers.error}", where=WHERE, remedy=_remedy(answers.error))
        return answers

    @contextmanager
    def _open(self, what: str, workload: Workload) -> Iterator[tuple[Server, Process]]:
        library = _library(workload)
        models = {f"model{number}": subject.folder for number, subject in enumerate(workload.subjects.values())}
        job = {
            **workload.model_dump(mode="json", exclude={"subjects", "inputs", "starts"}),
            "what": what,
            "subjects": dict(zip(workload.subjects, models, strict=True)),
            "inputs": self.inputs,
            "prompt_tokens": self.inputs[0]["shape"][-1],
            "module": library.module,
            "wasm": library.wasm,
            **self.prompt,
        }
        files: dict[str, Path | bytes] = {**_browser.page(), **library.files(), **self.samples}
        files |= {name: folder / library.model for name, folder in models.items()}
        files["job.json"] = json.dumps(job).encode()
        with serving(files) as server, browsing(self.program, server.address, self.progress) as browser:
            yield server, browser


def _library(workload: Workload) -> _browser.Library:
    """What opens all of its files. Raises DeviceProblem where that is not one, or not for what is asked of it."""
    kinds = {subject.runtime for subject in workload.subjects.values()}
    if kinds == {"llama_cpp"} and not workload.new_tokens:
        raise DeviceProblem("a page does not say what a GGUF file answers, only how fast it is", where=WHERE)
    if kinds != {"llama_cpp" if workload.new_tokens else "onnxruntime"}:
        what = "language models are measured in a browser as GGUF files, and nothing else is"
        raise DeviceProblem(f"{what}; these are of {', '.join(sorted(kinds))}", where=WHERE)
    return _browser.LIBRARIES[kinds.pop()]


def _one(workload: Workload, name: str) -> Workload:
    return workload.model_copy(update={"subjects": {name: workload.subjects[name]}})


def _race(page: _Page, workload: Workload, race: Answers, heard: Callable[[], None]) -> DeviceProblem | None:
    """Time all subjects; what ended it early, where whole rounds are kept all the same."""
    try:
        page.ask("race", workload, race, heard)
    except DeviceProblem as problem:
        if not race.rounds:
            raise
        return problem
    return None


def _lines(server: Server, browser: Process, doing: str) -> Iterator[str]:
    """What the page says, as it comes. Raises DeviceProblem where it can say no more."""
    patience, last = OPEN_S, time.monotonic()
    while True:
        try:
            line = server.heard.get(timeout=LOOK_S)
        except queue.Empty:
            line = None
        if isinstance(line, str):
            patience, last = SILENCE_S, time.monotonic()
            yield line
        elif problem := browser.ended():
            raise problem
        elif isinstance(line, Gone):
            raise DeviceProblem(
                f"the page crashed during the {doing}",
                where=WHERE,
                remedy="it usually means that its memory ran out: close other programs, or take a smaller model",
            )
        elif time.monotonic() - last > patience:
            raise DeviceProblem(f"the page said nothing for {patience:.0f} s during the {doing}", where=WHERE)


def _take(answers: Answers, line: str, browser: Process) -> None:
    """One line; of a start, the page's memory is looked at from outside while it is still there."""
    try:
        said = dict(json.loads(line))
        if "start" in said:
            line = json.dumps({"start": {**said["start"], "peak_rss_mb": browser.peak_rss_mb()}})
        answers.take(line)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeviceProblem(f"the page said what no page says: {line[:100]}", where=WHERE) from error


def _inputs(path: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """How the page reads the samples, and their content by file name. Raises DeviceProblem for a type it has not."""
    described, files = [], {}
    with np.load(path, allow_pickle=False) as arrays:
        for number, (name, array) in enumerate(arrays.items()):
            if array.dtype.name not in ELEMENT_TYPES:
                raise DeviceProblem(f"the page takes no input '{name}' of type {array.dtype.name}", where=WHERE)
            file = f"input{number}.bin"
            described.append({"name": name, "type": array.dtype.name, "shape": list(array.shape), "path": file})
            files[file] = np.ascontiguousarray(array).tobytes()
    return described, files


def _remedy(error: str) -> str | None:
    text = error.lower()
    if any(word in text for word in ("memory", "bad_alloc", "allocat", "oom")):
        return "the page's memory ran out (WebAssembly has 4 GB): take a smaller model"
    if any(word in text for word in ("opset", "not implemented", "could not find an", "no op registered")):
        return f"{_browser.LIBRARIES['onnxruntime'].package} has no such operator: export or quantize otherwise"
    return None
