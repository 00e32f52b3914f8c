"""A chain of students that teach each other and a model that ends early, to a verified file; and kill -9 on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from edgeforge.models import loading
from edgeforge.models.exits import blocks_of
from edgeforge.pipeline import parse
from edgeforge.plan import build
from edgeforge.run import execute
from edgeforge.runtimes.onnxruntime import Onnxruntime
from edgeforge.store import Store

HERE = Path(__file__).parent
BRIEF = {"batch_size": 32, "learning_rate": 5e-3}
PIPELINE: dict[str, Any] = {
    "name": "together",
    "task": "image_classification",
    "model": {
        "kind": "config",
        "architecture": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [2, 1],
        "layer_type": "basic",
    },
    "stages": [
        {"kind": "mutual", "students": ["copy", {"kind": "width", "multiple": 1}], "steps": 60, **BRIEF},
        {"kind": "exits", "after": [0, 1], "use": 1, "steps": 60, **BRIEF},
    ],
    "targets": [{"name": "early", "export": "onnx", "devices": []}],
}


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_a_model_that_ends_early_ships_and_its_report_shows_the_trade(tmp_path: Path) -> None:
    plan, store = build(parse(yaml.safe_dump(PIPELINE).encode(), "test.yaml")), Store(tmp_path / "store")
    outcome = execute(plan, store, tmp_path / "out", watcher=Silent())
    assert outcome.error is None, outcome.error
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {row["name"]: row for row in report["artifacts"]}
    assert rows["early"]["status"] == "shipped"
    assert rows["early"]["parity"]["passed"] is True
    assert rows["early"]["bytes"] < rows["baseline"]["bytes"]
    assert rows["early"]["metrics"]["accuracy"] > 0.3
    stages = {row["name"]: row["facts"] for row in report["stages"]}
    assert [row["after"] for row in stages["exits"]["exits"]] == [0, 1, "last"]
    assert len(stages["mutual"]["members"]) == 2
    # The file answers as the exit's torch model does, which is the whole model without its last block.
    step = plan.step("exits")
    artifact = store.open(step.key)
    assert artifact is not None
    model, pixels = loading.load(artifact.path), np.random.default_rng(0).normal(size=(4, 1, 8, 8)).astype(np.float32)
    assert len(blocks_of(model)) == 2
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
    found = Onnxruntime().open((tmp_path / "out" / rows["early"]["path"]).parent).run({"pixel_values": pixels})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def killed_runs(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    folder.mkdir()
    pipeline = folder / "together.yaml"
    stages = [{**stage, "checkpoint_seconds": 0} for stage in PIPELINE["stages"]]
    pipeline.write_text(yaml.safe_dump({**PIPELINE, "stages": stages}))
    command = [sys.executable, str(HERE / "killing.py"), str(pipeline), str(folder / "store"), str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(kills), str(seed)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.slow
def test_killed_at_random_points_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = killed_runs(tmp_path / "undisturbed", 0, 0)
    disturbed = killed_runs(tmp_path / "disturbed", 12, 1)
    assert None not in undisturbed["digests"].values()
    assert disturbed["digests"] == undisturbed["digests"]
    assert disturbed["killed"] >= 3
