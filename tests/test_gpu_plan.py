"""Where there is no GPU, the plan says so, and nothing is measured in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeforge import device
from edgeforge.pipeline import parse
from edgeforge.plan import Plan, build
from edgeforge.runtimes import _cuda
from edgeforge.runtimes.onnxruntime import Onnxruntime

MODEL = {"kind": "config", "architecture": "resnet", "depths": [1], "hidden_sizes": [8], "embedding_size": 8}


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No devices of whoever runs the tests."""
    monkeypatch.setattr(device, "own_folder", lambda: tmp_path)
    device.profiles.cache_clear()
    yield
    device.profiles.cache_clear()


def planned() -> Plan:
    pipeline = {
        "name": "tiny",
        "task": {"kind": "image_classification", "data": "sklearn_digits"},
        "model": MODEL,
        "stages": [{"kind": "train", "epochs": 1}],
        "targets": [{"name": "box", "export": "onnx", "devices": ["host_cpu", "host_gpu"]}],
    }
    return build(parse(yaml.safe_dump(pipeline).encode(), "test.yaml"))


def steps(plan: Plan, word: str) -> list[str]:
    return [step.name for step in plan.steps if word in step.name]


def test_without_a_gpu_there_is_a_line_and_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "missing", lambda: "no CUDA GPU is here")
    plan = planned()
    assert plan.warnings == ["box: host_gpu: no CUDA GPU is here; its rows will be absent"]
    assert steps(plan, ".benchmark") == ["baseline.benchmark.host_cpu", "box.benchmark.host_cpu"]


def test_with_one_it_is_measured_beside_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Onnxruntime, "available", lambda self: None)
    plan = planned()
    assert plan.warnings == []
    assert steps(plan, "host_gpu") == ["baseline.benchmark.host_gpu", "box.benchmark.host_gpu"]
