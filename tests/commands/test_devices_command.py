from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from edgeforge import device
from edgeforge.commands import devices
from edgeforge.device import profiles, shipped_folder


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path)
    profiles.cache_clear()
    yield tmp_path
    profiles.cache_clear()


def table() -> list[str]:
    stream = io.StringIO()
    devices.show(Console(file=stream, width=100))
    return stream.getvalue().splitlines()


def test_one_line_for_each_device_within_a_hundred_columns() -> None:
    lines = table()[: len(profiles()) + 1]
    assert max(map(len, lines)) <= 100
    named = [line.split()[0] for line in lines[1:]]
    assert sorted(named) == sorted(profiles())


def test_states(own: Path) -> None:
    raw = yaml.safe_load((shipped_folder() / "pixel_8.yaml").read_text(encoding="utf-8"))
    (own / "pixel_8.yaml").write_text(yaml.safe_dump({**raw, "link": "adb"}), encoding="utf-8")
    states = {name: devices.reached(profile)[0] for name, profile in profiles().items()}
    assert states["host_cpu"] == "available"
    assert states["pixel_8"] == "configured"
    assert states["galaxy_s24"] == "estimated"
    assert states["h100"] == "none"


def test_json_has_every_fact_with_its_source_and_what_can_be_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    devices.show(Console(), as_json=True)
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert found.keys() == profiles().keys()
    phone = found["snapdragon_7_gen_4"]
    assert phone["chip"]["source"].startswith("quic/ai-hub-models")
    assert phone["state"] == "estimated"
    assert {(item["unit"], item["precision"]) for item in phone["estimates"]} >= {("cpu", "w8a8"), ("npu", "w8a8")}
    assert all(item["rows"] >= 10 and 0 < item["error"] < 1 for item in phone["estimates"])


def test_a_link_that_cannot_work_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeforge.links.local import Local

    monkeypatch.setattr(Local, "unavailable", lambda self, runtime: "onnxruntime is not installed")
    assert devices.reached(profiles()["host_cpu"]) == ("unavailable", "onnxruntime is not installed")
    assert any("onnxruntime" in line for line in table())


def test_what_must_be_installed_first_is_said_once_and_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeforge.links.qemu import Qemu

    command = f"apt-get install {' '.join(f'package-{number}' for number in range(20))}"
    monkeypatch.setattr(Qemu, "missing", lambda self: f"nothing is there ({command})")
    assert devices.reached(profiles()["emulated_a76"]) == ("unavailable", f"nothing is there ({command})")
    (line,) = (line for line in table() if "package" in line)
    assert line == f"not now: emulated_a76, emulated_i8mm: nothing is there ({command})"
    assert sum("not now, see below" in line for line in table() if line.startswith("emulated_")) == 2
