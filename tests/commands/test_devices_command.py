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
from edgeforge.links import _runner, link_of
from edgeforge.links.adb import Adb
from edgeforge.plan import _not_at_hand


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path)
    profiles.cache_clear()
    yield tmp_path
    profiles.cache_clear()


def table(width: int = 100) -> list[str]:
    stream = io.StringIO()
    devices.show(Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_one_line_for_each_device_within_a_hundred_columns() -> None:
    lines = table()[: len(profiles()) + 1]
    assert max(map(len, lines)) <= 100
    named = [line.split()[0] for line in lines[1:]]
    assert sorted(named) == sorted(profiles())


def test_names_can_be_copied_from_a_narrow_terminal() -> None:
    first_words = {line.split(" ")[0] for line in table(80)}
    assert profiles().keys() <= first_words


def test_what_only_a_bundle_measures_says_so() -> None:
    (line,) = (line for line in table() if line.startswith("iphone_16"))
    assert line.split()[-4:] == ["by", "a", "bundle", "bundle"]
    assert any("edgeforge bundle RUN --target ios" in line and "report RUN --merge" in line for line in table(80))
    (mac,) = (line for line in table() if line.startswith("apple_m4"))
    assert mac.rstrip().endswith("ssh, bundle")


def test_a_device_that_is_set_up_on_a_machine_without_its_tools(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by `devices` and by every plan, before any work."""
    (own / "pixel_8.yaml").write_text("link: adb\n", encoding="utf-8")
    (own / "raspberry_pi_5.yaml").write_text("link: ssh\n", encoding="utf-8")
    profiles.cache_clear()
    monkeypatch.setattr(_runner, "folder", lambda: tmp_path / "runners")
    monkeypatch.setenv("PATH", str(tmp_path))
    no_adb = "the command `adb` is not installed (apt-get install adb, or Android's platform-tools)"
    assert devices.reached(profiles()["pixel_8"]) == ("unavailable", no_adb)
    assert no_adb in str(_not_at_hand(profiles()["pixel_8"], "onnx"))
    for name in ("adb", "ssh", "gcc", "aarch64-linux-gnu-gcc"):
        (tmp_path / name).touch(mode=0o755)
    no_runner = "the runner for arm64-v8a is not on this machine yet (edgeforge fetch android-runner)"
    assert devices.reached(profiles()["pixel_8"]) == ("unavailable", no_runner)
    state, why = devices.reached(profiles()["raspberry_pi_5"])
    assert state == "unavailable" and "nobody has said where this device is" in str(why)
    assert link_of("ssh", {"host": "pi"}).missing() is None
    assert link_of("ssh", {"host": "pi", "runner": "native"}).missing() == no_runner
    (tmp_path / "runners").mkdir()
    (tmp_path / "runners" / _runner.library("aarch64")).touch()
    assert devices.reached(profiles()["pixel_8"]) == ("configured", None)
    assert _not_at_hand(profiles()["pixel_8"], "onnx") is None


def test_a_plan_says_how_a_device_that_is_not_set_up_is_reached() -> None:
    said = {name: _not_at_hand(profiles()[name], "coreml") for name in ("pixel_8", "iphone_16", "galaxy_s24")}
    assert said["pixel_8"] == (
        "pixel_8 cannot be reached yet; its rows will be absent; docs/devices.md says how it is connected"
    )
    assert str(said["iphone_16"]).endswith(str(profiles()["iphone_16"].by_bundle))
    assert said["galaxy_s24"] == "galaxy_s24 cannot be reached yet; its latency is estimated, not measured"


def test_states(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adb, "missing", lambda self: None)
    raw = yaml.safe_load((shipped_folder() / "pixel_8.yaml").read_text(encoding="utf-8"))
    (own / "pixel_8.yaml").write_text(yaml.safe_dump({**raw, "link": "adb"}), encoding="utf-8")
    states = {name: devices.reached(profile)[0] for name, profile in profiles().items()}
    assert states["host_cpu"] == "available"
    assert states["pixel_8"] == "configured"
    assert states["galaxy_s24"] == "estimated"
    assert states["iphone_15_pro"] == "bundle"
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
