"""`edgeforge verify`: sound files pass, broken ones end in 6, and what cannot be verified is said to be so."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from edgeforge import cli
from edgeforge.commands import verify as command
from edgeforge.core.errors import ModelError
from edgeforge.exporters.coreml import Coreml
from edgeforge.pipeline import parse
from edgeforge.plan import build
from edgeforge.run import execute
from edgeforge.runtimes import coreml as runtime
from edgeforge.store import Store
from edgeforge.verification import _golden

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
    "stages": [{"kind": "train", "epochs": 2, "batch_size": 32, "learning_rate": 1e-2}],
    "targets": [{"name": "int8", "quantize": {"kind": "int8_static", "samples": 64}, "export": "onnx", "devices": []}],
}


class Silent:
    def started(self, *_: Any) -> None: ...

    def update(self, *_: Any) -> None: ...

    def finished(self, *_: Any) -> None: ...

    def warn(self, message: str) -> None: ...


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    plan = build(parse(yaml.safe_dump(PIPELINE).encode(), "test.yaml"))
    outcome = execute(plan, Store(folder / "store"), folder / "out", watcher=Silent())
    assert outcome.error is None
    return folder


@pytest.fixture
def run_folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture(scope="module")
def package(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("coremltools")
    folder = tmp_path_factory.mktemp("package")
    Coreml().export(digits.torch("resnet"), digits.job(folder / "file"))
    return folder / "file" / runtime.PACKAGE


def verified(*arguments: Any) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit code, checks by name of the first file, and all that was printed as text."""
    result = CliRunner().invoke(cli.app, ["verify", *map(str, arguments), "--json"])
    files = json.loads(result.stdout)["files"] if result.stdout.startswith("{") else []
    checks = {check["name"]: check for check in files[0]["checks"]} if files else {}
    return result.exit_code, checks, result.output


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if check["passed"] is False}


# -- runs and stores


def test_a_finished_run_passes(run_folder: Path) -> None:
    found = command.check(run_folder, against=None)
    assert [(one.name, one.passed) for one in found] == [("baseline", True), ("int8", True)]
    for one in found:
        passed = {check.name for check in one.checks if check.passed}
        assert {"sha256", "opens", "valid ONNX", "runs", "finite outputs", "recorded answers"} <= passed
        assert {check.name for check in one.checks if check.passed is None} == {"speed"}
    assert CliRunner().invoke(cli.app, ["verify", str(run_folder)]).exit_code == 0


def test_recorded_answers_are_real_ones(run_folder: Path, finished: Path) -> None:
    report = json.loads((run_folder / "report.json").read_text())
    row = next(row for row in report["artifacts"] if row["name"] == "int8")
    golden = _golden.read(run_folder / row["golden"]["path"])
    assert golden.inputs["pixel_values"].shape == (8, 1, 8, 8)
    assert golden.outputs.shape == golden.float_outputs.shape == (8, 10)
    assert np.isfinite(golden.outputs).all()
    assert 0 < np.abs(golden.outputs - golden.float_outputs).max() < np.abs(golden.outputs).max()
    assert row["files"].keys() >= {"model.onnx", "config.json", "preprocessor_config.json", "quantization.json"}
    assert row["layers"][0]["weight_db"] > 20
    assert "## Layers that lost most" in (run_folder / "report.md").read_text()
    assert row["layers"] == sorted(row["layers"], key=lambda layer: layer["output_db"])


def test_a_single_artifact_knows_its_run(run_folder: Path) -> None:
    code, checks, _ = verified(run_folder / "artifacts" / "int8")
    assert code == 0
    assert checks["recorded answers"]["passed"] is True


def test_an_artifact_carried_elsewhere_is_checked_as_far_as_it_goes(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "artifacts" / "int8", tmp_path / "int8")
    code, checks, _ = verified(tmp_path / "int8")
    assert code == 0
    assert {name for name, check in checks.items() if check["passed"] is None} == {
        "sha256",
        "recorded answers",
        "speed",
    }


def test_a_sealed_artifact_and_a_whole_store(finished: Path) -> None:
    sealed = sorted((finished / "store" / "sealed").iterdir())
    assert command.check(sealed[0], against=None)[0].passed
    assert len(command.check(finished / "store", against=None)) == len(sealed)


def scaled(path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    tensor = next(one for one in model.graph.initializer if len(one.dims) > 1 and one.data_type == 1)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "damage", "caught"),
    [
        ("artifacts/baseline/model.onnx", scaled, {"sha256", "recorded answers"}),
        ("artifacts/baseline/model.onnx", lambda path: path.write_bytes(path.read_bytes()[:500]), {"sha256", "opens"}),
        ("artifacts/baseline/model.onnx", Path.unlink, {"sha256", "opens"}),
        ("artifacts/baseline/config.json", Path.unlink, {"sha256"}),
        ("golden/baseline.npz", lambda path: path.write_bytes(b"PK"), {"recorded answers"}),
    ],
)
def test_damage_after_the_run_is_found(
    name: str, damage: Callable[[Path], Any], caught: set[str], run_folder: Path
) -> None:
    damage(run_folder / name)
    code, checks, text = verified(run_folder)
    assert code == 6
    assert failed(checks) == caught
    assert "baseline: " in text


def test_a_changed_file_is_found_by_its_answers_alone(run_folder: Path) -> None:
    """Whoever changes a file may change the report too."""
    scaled(run_folder / "artifacts" / "baseline" / "model.onnx")
    path = run_folder / "report.json"
    report = json.loads(path.read_text())
    report["artifacts"][0].update(files={}, sha256=None)
    path.write_text(json.dumps(report))
    code, checks, _ = verified(run_folder)
    assert (code, failed(checks)) == (6, {"recorded answers"})


def test_what_was_set_aside_is_said_to_be(run_folder: Path) -> None:
    path = run_folder / "report.json"
    report = json.loads(path.read_text())
    report["artifacts"][1].update(status="quarantined", reason="parity")
    path.write_text(json.dumps(report))
    found = command.check(run_folder, against=None)
    assert [one.passed for one in found] == [True, None]
    assert "quarantined: parity" in found[1].checks[0].detail


@pytest.mark.parametrize("content", [None, "empty folder", "text", "{}"])
def test_nothing_to_verify(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if content == "empty folder":
        path.mkdir()
    elif content == "{}":
        path.mkdir()
        (path / "report.json").write_text("{}")
    elif content is not None:
        path.write_text(content)
    code, _, text = verified(path)
    assert code == 2, text


# -- against a torch model


def test_against_the_torch_model(digits: Any, package: Path) -> None:
    for file in (digits.onnx("resnet").path / "model.onnx", package):
        code, checks, text = verified(file, "--against", digits.torch("resnet").path)
        assert code == 0, text
        assert checks["parity with torch"]["passed"] is True
        assert checks["weights are the model's"]["passed"] is True


def test_against_another_torch_model(digits: Any, package: Path, tmp_path: Path) -> None:
    from edgeforge.models import loading

    other = loading.load(digits.torch("resnet").path)
    other.resnet.encoder.stages[0].layers[0].layer[0].convolution.weight.data[0] *= 1.01
    loading.save(other, tmp_path / "other")
    for file in (digits.onnx("resnet").path / "model.onnx", package):
        code, checks, _ = verified(file, "--against", tmp_path / "other")
        assert code == 6
        assert "weights are the model's" in failed(checks)
    code, checks, _ = verified(package, "--against", digits.torch("vit").path)
    assert code == 6


def test_against_nothing(digits: Any, tmp_path: Path) -> None:
    code, _, text = verified(digits.onnx("resnet").path / "model.onnx", "--against", tmp_path / "gone")
    assert code == 2, text


# -- Core ML packages


def test_a_package_alone(package: Path) -> None:
    code, checks, _ = verified(package)
    assert code == 0
    assert checks["runs"]["passed"] is True
    apple = checks["Apple's compiler and kernels"]
    assert apple["passed"] is None or checks["Core ML answers as the evaluator does"]["passed"]


def zipped(package: Path, path: Path, **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.rglob("*")):
            if file.is_file():
                archive.write(file, f"models/{package.name}/{file.relative_to(package).as_posix()}")
    return path


def test_a_zipped_package(package: Path, tmp_path: Path) -> None:
    code, checks, text = verified(zipped(package, tmp_path / "model.zip"))
    assert code == 0, text
    assert checks["runs"]["passed"] is True


@pytest.mark.parametrize("name", ["../../evil.txt", "/evil.txt", "a\\..\\..\\evil.txt", "C:evil.txt"])
def test_a_zip_that_leaves_its_folder_is_refused(name: str, package: Path, tmp_path: Path) -> None:
    path = zipped(package, tmp_path / "model.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    code, _, text = verified(path)
    assert code == 2
    assert "leads out of the folder" in text
    assert not list(tmp_path.parent.rglob("evil.txt"))


def test_a_zip_with_a_link_is_refused(package: Path, tmp_path: Path) -> None:
    path = zipped(package, tmp_path / "model.zip")
    link = zipfile.ZipInfo("models/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert verified(path)[0] == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_no_whole_zip(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    code, _, text = verified(tmp_path / "model.zip")
    assert code == 2
    assert "not a whole zip" in text


def test_a_zip_larger_than_the_disk_is_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(package, tmp_path / "model.zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    code, _, text = verified(path)
    assert code == 7
    assert "are free" in text


def test_unpacking_stops_at_what_the_entry_says(package: Path, tmp_path: Path) -> None:
    """A member that holds more than its entry says is a bomb, or damage."""
    from edgeforge.verification._archive import unpack

    path = zipped(package, tmp_path / "model.zip")
    content = bytearray(path.read_bytes())
    place = content.rfind(b"PK\x01\x02")
    size = int.from_bytes(content[place + 24 : place + 28], "little")
    content[place + 24 : place + 28] = (size // 2).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    (tmp_path / "target").mkdir()
    with pytest.raises(ModelError, match="not a whole zip"):
        unpack(path, tmp_path / "target")


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    shutil.copytree(package, tmp_path / "model.mlpackage")
    return tmp_path / "model.mlpackage"


def rewritten(package: Path, change: Callable[[Any], None]) -> None:
    path = package / runtime.MODEL_FILE
    spec = runtime.load_coremltools().utils.load_spec(str(path))
    change(spec)
    path.write_bytes(spec.SerializeToString())


def test_an_unknown_operation_is_named_with_its_place(copied: Path) -> None:
    def change(spec: Any) -> None:
        main = spec.mlProgram.functions["main"]
        relu = next(one for one in main.block_specializations[main.opset].operations if one.type == "relu")
        relu.type = "squeeze_and_excite"

    rewritten(copied, change)
    code, _, text = verified(copied)
    assert code == 6
    assert "'squeeze_and_excite'" in text
    assert "operation" in text
    assert "main" in text


def test_a_model_of_the_old_kind(tmp_path: Path) -> None:
    spec = runtime.load_coremltools().proto.Model_pb2.Model()
    spec.specificationVersion = 4
    spec.neuralNetwork.layers.add().name = "one"
    path = tmp_path / "old.mlmodel"
    path.write_bytes(spec.SerializeToString())
    code, _, text = verified(path)
    assert code == 6
    assert "old kind (neuralNetwork)" in text


@pytest.mark.parametrize("name", [runtime.MODEL_FILE, runtime.WEIGHTS_FILE, runtime.MANIFEST])
@pytest.mark.parametrize("left", [0, 0.5])
def test_a_truncated_package(name: str, left: float, copied: Path) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: int(left * len(content))])
    code, checks, text = verified(copied)
    assert code == 6, text
    assert failed(checks) == {"opens"}


def test_an_encrypted_package(copied: Path) -> None:
    (copied / "Data" / "com.apple.CoreML" / "encryptionInfo").mkdir()
    code, _, text = verified(copied)
    assert code == 6
    assert "encrypted" in text


def test_a_compiled_model(tmp_path: Path) -> None:
    (tmp_path / "model.mlmodelc").mkdir()
    code, _, text = verified(tmp_path / "model.mlmodelc")
    assert code == 6
    assert "compiled for a device" in text


def test_a_file_too_large_for_this_machine_is_refused(
    digits: Any, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory)
    for path in (digits.onnx("resnet").path / "model.onnx", package):
        code, _, text = verified(path)
        assert code == 7, text
        assert "GB of memory" in text
