"""What a device says of itself, in the words of real kernels."""

from __future__ import annotations

import os
import subprocess

import pytest

from edgeforge.links import _conditions

PHONE = """\
system Linux 5.15.0 aarch64
cores 9
model Pixel 8
soc Tensor G3
android 14
part 0xd46
part 0xd4d
part 0xd4e
load 3.10 2.05 1.90 2/3000 12345
ticks 1000 0 500 8000 100 50 50 0 0 0
clock 324000 1704000 sched_pixel
clock 2363000 2367000 sched_pixel
clock 500000 2914000 sched_pixel
zone 38500 battery
zone 61250 BIG
zone 44000 LITTLE
zone 0 modem
zone -273000 broken
"""
BOARD = "system Linux 6.6 aarch64\ncores 4\nmodel Raspberry Pi 5\nload 0.1 0.2 0.3 1/2 3\nzone 52 cpu-thermal\n"
MAC = "system Darwin 23.4.0 arm64\ncores 8\nmodel \ncpu Apple M3\nload  2.50 2.10 1.90 \nload \n"


def test_a_phone() -> None:
    state = _conditions.parse(PHONE)
    assert state.words["cpu"] == "Arm parts 0xd46, 0xd4d, 0xd4e"
    assert state.words["soc"] == "Tensor G3"
    assert state.cores == 9
    assert state.load == (3.10, 2.05, 1.90)
    assert state.ticks == (1600, 9700), "idle and waiting for input and output are not busy"
    assert state.clocks_mhz == (324, 2363, 500)
    assert max(state.clock_limits_mhz) == 2914
    assert state.governors == ("sched_pixel",)
    assert state.temperatures == {"battery": 38.5, "BIG": 61.2, "LITTLE": 44.0}


def test_the_hottest_zone_of_the_processor_is_followed() -> None:
    before, after = _conditions.parse(PHONE), _conditions.parse(PHONE.replace("61250 BIG", "83000 BIG"))
    found = _conditions.between(before, after, processor_s=0, waiting_share=None)
    assert found["temperature_zone"] == "BIG"
    assert (found["temperature_c_before"], found["temperature_c_after"]) == (61.2, 83.0)


def test_a_board_that_says_whole_degrees_and_a_mac() -> None:
    assert _conditions.parse(BOARD).temperatures == {"cpu-thermal": 52.0}
    mac = _conditions.parse(MAC)
    assert mac.words["cpu"] == "Apple M3" and mac.load == (2.5, 2.1, 1.9) and mac.ticks is None
    assert "model" not in mac.words
    found = _conditions.between(mac, mac, processor_s=1, waiting_share=None)
    assert found["busy"] is None and found["other_cores_busy"] is None


@pytest.mark.parametrize(
    ("own_s", "waiting", "busy"),
    [(40.0, 0.0, None), (8.0, 0.0, "3.2 of its 4 cores busy"), (40.0, 0.2, "held the measured program's core 20 %")],
)
def test_a_busy_device_is_noticed(own_s: float, waiting: float, busy: str | None) -> None:
    """Ten seconds, in which four cores did the work of four."""
    before = _conditions.State(at_s=0.0, words={"cores": "4"}, ticks=(0, 0))
    after = _conditions.State(at_s=10.0, words={"cores": "4"}, ticks=(1000, 1000))
    said = _conditions.between(before, after, processor_s=own_s, waiting_share=waiting)["busy"]
    assert (said is None) if busy is None else (busy in said)


def test_a_device_that_was_lost_has_only_the_state_before() -> None:
    found = _conditions.between(_conditions.parse(PHONE), None, processor_s=1, waiting_share=None)
    assert found["seconds"] is None and "load_average_after" not in found and found["busy"] is None


def test_of_several_sensors_of_one_name_the_hottest_counts() -> None:
    """As a PC says it: a chipset's zone, and the sensors of AMD's processors behind hwmon."""
    state = _conditions.parse("zone 90000 nvme\nzone 61250 k10temp\nzone 48000 k10temp\n")
    assert state.temperatures == {"nvme": 90.0, "k10temp": 61.2}
    assert _conditions.heat(state, None) == {"temperature_zone": "k10temp", "temperature_c_before": 61.2}


@pytest.mark.skipif(os.name != "posix", reason="asks a POSIX shell")
def test_any_shell_answers() -> None:
    done = subprocess.run(["sh", "-c", _conditions.COMMAND], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    state = _conditions.parse(done.stdout)
    assert state.cores == os.cpu_count()
    assert state.words["system"].startswith(os.uname().sysname)
    assert state.load
