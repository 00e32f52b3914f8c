from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.links import Subject, _conditions, link_of, local
from edgeforge.links._answers import Answers
from edgeforge.runtimes import _cuda

pytest.importorskip("onnx")


def test_the_larger_model_is_slower_and_both_are_sampled_in_every_round(tmp_path, workload, dense, silent) -> None:
    small, large = dense(tmp_path / "small", 16), dense(tmp_path / "large", 1500)
    timings = link_of("local").measure(workload(tmp_path, {"model": small, "baseline": large}), silent)
    assert {name: len(samples) for name, samples in timings.latency_ms.items()} == {"model": 30, "baseline": 30}
    # 1500 x 1500 multiply-accumulates take at least 0.05 ms on one core; 16 x 16 take less than that in any case.
    assert np.median(timings.latency_ms["baseline"]) > 3 * np.median(timings.latency_ms["model"])
    assert timings.calls_per_sample["model"] > timings.calls_per_sample["baseline"]
    json.dumps(timings.model_dump(mode="json"), allow_nan=False)


def test_peak_memory_is_the_workers_own(tmp_path, workload, dense, silent) -> None:
    """ru_maxrss would say what this process holds, handed down through fork and exec."""
    ballast = np.ones(60_000_000)  # 480 MB
    subjects = {"small": dense(tmp_path / "small", 16), "large": dense(tmp_path / "large", 3000)}
    timings = link_of("local").measure(workload(tmp_path, subjects), silent)
    small, large = (timings.starts[name][0].peak_rss_mb for name in ("small", "large"))
    assert small < 300 < ballast.nbytes / 1e6
    weights_mb = 4 * 3000**2 / 1e6
    assert small + weights_mb < large
    assert 0 < timings.starts["small"][0].load_ms < 300, "the import of the library is no part of the load time"


def test_a_damaged_model_is_named(tmp_path, workload, silent) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(EnvironmentProblem, match=r"start of model.*cannot open"):
        link_of("local").measure(workload(tmp_path, {"model": folder}), silent)


@pytest.fixture
def job(workload, dense) -> Callable[..., dict[str, Any]]:
    def make(tmp_path: Path, **changes: Any) -> dict[str, Any]:
        work = workload(tmp_path, {"model": dense(tmp_path / "model", 16)}, **changes)
        return local._job("race", work, [], "model")

    return make


def test_a_crash_is_reported_with_its_signal(tmp_path, monkeypatch, job) -> None:
    broken = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: real(broken, **rest))
    with pytest.raises(EnvironmentProblem, match="exit code -11"):
        local._ask(job(tmp_path))


def test_a_worker_that_hangs_is_ended(tmp_path, job) -> None:
    endless = job(tmp_path, samples=10_000_000)
    with pytest.raises(EnvironmentProblem, match="did not end within 2 s"):
        local._ask(endless, timeout_s=2)
    assert workers() == []


def test_an_interrupt_ends_the_worker(tmp_path, job) -> None:
    endless = job(tmp_path, samples=10_000_000)

    def interrupt() -> None:
        while not workers():
            time.sleep(0.05)
        os.kill(os.getpid(), 2)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        local._ask(endless, timeout_s=60)
    assert workers() == []


def test_a_worker_whose_parent_is_killed_ends_by_itself(tmp_path, job) -> None:
    endless = job(tmp_path, samples=10_000_000)
    code = f"from edgeforge.links import local; local._ask({endless!r})"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    children: list[psutil.Process] = []
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        children = psutil.Process(parent.pid).children()
    time.sleep(1.5)  # let it open the model
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()
    assert len(gone) == 1 and not alive


def workers() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children() if "edgeforge.links._local_worker" in " ".join(child.cmdline())
    ]


def test_threads_are_limited_for_every_library(tmp_path) -> None:
    found = local._environment(3)
    assert {found[name] for name in local.THREAD_VARIABLES} == {"3"}
    assert found["PATH"] == os.environ["PATH"]


def test_a_file_in_the_users_folder_shadows_no_module(tmp_path, monkeypatch, job) -> None:
    user = tmp_path / "user"
    user.mkdir()
    (user / "json.py").write_text("raise SystemExit('shadowed')")
    (user / "edgeforge.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(user)
    assert len(local._ask(job(tmp_path, samples=30)).rounds) == 30


def test_idle_cores_are_none_where_all_are_needed(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: [90.0, 0.0, 0.0, 10.0])
    assert local.idle_cores(2) == []
    assert local.idle_cores(1) == [3], "core 0 is busier, 1 and 2 may not be used"


def test_watching_names_busy_programs_and_not_this_one() -> None:
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with local.watching() as conditions:
            until = time.monotonic() + 1
            while time.monotonic() < until:
                pass
    finally:
        spinning.kill()
        spinning.wait()
    shares = {item["name"]: item["cpu_percent"] for item in conditions["other_programs"]}
    name = psutil.Process().name()
    assert any(program.startswith("python") for program in shares), shares
    assert set(conditions) >= {"load_average_before", "load_average_after", "cpu_mhz_before", "seconds"}
    assert str(os.getpid()) not in json.dumps(conditions), f"{name}: programs are given by name only"


def test_the_processor_is_as_hot_as_it_says(monkeypatch) -> None:
    states = iter([{"acpitz": 70.0, "x86_pkg_temp": 45.0}, {"acpitz": 71.0, "x86_pkg_temp": 63.0}])
    monkeypatch.setattr(_conditions, "here", lambda: _conditions.State(at_s=0, words={}, temperatures=next(states)))
    with local.watching() as conditions:
        pass
    assert conditions["temperature_zone"] == "x86_pkg_temp"
    assert (conditions["temperature_c_before"], conditions["temperature_c_after"]) == (45.0, 63.0)


def test_what_it_answers_is_what_the_runtime_answers(tmp_path, dense, silent) -> None:
    from edgeforge.runtimes.onnxruntime import Onnxruntime

    folder = dense(tmp_path / "model", 16)
    x = np.random.default_rng(0).standard_normal((70, 8)).astype(np.float32)
    np.savez(tmp_path / "shard.npz", x=x)
    found = link_of("local").outputs(Subject(runtime="onnxruntime", folder=folder), tmp_path / "shard.npz", silent)
    expected = np.concatenate([Onnxruntime().open(folder).run({"x": row[None]}) for row in x])
    assert found.shape == (70, 2)
    assert np.array_equal(found, expected)


def test_a_run_without_a_pause_lasts_as_long_as_asked(tmp_path, workload, dense, silent) -> None:
    subjects = {"model": dense(tmp_path / "small", 16), "baseline": dense(tmp_path / "large", 64)}
    timings = link_of("local").measure(workload(tmp_path, subjects, sustained={"model": 1.0}), silent)
    assert set(timings.sustained) == {"model"}
    times = [at_s for at_s, _ in timings.sustained["model"]]
    assert times == sorted(times) and times[0] == 0 and 0.5 < times[-1] < 1.0
    assert all(latency > 0 for _, latency in timings.sustained["model"])


def raced(waiting: float | None) -> Answers:
    return Answers.of(json.dumps({"end": {"calls_per_sample": {}, "waiting_share": waiting}}))


def test_programs_that_held_the_core_are_said_though_none_was_seen() -> None:
    """A build starts many that live for less than the measurement."""
    assert local.busy(None, raced(0.04)) is None
    assert local.busy(None, raced(None)) is None
    held = "other programs held the measured program's core 40 % of the time"
    assert local.busy(None, raced(0.4)) == f"the machine was busy: {held}"
    assert local.busy("the machine was busy: cc (90 % of a core)", raced(0.4)).endswith(f"cc (90 % of a core); {held}")
    assert local.busy("the machine was busy: cc (90 % of a core)", raced(0.0)).endswith("cc (90 % of a core)")


def test_a_gpu_is_named_and_every_job_is_for_it(tmp_path, monkeypatch, workload, dense, silent) -> None:
    jobs = []

    def ask(job: dict[str, Any]) -> Answers:
        jobs.append(job)
        if job["what"] == "start":
            return Answers.of('{"start": {"load_ms": 1, "first_inference_ms": 1, "peak_rss_mb": 1}}')
        return Answers.of(
            '{"round": {"model": 1.5}, "memory_gb_per_s": 9.5}\n{"end": {"calls_per_sample": {}, "waiting_share": 0}}'
        )

    monkeypatch.setattr(local, "_ask", ask)
    monkeypatch.setattr(_cuda, "names", lambda: ["NVIDIA L4"])
    work = workload(tmp_path, {"model": dense(tmp_path / "model", 16)})
    timings = link_of("local", {"processor": "cuda"}).measure(work, silent)
    assert [(job["what"], job["processor"]) for job in jobs] == [("start", "cuda"), ("race", "cuda")]
    assert timings.conditions["gpu"] == "NVIDIA L4"
    assert timings.memory_gb_per_s == (), "that of the processor says nothing of a GPU"
    assert "on a GPU yet" in timings.conditions["hardware"]
    timings = link_of("local").measure(work, silent)
    assert jobs[-1]["processor"] == "cpu"
    assert timings.memory_gb_per_s == (9.5,)
    assert not {"gpu", "hardware"} & timings.conditions.keys()


def test_without_a_gpu_the_worker_refuses(tmp_path, monkeypatch, workload, dense, silent) -> None:
    link = link_of("local", {"processor": "cuda"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no CUDA GPU is here" in str(link.unavailable("onnxruntime"))
    assert link.unavailable("coreml_reference") == "coreml_reference does not compute on a GPU here"
    work = workload(tmp_path, {"model": dense(tmp_path / "model", 16)}, starts={})
    with pytest.raises(EnvironmentProblem, match="race of model failed: no CUDA GPU is here"):
        link.measure(work, silent)
