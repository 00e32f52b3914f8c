"""Devices that a user describes in files of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeforge import device
from edgeforge.core.errors import ConfigurationError, IncompatiblePlanError
from edgeforge.core.spec import digest_of
from edgeforge.links import link_of
from edgeforge.stages import benchmark
from edgeforge.stages.benchmark import Benchmark

BOARD = """\
name: my_board
family: laptop
title: The board in the cellar
instruction_set: aarch64
link: ssh
connection: {host: pi@192.0.2.7}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Write a device file into the user's folder."""
    for module in (device, benchmark):
        monkeypatch.setattr(module, "own_folder", lambda: tmp_path)

    def make(name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        device.profiles.cache_clear()

    device.profiles.cache_clear()
    yield make
    device.profiles.cache_clear()


def test_a_users_own_device_is_found_beside_the_shipped_ones(write) -> None:
    write("my_board.yaml", BOARD)
    found = device.profile("my_board")
    assert found.layout == "arm"
    assert link_of(str(found.link), found.connection).host == "pi@192.0.2.7"
    assert device.profile("host_cpu").link == "local"
    Benchmark(device="my_board").check()


def test_another_address_is_another_key(write) -> None:
    write("my_board.yaml", BOARD)
    before = digest_of(Benchmark(device="my_board").identity())
    write("my_board.yaml", BOARD.replace("192.0.2.7", "192.0.2.8"))
    assert digest_of(Benchmark(device="my_board").identity()) != before


def test_a_file_of_a_shipped_devices_name_says_only_what_is_different(write) -> None:
    shipped = device.profile("pixel_8")
    write("pixel_8.yaml", "link: adb\nconnection: {serial: 1A2B}\n")
    own = device.profile("pixel_8")
    assert own == shipped.model_copy(update={"link": "adb", "connection": {"serial": "1A2B"}})
    assert link_of(str(own.link), own.connection).serial == "1A2B"


def test_a_device_that_is_not_set_up_says_where_to_write_it(tmp_path, write) -> None:
    with pytest.raises(IncompatiblePlanError, match="cannot be reached from here") as found:
        Benchmark(device="pixel_8").check()
    assert f"`link: adb` in {tmp_path / 'pixel_8.yaml'}" in str(found.value)
    with pytest.raises(IncompatiblePlanError, match=r"`link: adb` in .*; a target that names it gets an estimate"):
        Benchmark(device="galaxy_s24").check()
    with pytest.raises(IncompatiblePlanError, match=r"edgeforge bundle RUN --target ios` .*report RUN --merge"):
        Benchmark(device="iphone_16").check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOARD.replace("title", "titel"), "unknown key 'titel'"),
        (BOARD.replace("my_board", "other"), "its name must be that of the file: my_board"),
        ("name: [", "no device file"),
        ("just words", "no device file"),
        (BOARD.replace("laptop", "toaster"), "family"),
    ],
)
def test_a_mistake_in_it_is_one_line(write, text: str, message: str) -> None:
    write("my_board.yaml", text)
    with pytest.raises(ConfigurationError, match=message):
        device.profile("my_board")


def test_a_link_that_is_not_there_is_named(write) -> None:
    write("my_board.yaml", BOARD.replace("link: ssh", "link: shh"))
    found = device.profile("my_board")
    with pytest.raises(ConfigurationError, match="unknown link 'shh'; perhaps you meant 'ssh'"):
        link_of(str(found.link), found.connection)
