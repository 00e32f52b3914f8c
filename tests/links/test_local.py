from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.links import Subject, Workload, link_of, local

helper = pytest.importorskip("onnx.helper")


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def dense(folder: Path, width: int) -> Path:
    """(N, 8) -> tanh of a product with an (8, width) and a (width, 2) matrix."""
    from onnx import TensorProto, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((8, width), (width, width), (width, 2))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 8), ("logits", 2))
    ]
    tensors = [numpy_helper.from_array(value, f"w{index}") for index, value in enumerate(weights)]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], tensors)
    folder.mkdir()
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    return folder


def workload(tmp_path: Path, subjects: dict[str, Path], **changes: Any) -> Workload:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.ones((4, 8), np.float32))
    return Workload(
        **{
            "subjects": {name: Subject(runtime="onnxruntime", folder=folder) for name, folder in subjects.items()},
            "inputs": inputs,
            "threads": 1,
            "samples": 30,
            "starts": dict.fromkeys(subjects, 1),
            "warmup": 1,
            "min_sample_ms": 1.0,
            **changes,
        }
    )


def test_the_larger_model_is_slower_and_both_are_sampled_in_every_round(tmp_path) -> None:
    small, large = dense(tmp_path / "small", 16), dense(tmp_path / "large", 1500)
    timings = link_of("local").measure(workload(tmp_path, {"model": small, "baseline": large}), Silent())
    assert {name: len(samples) for name, samples in timings.latency_ms.items()} == {"model": 30, "baseline": 30}
    # 1500 x 1500 multiply-accumulates take at least 0.05 ms on one core; 16 x 16 take less than that in any case.
    assert np.median(timings.latency_ms["baseline"]) > 3 * np.median(timings.latency_ms["model"])
    assert timings.calls_per_sample["model"] > timings.calls_per_sample["baseline"]
    json.dumps(timings.model_dump(mode="json"), allow_nan=False)


def test_peak_memory_is_the_workers_own(tmp_path) -> None:
    """ru_maxrss would say what this process holds, handed down through fork and exec."""
    ballast = np.ones(60_000_000)  # 480 MB
    subjects = {"small": dense(tmp_path / "small", 16), "large": dense(tmp_path / "large", 3000)}
    timings = link_of("local").measure(workload(tmp_path, subjects), Silent())
    small, large = (timings.starts[name][0].peak_rss_mb for name in ("small", "large"))
    assert small < 300 < ballast.nbytes / 1e6
    weights_mb = 4 * 3000**2 / 1e6
    assert small + weights_mb < large
    assert 0 < timings.starts["small"][0].load_ms < 300, "the import of the library is no part of the load time"


def test_a_damaged_model_is_named(tmp_path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(EnvironmentProblem, match=r"start of model.*cannot open"):
        link_of("local").measure(workload(tmp_path, {"model": folder}), Silent())


def job(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    work = workload(tmp_path, {"model": dense(tmp_path / "model", 16)}, **changes)
    return local._job("race", work, [], "model")


def test_a_crash_is_reported_with_its_signal(tmp_path, monkeypatch) -> None:
    broken = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: real(broken, **rest))
    with pytest.raises(EnvironmentProblem, match="exit code -11"):
        local._ask(job(tmp_path))


def test_a_worker_that_hangs_is_ended(tmp_path) -> None:
    endless = job(tmp_path, samples=10_000_000)
    with pytest.raises(EnvironmentProblem, match="did not end within 2 s"):
        local._ask(endless, timeout_s=2)
    assert workers() == []


def test_an_interrupt_ends_the_worker(tmp_path) -> None:
    endless = job(tmp_path, samples=10_000_000)

    def interrupt() -> None:
        while not workers():
            time.sleep(0.05)
        os.kill(os.getpid(), 2)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        local._ask(endless, timeout_s=60)
    assert workers() == []


def test_a_worker_whose_parent_is_killed_ends_by_itself(tmp_path) -> None:
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
    return [child for child in psutil.Process().children() if "edgeforge.links._worker" in " ".join(child.cmdline())]


def test_threads_are_limited_for_every_library(tmp_path) -> None:
    found = local._environment(3)
    assert {found[name] for name in local.THREAD_VARIABLES} == {"3"}
    assert found["PATH"] == os.environ["PATH"]


def test_a_file_in_the_users_folder_shadows_no_module(tmp_path, monkeypatch) -> None:
    user = tmp_path / "user"
    user.mkdir()
    (user / "json.py").write_text("raise SystemExit('shadowed')")
    (user / "edgeforge.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(user)
    assert local._ask(job(tmp_path, samples=30))["latency_ms"]["model"]


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
