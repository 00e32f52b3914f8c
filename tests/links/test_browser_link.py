"""The link `browser`: every failure with a double of the browser, and the real thing in Chromium."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from edgeforge.bundles import web
from edgeforge.core.errors import ConfigurationError, DeviceProblem
from edgeforge.fetchers.browser_runner import BrowserRunner
from edgeforge.links import Subject, Workload, _browser, browser, link_of
from edgeforge.links._browser import process
from edgeforge.links.browser import Browser

pytest.importorskip("onnx")

DOUBLE = """#!{python}
import json, sys, time, urllib.request
folder = sys.argv[-1].removesuffix("runner.html")
def get(name):
    return urllib.request.urlopen(folder + name).read()
def post(name, body):
    urllib.request.urlopen(urllib.request.Request(folder + name, body, method="POST"))
def say(answer):
    post("say", json.dumps(answer).encode())
{script}
"""
"""A program in a browser's place, which does what the page would."""


class Told:
    """Progress that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary folders: with a short path, or the link would take another one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        monkeypatch.setattr(process.tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with something in the runtimes' place."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(_browser, "folder", lambda: folder)
    for library in _browser.LIBRARIES.values():
        library.folder().mkdir()
        for name in (library.module, library.wasm):
            (library.folder() / name).write_bytes(b"")
    return folder


@pytest.fixture
def double(tmp_path: Path, files: Path) -> Callable[[str], Browser]:
    """The link with a program that does this."""

    def make(script: str) -> Browser:
        path = tmp_path / "double"
        path.write_text(DOUBLE.format(python=sys.executable, script=script))
        path.chmod(0o755)
        return Browser(binary=path)

    return make


@pytest.fixture
def work(tmp_path: Path, workload: Any) -> Callable[..., Any]:
    """A workload of a file that nobody opens."""

    def make(**changes: Any) -> Any:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(b"a model")
        return workload(tmp_path, {"model": folder}, **changes)

    return make


def leftovers() -> list[str]:
    names = [child.name() for child in psutil.Process().children(recursive=True)]
    return [name for name in names if "chrom" in name or "double" in name]


# -- finding what is needed


def test_without_a_browser_it_says_how_to_get_one(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(_browser.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(files))
    monkeypatch.setattr(_browser, "APPLICATIONS", ())
    said = Browser().missing()
    assert said is not None and "no browser" in said and "apt-get install chromium" in said and "\n" not in said
    with pytest.raises(DeviceProblem, match="no browser"):
        _browser.program(None)


def test_a_browser_that_was_named_must_be_there(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Browser(binary=tmp_path / "absent").missing()
    assert said is not None and "no program that can be started" in said and _browser.VARIABLE in said
    monkeypatch.setenv(_browser.VARIABLE, str(tmp_path / "absent"))
    assert "no program" in str(Browser().missing())


def test_which_browser_is_taken(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("google-chrome", "chromium", "mine", "theirs"):
        (files / name).write_text("#!/bin/sh\n")
        (files / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(files))
    monkeypatch.delenv(_browser.VARIABLE, raising=False)
    assert _browser.program(None).name == "chromium"
    monkeypatch.setenv(_browser.VARIABLE, str(files / "theirs"))
    assert _browser.program(None).name == "theirs"
    assert _browser.program(Path("mine")).name == "mine"
    assert Browser(binary=Path("mine")).missing() is None


@pytest.mark.parametrize("library", _browser.LIBRARIES.values(), ids=_browser.LIBRARIES)
def test_without_a_package_it_says_how_to_get_it(files: Path, library: _browser.Library) -> None:
    (library.folder() / library.wasm).unlink()
    said = Browser(binary=Path(sys.executable)).missing()
    assert said == f"{library.package} (npm) is not on this machine yet (edgeforge fetch browser-runner)"


def test_without_the_package_nothing_is_started(double: Any, work: Any, told: Told, tmp_path: Path) -> None:
    library = _browser.LIBRARIES["onnxruntime"]
    (library.folder() / library.module).unlink()
    with pytest.raises(DeviceProblem, match="is not on this machine yet") as caught:
        double(f"open({str(tmp_path / 'started')!r}, 'w')").measure(work(), told)
    assert caught.value.remedy == "edgeforge fetch browser-runner" and not (tmp_path / "started").exists()


def test_formats_that_it_runs() -> None:
    link = Browser()
    assert link.unavailable("onnxruntime") is None and link.unavailable("llama_cpp") is None
    assert link.unavailable("coreml") == "in a browser, ONNX and GGUF files are measured; coreml is not"


def test_a_connection_that_it_does_not_understand() -> None:
    with pytest.raises(ConfigurationError, match="host"):
        link_of("browser", {"host": "here"})
    assert link_of("browser", {"binary": "/opt/chrome"}) == Browser(binary=Path("/opt/chrome"))


def test_the_version_is_that_of_the_web_bundle() -> None:
    assert f"{web.RUNTIME}@{web.RUNTIME_VERSION}" == _browser.LIBRARIES["onnxruntime"].package


# -- what goes wrong, each in one line


def test_a_browser_that_ends_at_once(double: Any, work: Any, told: Told) -> None:
    link = double("sys.exit('[1:2:ERROR:here.cc(3)] no display')")
    with pytest.raises(DeviceProblem, match=r"^browser: the browser ended with exit code 1: no display$"):
        link.measure(work(), told)
    assert leftovers() == []


def test_the_reason_is_found_in_what_chromium_says(double: Any, work: Any, told: Told) -> None:
    said = "[1:2:FATAL:host.cc:41] No usable sandbox!\\nFailed to connect to dbus\\n[3:4:ERROR:z.cc] Broken pipe\\n"
    link = double(f"sys.stderr.write('{said}'); sys.exit(3)")
    with pytest.raises(DeviceProblem, match="exit code 3: No usable sandbox!") as caught:
        link.measure(work(), told)
    assert "user namespaces" in str(caught.value.remedy)


def test_a_long_path_for_temporary_files_is_not_taken(
    double: Any, work: Any, told: Told, tmp_path: Path, monkeypatch: Any
) -> None:
    """Chromium makes a socket in it, and ends where the socket's path is too long."""
    monkeypatch.setattr(process.tempfile, "tempdir", str(tmp_path / ("x" * process.LONGEST_FOLDER)))
    with pytest.raises(DeviceProblem, match=r"exit code 1: /tmp/edgeforge-\w+$"):
        double("import os; sys.exit(os.environ['TMPDIR'])").measure(work(), told)


def test_a_program_that_cannot_be_started(tmp_path: Path, files: Path, work: Any, told: Told) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/program\n")
    broken.chmod(0o755)
    with pytest.raises(DeviceProblem, match="cannot be started: No such file"):
        Browser(binary=broken).measure(work(), told)


def test_a_browser_that_never_opens_the_page(double: Any, work: Any, told: Told, monkeypatch: Any) -> None:
    monkeypatch.setattr(browser, "OPEN_S", 1.0)
    with pytest.raises(DeviceProblem, match="the page said nothing for 1 s during the start of model"):
        double("time.sleep(600)").measure(work(), told)
    assert leftovers() == []


def test_a_page_that_hangs(double: Any, work: Any, told: Told, monkeypatch: Any) -> None:
    monkeypatch.setattr(browser, "SILENCE_S", 1.0)
    with pytest.raises(DeviceProblem, match="the page said nothing for 1 s"):
        double("say({'runtime': 'r'}); time.sleep(600)").measure(work(), told)


def test_an_error_in_the_page(double: Any, work: Any, told: Told) -> None:
    with pytest.raises(DeviceProblem, match="the start of model failed: protobuf parsing failed") as caught:
        double("say({'error': 'protobuf parsing failed'}); time.sleep(600)").measure(work(), told)
    assert caught.value.remedy is None
    for error, remedy in (
        ("std::bad_alloc", "smaller model"),
        ("Could not find an implementation", "no such operator"),
    ):
        with pytest.raises(DeviceProblem, match="failed") as caught:
            double(f"say({{'error': '{error}'}}); time.sleep(600)").measure(work(), told)
        assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize("said", ["[1, 2]", '{"start": 3}', '{"start": {"load_ms": "soon"}}', '{"round": null}', "no"])
def test_a_page_that_says_something_else(double: Any, work: Any, told: Told, said: str) -> None:
    with pytest.raises(DeviceProblem, match="said what no page says"):
        double(f"post('say', {said.encode()!r}); time.sleep(600)").measure(work(), told)


CRASH = """
import socket
from urllib.parse import urlsplit
place = urlsplit(folder)
page = socket.create_connection((place.hostname, place.port))
page.sendall(f"GET {place.path}alive HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
time.sleep(0.5)
page.close()
time.sleep(600)
"""


def test_a_page_that_crashes(double: Any, work: Any, told: Told) -> None:
    with pytest.raises(DeviceProblem, match="the page crashed during the start of model") as caught:
        double(CRASH).measure(work(), told)
    assert "memory" in str(caught.value.remedy)


RACE = """
job = json.loads(get("job.json"))
if job["what"] == "race":
    for _ in range(2):
        say({"round": {"model": 1.5}})
    time.sleep(.5)
    sys.exit("out of luck")
"""


def test_whole_rounds_of_a_race_that_broke_off_are_kept(double: Any, work: Any, told: Told) -> None:
    timings = double(RACE).measure(work(starts={}), told)
    assert timings.latency_ms == {"model": (1.5, 1.5)}
    assert timings.conditions["partial"] == (
        "2 of 30 rounds were measured: the browser ended with exit code 1: out of luck"
    )
    assert len(told.warnings) == 1


WHOLE = """
job = json.loads(get("job.json"))
assert get(job["subjects"]["model"]) == b"a model"
say({"runtime": "ORT in a double"})
if job["what"] == "start":
    say({"start": {"load_ms": 2.0, "first_inference_ms": 3.0}})
else:
    assert (job["threads"], job["warmup"], job["min_sample_ms"]) == (2, 1, 1.0)
    for number in range(job["samples"]):
        say({"round": {"model": number + 1.0}})
    say({"end": {"calls_per_sample": {"model": 7}}})
time.sleep(600)
"""


def test_what_is_said_becomes_timings(double: Any, work: Any, told: Told) -> None:
    timings = double(WHOLE).measure(work(threads=2, starts={"model": 2}), told)
    assert timings.latency_ms["model"] == tuple(float(number) for number in range(1, 31))
    assert timings.calls_per_sample == {"model": 7}
    assert [(start.load_ms, start.first_inference_ms) for start in timings.starts["model"]] == [(2.0, 3.0)] * 2
    # The double has no process of a page: nothing is said of its memory.
    assert {start.peak_rss_mb for start in timings.starts["model"]} == {None}
    assert timings.waiting_share is None
    assert timings.conditions["runtime_on_device"] == "ORT in a double"
    json.dumps(timings.model_dump(mode="json"), allow_nan=False)
    assert told.warnings == [] and leftovers() == []


TEXTS = """
job = json.loads(get("job.json"))
assert get(job["subjects"]["model"]) == b"a model"
assert (job["prompt_tokens"], job["module"]) == (12, "index.min.js")
if job["what"] == "probe":
    assert job["new_tokens"] == 4
    say({"end": {"conditions": {"prompt_words": 5, "new_tokens": 3}}})
    time.sleep(600)
assert (job["prompt_words"], job["new_tokens"]) == (5, 3)
if job["what"] == "start":
    say({"start": {"load_ms": 2.0, "first_inference_ms": 3.0}})
else:
    for number in range(job["samples"]):
        say({"round": {"model": 1.0 + number}, "prefill_ms": {"model": 24.0}})
    say({"end": {"calls_per_sample": {}, "conditions": {"prompt_tokens": 11, "new_tokens": 3}}})
time.sleep(600)
"""


@pytest.fixture
def texts(tmp_path: Path) -> Callable[..., Workload]:
    """A workload of a language model, on a prompt of 12 tokens."""

    def make(folder: Path, runtime: str = "llama_cpp", **changes: Any) -> Workload:
        np.savez(tmp_path / "prompt.npz", input_ids=np.arange(12)[None])
        said = {"threads": 1, "samples": 3, "starts": {"model": 1}, "warmup": 1, "min_sample_ms": 5, "new_tokens": 4}
        subjects = {"model": Subject(runtime=runtime, folder=folder)}
        return Workload(subjects=subjects, inputs=tmp_path / "prompt.npz", **{**said, **changes})

    return make


def test_what_is_said_of_a_language_model(double: Any, texts: Any, told: Told, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"a model")
    timings = double(TEXTS).measure(texts(tmp_path), told)
    assert timings.latency_ms == {"model": (1.0, 2.0, 3.0)} and timings.prefill_ms == {"model": (24.0, 24.0, 24.0)}
    assert timings.memory_gb_per_s == ()
    assert (timings.conditions["prompt_tokens"], timings.conditions["new_tokens"]) == (11, 3)


def test_language_models_as_onnx_files_and_answers_of_gguf_files_are_refused(
    double: Any, texts: Any, told: Told, tmp_path: Path
) -> None:
    with pytest.raises(DeviceProblem, match="as GGUF files, and nothing else is; these are of onnxruntime"):
        double("").measure(texts(tmp_path, "onnxruntime"), told)
    work = texts(tmp_path)
    with pytest.raises(DeviceProblem, match="does not say what a GGUF file answers"):
        double("").outputs(work.subjects["model"], work.inputs, told)


OUTPUTS = """
import struct
job = json.loads(get("job.json"))
(one,) = job["inputs"]
assert (one["name"], one["type"], one["shape"]) == ("x", "float32", [4, 8])
assert get(one["path"]) == struct.pack("<32f", *[1.0] * 32)
post("outputs", struct.pack("<8f", *range(8)))
say({"outputs": {"shape": [4, SIZE]}})
time.sleep(600)
"""


def test_answers_come_back_as_they_are(double: Any, work: Any, told: Told) -> None:
    made = work()
    found = double(OUTPUTS.replace("SIZE", "2")).outputs(made.subjects["model"], made.inputs, told)
    assert found.dtype == np.float32 and found.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(DeviceProblem, match="did not arrive whole"):
        double(OUTPUTS.replace("SIZE", "3")).outputs(made.subjects["model"], made.inputs, told)


def test_an_input_of_another_type(tmp_path: Path, double: Any, work: Any, told: Told) -> None:
    np.savez(tmp_path / "odd.npz", x=np.ones((2, 2), np.complex64))
    with pytest.raises(DeviceProblem, match="no input 'x' of type complex64"):
        double("").outputs(work().subjects["model"], tmp_path / "odd.npz", told)


def test_an_interrupt_leaves_nothing(double: Any, work: Any, told: Told, tmp_path: Path, scratch: Path) -> None:
    link = double(f"open({str(tmp_path / 'started')!r}, 'w').close(); time.sleep(600)")

    def interrupt() -> None:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), 2)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        link.measure(work(), told)
    assert leftovers() == [] and not list(scratch.glob("edgeforge-*"))


# -- the real thing


@pytest.fixture(scope="module")
def chromium(needs: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The link with the installed browser, and onnxruntime-web from npm."""
    program = needs("chromium", "chromium")
    needs("npm", "npm")
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_browser, "folder", lambda: folder)
        BrowserRunner().fetch(folder, say=lambda text: None)
        yield Browser(binary=Path(program))


@pytest.mark.real
@pytest.mark.parametrize("threads", [1, 2])
def test_chromium_measures_and_leaves_nothing(
    chromium: Browser, tmp_path: Path, workload: Any, dense: Any, told: Told, threads: int, scratch: Path
) -> None:
    small, large = dense(tmp_path / "small", 16), dense(tmp_path / "large", 1500)
    work = workload(
        tmp_path, {"model": small, "baseline": large}, threads=threads, sustained={"model": 0.5}, min_sample_ms=2.0
    )
    timings = chromium.measure(work, told)
    assert {name: len(samples) for name, samples in timings.latency_ms.items()} == {"model": 30, "baseline": 30}
    # 1500 x 1500 multiply-accumulates; 16 x 16 take less than that on any machine.
    assert np.median(timings.latency_ms["baseline"]) > 3 * np.median(timings.latency_ms["model"])
    assert timings.calls_per_sample["model"] > timings.calls_per_sample["baseline"]
    starts = {name: found[0] for name, found in timings.starts.items()}
    assert all(start.load_ms > 0 and start.first_inference_ms > 0 for start in starts.values())
    if sys.platform == "linux":
        small_mb, large_mb = (starts[name].peak_rss_mb for name in ("model", "baseline"))
        assert small_mb is not None and large_mb is not None and 30 < small_mb < 1000
        assert large_mb > small_mb + 4 * 1500**2 / 1e6, "the weights are in it"
    assert "ONNX Runtime Web 1.30.0" in timings.conditions["runtime_on_device"]
    times = [at_s for at_s, _ in timings.sustained["model"]]
    assert times == sorted(times) and times[0] == 0
    assert told.warnings == [] and leftovers() == [] and not list(scratch.glob("edgeforge-*"))


@pytest.mark.real
def test_chromium_answers_as_onnx_runtime_does(chromium: Browser, tmp_path: Path, dense: Any, told: Told) -> None:
    folder = dense(tmp_path / "model", 16)
    np.savez(tmp_path / "shard.npz", x=np.random.default_rng(0).standard_normal((70, 8)).astype(np.float32))
    subject = Subject(runtime="onnxruntime", folder=folder)
    found = chromium.outputs(subject, tmp_path / "shard.npz", told)
    expected = link_of("local").outputs(subject, tmp_path / "shard.npz", told)
    assert found.shape == (70, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.real
def test_chromium_names_a_damaged_model(chromium: Browser, work: Any, told: Told) -> None:
    with pytest.raises(DeviceProblem, match=r"the start of model failed: .*(protobuf|model)"):
        chromium.measure(work(), told)
    assert leftovers() == []


@pytest.mark.real
@pytest.mark.parametrize("threads", [1, 2])
def test_chromium_times_a_language_model(
    chromium: Browser, tales: Any, texts: Any, told: Told, scratch: Path, threads: int
) -> None:
    from edgeforge.exporters.gguf import Gguf

    job = tales.job(tales.root / f"llama.gguf-{threads}")
    Gguf().export(tales.torch("llama"), job)
    timings = chromium.measure(texts(job.folder, threads=threads, sustained={"model": 0.2}), told)
    assert len(timings.latency_ms["model"]) == len(timings.prefill_ms["model"]) == 3
    assert all(value > 0 for value in (*timings.latency_ms["model"], *timings.prefill_ms["model"]))
    assert 10 <= timings.conditions["prompt_tokens"] <= 12 and timings.conditions["new_tokens"] == 4
    assert "wllama, llama.cpp b" in timings.conditions["runtime_on_device"]
    assert timings.sustained["model"]
    (start,) = timings.starts["model"]
    assert start.load_ms > 0 and start.first_inference_ms > 0
    assert told.warnings == [] and leftovers() == [] and not list(scratch.glob("edgeforge-*"))


@pytest.mark.real
def test_chromium_names_a_damaged_gguf_file(
    chromium: Browser, texts: Any, told: Told, tmp_path: Path, scratch: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(DeviceProblem, match=r"the probe of model failed: llama\.cpp cannot load it: gguf_init"):
        chromium.measure(texts(tmp_path), told)
    assert leftovers() == [] and not list(scratch.glob("edgeforge-*"))


PIPELINE: dict[str, Any] = {
    "name": "tiny",
    "task": "image_classification",
    "model": {
        "kind": "config",
        "architecture": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
    "stages": [{"kind": "train", "epochs": 1, "batch_size": 32, "learning_rate": 1e-2}],
    "targets": [
        {"name": "page", "quantize": {"kind": "int8_static", "samples": 32}, "export": "onnx", "devices": ["browser"]}
    ],
    "budgets": {"slower_than_parent": "allow"},
}


class Watching:
    def started(self, step: Any, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def finished(self, step: Any, result: Any) -> None:
        pass

    def warn(self, message: str) -> None:
        pass


@pytest.mark.real
def test_a_pipeline_measures_its_target_in_the_browser(chromium: Browser, tmp_path: Path, monkeypatch: Any) -> None:
    from edgeforge.pipeline import parse
    from edgeforge.plan import build
    from edgeforge.run import execute
    from edgeforge.store import Store

    monkeypatch.setenv(_browser.VARIABLE, str(chromium.binary))
    plan = build(parse(yaml.safe_dump(PIPELINE).encode(), "test.yaml"))
    outcome = execute(plan, Store(tmp_path / "store"), tmp_path / "out", watcher=Watching())
    assert outcome.error is None
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "report.json").read_text())["artifacts"]}
    found = {row["metric"]: row for row in rows["page"]["measurements"]}
    assert found["latency_ms"]["n"] == 40 and found["latency_ms"]["median"] > 0
    assert {"load_ms", "first_inference_ms"} <= set(found)
    assert {(row["device"], row["origin"], row["runtime"]) for row in found.values()} == {
        ("browser", "measured", "onnxruntime")
    }
