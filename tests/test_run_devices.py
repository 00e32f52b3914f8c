"""A run whose target names a device that does not answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeforge import device
from edgeforge.core.errors import DeviceProblem
from edgeforge.links import adb
from edgeforge.pipeline import parse
from edgeforge.plan import build
from edgeforge.run import execute
from edgeforge.store import Store

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
    "targets": [{"name": "fp32_again", "export": "onnx", "devices": ["pixel_8"]}],
}


class Silent:
    def started(self, step: Any, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def finished(self, step: Any, result: Any) -> None:
        pass

    def warn(self, message: str) -> None:
        pass


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Say how a Pixel 8 is reached."""
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path)

    def write(text: str) -> None:
        (tmp_path / "pixel_8.yaml").write_text(text)
        device.profiles.cache_clear()

    yield write
    device.profiles.cache_clear()


@pytest.mark.slow
def test_a_phone_that_is_not_there_costs_its_rows_and_nothing_else(tmp_path, own, monkeypatch) -> None:
    own("link: adb\n")

    def nobody(self: adb.Adb) -> None:
        raise DeviceProblem("no Android device is connected", where="adb")

    monkeypatch.setattr(adb.Adb, "_shell", nobody)
    plan = build(parse(yaml.safe_dump(PIPELINE).encode(), "test.yaml"))
    outcome = execute(plan, Store(tmp_path / "store"), tmp_path / "out", watcher=Silent())
    assert outcome.error is None
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "report.json").read_text())["artifacts"]}
    for name in ("baseline", "fp32_again"):
        assert rows[name]["status"] == "shipped"
        assert rows[name]["measurements"] == []
        (conditions,) = rows[name]["conditions"]
        assert (conditions["device"], conditions["reason"]) == ("pixel_8", "no Android device is connected")
    # Nothing was sealed that says so: the phone is asked again the next time.
    again = build(parse(yaml.safe_dump(PIPELINE).encode(), "test.yaml"))
    sealed = [step.name for step in again.steps if Store(tmp_path / "store").has(step.key)]
    assert "fp32_again.export" in sealed
    assert not any("benchmark" in name for name in sealed)
