"""`edgeforge bundle` and its exit codes, on a run of a real pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from edgeforge import cli
from edgeforge.bundles._check import verify_bundle
from edgeforge.core.artifact import hash_file

PIPELINE = {
    "name": "tiny",
    "task": "image_classification",
    "model": {
        "kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
        "layer_type": "basic",
    },
    "stages": [{"kind": "train", "epochs": 4, "batch_size": 32, "learning_rate": 1e-2}],
    "targets": [
        {"name": "phone", "quantize": {"kind": "int8_static", "samples": 64}, "export": "onnx", "devices": ["host_cpu"]}
    ],
    "budgets": {"slower_than_parent": "allow"},
}  # fmt: skip

pytestmark = pytest.mark.slow


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(PIPELINE), encoding="utf-8")
    done = invoke("run", str(folder / "tiny.yaml"), "--out", str(folder / "out"), "--store", str(folder / "store"))
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copied"))


@pytest.mark.parametrize("target", ["android", "web"])
def test_the_one_target_is_bundled_beside_the_run(copied: Path, target: str) -> None:
    done = invoke("bundle", str(copied), "--target", target)
    assert done.exit_code == 0, done.output
    archive = copied / "bundles" / f"tiny_phone-{target}.zip"
    assert archive.name in done.output
    assert {check.passed for check in verify_bundle(archive)} == {True}
    contract = json.loads(next((copied / "bundles").rglob("edgeforge.json")).read_text(encoding="utf-8"))
    report = json.loads((copied / "report.json").read_text(encoding="utf-8"))
    row = next(row for row in report["artifacts"] if row["name"] == "phone")
    assert contract["models"][-1]["sha256"] == row["sha256"]
    assert contract["metrics"]["accuracy"] == row["metrics"]["accuracy"]
    assert [step["step"] for step in contract["lineage"]["steps"]] == [step["step"] for step in row["lineage"]["steps"]]


def test_a_layout_that_phones_do_not_like_is_said(copied: Path) -> None:
    report = copied / "report.json"
    content = json.loads(report.read_text(encoding="utf-8"))
    content["artifacts"][1]["quantization"]["layout"] = "x86"
    report.write_text(json.dumps(content), encoding="utf-8")
    assert "integer layout of x86" in invoke("bundle", str(copied), "--target", "android").output
    assert "integer layout" not in invoke("bundle", str(copied), "--target", "web").output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--target", "ios"], 2), (["--target", "window"], 2), (["--target", "web", "--artifact", "x"], 2)],
)
def test_mistakes_end_in_a_message(copied: Path, arguments: list[str], code: int) -> None:
    done = invoke("bundle", str(copied), *arguments)
    assert done.exit_code == code
    assert not (copied / "bundles").exists()


def test_a_model_that_does_not_answer_as_recorded_is_not_bundled(copied: Path) -> None:
    path = copied / "golden" / "phone.npz"
    with np.load(path, allow_pickle=False) as found:
        arrays: dict[str, Any] = {name: found[name] for name in found.files}
    np.savez(path, **{**arrays, "outputs": arrays["outputs"] + 50, "float_outputs": arrays["float_outputs"] + 50})
    report = copied / "report.json"
    content = json.loads(report.read_text(encoding="utf-8"))
    content["artifacts"][1]["golden"]["sha256"] = hash_file(path)
    report.write_text(json.dumps(content), encoding="utf-8")
    done = invoke("bundle", str(copied), "--target", "web")
    assert done.exit_code == 6
    assert not list((copied / "bundles").iterdir())
