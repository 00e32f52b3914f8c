"""The worker's clock and sampling, with a session whose cost is known."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from edgeforge.links import _worker


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
