"""The worker's clock and sampling, with a session whose cost is known."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from edgeforge.links import _runner, _worker
from edgeforge.links._answers import Answers
from edgeforge.links._programs import NativeRunner, PythonWorker


class Sleeper:
    """A session that takes `seconds` per call."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def run(self, inputs: object) -> None:
        self.calls += 1
        time.sleep(self.seconds)


class FakeClock:
    """A clock that a fake session moves."""

    def __init__(self) -> None:
        self.time = 0

    def now_ns(self) -> int:
        return self.time


class Fake:
    def __init__(self, clock: FakeClock, cost_ns: int) -> None:
        self.clock, self.cost_ns, self.calls = clock, cost_ns, 0

    def run(self, inputs: object) -> None:
        self.calls += 1
        self.clock.time += self.cost_ns


def test_a_sample_is_the_mean_of_enough_calls() -> None:
    clock = FakeClock()
    session = Fake(clock, cost_ns=30_000)
    lap = _worker._Lap(session, [{}], 5.0, clock)
    assert lap.calls == 167  # 5 ms / 0.03 ms, rounded up
    assert lap.sample() == pytest.approx(0.03)


def test_a_sample_lasts_long_enough_when_the_machine_speeds_up() -> None:
    clock = FakeClock()
    session = Fake(clock, cost_ns=30_000)
    lap = _worker._Lap(session, [{}], 5.0, clock)
    session.cost_ns, session.calls, before = 10_000, 0, clock.time
    assert lap.sample() == pytest.approx(0.01)
    assert clock.time - before >= 5_000_000
    assert session.calls - 1 == pytest.approx(500, abs=21), "one warm call, then 5 ms of calls"


def test_a_call_longer_than_a_sample_is_one_sample() -> None:
    clock = FakeClock()
    lap = _worker._Lap(Fake(clock, cost_ns=80_000_000), [{}], 5.0, clock)
    assert lap.calls == 1
    assert lap.sample() == pytest.approx(80)


def test_feeds_are_taken_in_turn() -> None:
    clock, seen = FakeClock(), []

    class Recording(Fake):
        def run(self, inputs: object) -> None:
            seen.append(inputs)
            super().run(inputs)

    _worker._Lap(Recording(clock, 4_000_000), [{"x": 1}, {"x": 2}, {"x": 3}], 5.0, clock)
    assert seen[:4] == [{"x": 1}, {"x": 2}, {"x": 3}, {"x": 1}]


def test_sleeping_counts_but_waiting_for_a_core_does_not() -> None:
    """A blocked runtime is slow; a runtime that another program keeps off its core is not."""
    clock = _worker.Clock()
    begin = clock.now_ns()
    Sleeper(0.05).run(None)
    assert (clock.now_ns() - begin) / 1e6 >= 49


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the waiting")
def test_a_shared_core_does_not_make_a_call_slower() -> None:
    code = """
import os, sys, time
from edgeforge.links._worker import Clock
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
clock = Clock()
wall, net = time.perf_counter_ns(), clock.now_ns()
processor = time.process_time_ns()
while time.process_time_ns() - processor < 400e6:
    pass
print((time.perf_counter_ns() - wall) / 1e6, (clock.now_ns() - net) / 1e6, clock.waiting_share())
"""
    rivals = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nwhile True: pass",
            ]
        )
        for _ in range(2)
    ]
    try:
        time.sleep(0.3)
        out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    wall, net, waiting = map(float, out.split())
    assert wall > 1.3 * 400, "the rivals took their share"
    assert net == pytest.approx(400, rel=0.1)
    assert waiting == pytest.approx(1 - net / wall, abs=0.1)


def test_the_file_alone_serves_a_device_without_edgeforge(tmp_path, workload, dense) -> None:
    device = tmp_path / "device"
    device.mkdir()
    shutil.copy(_worker.__file__, device / "worker.py")
    (device / "edgeforge.py").write_text("raise SystemExit('a device has no edgeforge')")
    dense(tmp_path / "model", 16)
    job = {
        **workload(tmp_path, {"model": tmp_path / "model"}).model_dump(mode="json"),
        "what": "race",
        "cores": [],
        "sustained": {"model": 0.2},
    }
    done = subprocess.run(
        [sys.executable, "worker.py"], cwd=device, input=json.dumps(job), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answers = Answers.of(done.stdout)
    assert len(answers.rounds) == 30 and answers.end is not None
    assert answers.sustained["model"] and answers.processor_s > 0
    assert str(answers.runtime).startswith("ONNX Runtime 1.")


def test_a_damaged_file_is_an_answer_and_no_crash(tmp_path, workload) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"not a model")
    plain = workload(tmp_path, {"model": tmp_path / "model"}).model_dump(mode="json")
    job = {**plain, "what": "start", "cores": []}
    command = [sys.executable, _worker.__file__]
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=True)
    assert "cannot open it" in str(Answers.of(done.stdout).error)


def test_a_worker_that_nobody_hears_says_so_in_its_exit_code(tmp_path, workload, dense) -> None:
    """The shell that started it on a device then clears up (see `_remote`)."""
    endless = workload(tmp_path, {"model": dense(tmp_path / "model", 16)}, samples=10_000_000)
    job = {**endless.model_dump(mode="json"), "what": "race", "cores": []}
    process = subprocess.Popen([sys.executable, _worker.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(job).encode())
    process.stdin.close()
    while b"round" not in process.stdout.readline():
        pass
    process.stdout.close()
    assert process.wait(timeout=30) == 141


def test_lines_that_are_cut_off_or_printed_by_libraries_are_left_out() -> None:
    said = 'WARNING: linker\n{"round": {"model": 1.5}}\n[1, 2]\n{"round": {"model": 2.5}}\n{"round": {"mo'
    answers = Answers.of(said)
    assert [one["model"] for one in answers.rounds] == [1.5, 2.5]
    assert not answers.finished


def test_both_runners_take_the_same_job(tmp_path, workload, dense, native_runner) -> None:
    """The programs' own samples of one model, in C and in Python; the rest of the protocol is in test_adb."""
    (tmp_path / "scratch").mkdir()
    job = workload(tmp_path, {"model": dense(tmp_path / "model", 700)}, min_sample_ms=5.0)
    medians = {}
    for program in (PythonWorker(sys.executable), NativeRunner(_runner.MACHINES[native_runner])):
        folder = tmp_path / type(program).__name__
        for name, path in program.files(job.inputs, tmp_path / "scratch").items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
        shutil.copytree(tmp_path / "model", folder / "subjects" / "model")
        (folder / "race.job").write_text(program.job("race", job, ["model"]))
        command = ["sh", "-c", program.command("race", "race.job")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        answers = Answers.of(done.stdout)
        assert len(answers.rounds) == 30 and answers.end is not None
        assert answers.end["calls_per_sample"]["model"] > 5
        medians[type(program).__name__] = np.median([one["model"] for one in answers.rounds])
    # 700 x 700 products take 30 us or more, what Python adds to a call is below 10 us, and machines are shared.
    assert 0.4 < medians["NativeRunner"] / medians["PythonWorker"] < 2.5


def test_a_device_without_cuda_says_so(tmp_path, workload, dense) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    job = workload(tmp_path, {"model": dense(tmp_path / "model", 16)})
    text = PythonWorker(sys.executable, "cuda").job("race", job, ["model"])
    plain = {**json.loads(text), "inputs": str(job.inputs)}
    assert plain["processor"] == "cuda"
    done = subprocess.run(
        [sys.executable, _worker.__file__], input=json.dumps(plain), capture_output=True, text=True, check=True
    )
    assert "has no CUDA there: install onnxruntime-gpu" in str(Answers.of(done.stdout).error)


def test_a_session_that_would_run_on_the_cpu_is_refused(tmp_path, monkeypatch, dense) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    real = onnxruntime.InferenceSession
    asked = []

    def on_the_cpu(*model: object, providers: list[str], **rest: object) -> object:
        asked.append((providers, rest))
        return real(*model, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    files = _worker.OnnxFiles()
    opened = files.prepare("onnxruntime", "cuda")
    with pytest.raises(_worker.Refusal, match="CUDAExecutionProvider does not start there"):
        opened(dense(tmp_path / "model", 16), 1)
    assert asked == [(["CUDAExecutionProvider", "CPUExecutionProvider"], {"enable_fallback": 0})]
