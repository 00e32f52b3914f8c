"""W8A8 Core ML packages made off the Mac: right ones pass verification, and what is wrong in them is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from edgeforge.core.artifact import Artifact, hash_folder
from edgeforge.core.errors import ModelError
from edgeforge.exporters.coreml import Coreml
from edgeforge.quantizers.int8_coreml import Int8Coreml
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes.coreml_reference import CoremlReference, open_model
from edgeforge.verification.coreml import verify

MODELS = [("digits", "resnet"), pytest.param(("mails", "bert"), marks=pytest.mark.slow)]
_MADE: dict[str, tuple[Artifact, Artifact, Mapping[str, Any]]] = {}


def made(bench: Any, family: str, tmp: Path) -> tuple[Artifact, Artifact, Mapping[str, Any]]:
    """The float package, the quantized one, and its facts."""
    if family not in _MADE:
        floats, folder = tmp / f"{family}.float", tmp / f"{family}.int8"
        Coreml().export(bench.torch(family), bench.job(floats))
        artifact = bench.artifact(floats, "coreml")
        facts = Int8Coreml(samples=16, min_elements=64).quantize(artifact, bench.job(folder))
        _MADE[family] = artifact, bench.artifact(folder, "coreml"), facts
    return _MADE[family]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("w8a8")


def inputs(bench: Any, family: str, floats: Artifact, file: Artifact) -> dict[str, Artifact]:
    model = bench.torch(family)
    return {"file": file, "unquantized": floats, "reference": model, "model": model}


@pytest.mark.parametrize("which", MODELS)
def test_a_clean_package_passes(
    which: tuple[str, str], place: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bench, family = request.getfixturevalue(which[0]), which[1]
    floats, file, facts = made(bench, family, place)
    assert facts["quantized_activations"] >= 4 and len(facts["quantized"]) >= 4
    assert file.path.joinpath(runtime.PACKAGE).is_dir()
    size = [sum(one.stat().st_size for one in artifact.path.rglob("weight.bin")) for artifact in (file, floats)]
    assert size[0] < 0.7 * size[1]  # tables, biases and small weights stay float16
    before = hash_folder(file.path)
    found = dict(verify(inputs(bench, family, floats, file), bench.job(tmp_path)))
    assert found["passed"], (found["reason"], found["checks"])
    assert hash_folder(file.path) == before
    assert {check["name"] for check in found["checks"]} >= {"ranges fit", "integers are the float weights"}
    assert found["fidelity"]["agreement"] >= 0.8
    assert len(found["layers"]) == len(facts["quantized"])
    assert 30 < found["layers"][0]["weight_db"] < 60


def test_every_step_is_that_of_all_training_samples(digits: Any, place: Path) -> None:
    """coremltools 9 by itself keeps the ranges of the last sample."""
    floats, file, _ = made(digits, "resnet", place)
    from edgeforge.core.task import model_inputs
    from edgeforge.verification._coreml_package import open_package

    rows = np.random.RandomState(digits.job(place).seed).permutation(digits.data.size("train"))[:16].tolist()
    batch = {name: value.numpy() for name, value in model_inputs(digits.data.batch("train", rows)).items()}
    samples = CoremlReference().open(floats.path).samples(batch)  # type: ignore[union-attr]
    model = open_model(floats.path / runtime.PACKAGE)
    steps = [
        float(one.inputs["scale"].val)
        for one in open_package(file.path / runtime.PACKAGE).function.operations
        if one.op_type == "quantize"
    ]
    largest = [
        {name: np.abs(value).max() for name, value in model.values(one).items() if value.size} for one in samples
    ]
    ends = {max(one[name] for one in largest) for name in largest[0]}
    for step in steps:
        assert any(step == pytest.approx(float(end) / 127, rel=2e-3) for end in ends), step


# -- what is wrong is found


def spec_of(package: Path) -> Any:
    return runtime.load_coremltools().utils.load_spec(str(package / runtime.MODEL_FILE))


def operations(spec: Any, kind: str) -> list[Any]:
    main = spec.mlProgram.functions["main"]
    return [one for one in main.block_specializations[main.opset].operations if one.type == kind]


def scale_of(spec: Any, operation: Any) -> Any:
    """The list of bytes or numbers in which a scalar scale stands."""
    name = operation.inputs["scale"].arguments[0].name
    if not name:
        return operation.inputs["scale"].arguments[0].value.immediateValue.tensor
    constant = next(one for one in operations(spec, "const") if one.outputs[0].name == name)
    return constant.attributes["val"].immediateValue.tensor


def narrower(spec: Any) -> None:
    """Every pair's first range ends at a quarter of it."""
    encoded = operations(spec, "quantize")[1]
    decoded = next(
        one
        for one in operations(spec, "dequantize")
        if one.inputs["input"].arguments[0].name == encoded.outputs[0].name
    )
    for operation in (encoded, decoded):
        _times(scale_of(spec, operation), 0.25)


def decoded_otherwise(spec: Any) -> None:
    tensor = scale_of(spec, operations(spec, "dequantize")[1])
    _times(tensor, 1.5)


def _times(tensor: Any, factor: float) -> None:
    if tensor.WhichOneof("value") == "bytes":
        number = np.frombuffer(tensor.bytes.values, np.float16) * np.float16(factor)
        tensor.bytes.values = number.astype(np.float16).tobytes()
    else:
        tensor.floats.values[0] *= factor


def swapped(spec: Any) -> None:
    """The inputs of two layers in each other's places."""
    one, other = (layer.inputs["x"].arguments[0] for layer in operations(spec, "conv")[2:4])
    one.name, other.name = other.name, one.name


@pytest.mark.parametrize("fault", [narrower, decoded_otherwise, swapped])
def test_a_wrong_program(fault: Callable[[Any], None], digits: Any, place: Path, tmp_path: Path) -> None:
    floats, file, _ = made(digits, "resnet", place)
    shutil.copytree(file.path, tmp_path / "file")
    spec = spec_of(tmp_path / "file" / runtime.PACKAGE)
    fault(spec)
    (tmp_path / "file" / runtime.PACKAGE / runtime.MODEL_FILE).write_bytes(spec.SerializeToString())
    broken = replace(file, path=tmp_path / "file")
    found = verify(inputs(digits, "resnet", floats, broken), digits.job(tmp_path))
    assert found["passed"] is False
    if fault is narrower:
        assert found["reason"].startswith("ranges fit")


def test_a_wrong_integer(digits: Any, place: Path, tmp_path: Path) -> None:
    floats, file, _ = made(digits, "resnet", place)
    shutil.copytree(file.path, tmp_path / "file")
    path = tmp_path / "file" / runtime.PACKAGE / runtime.WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    spec = spec_of(tmp_path / "file" / runtime.PACKAGE)
    stored = operations(spec, "constexpr_affine_dequantize")[1].attributes["quantized_data"].blobFileValue.offset
    data = int.from_bytes(content[stored + 16 : stored + 24], "little")
    content[data + 5] = (content[data + 5] + 3) % 256
    path.write_bytes(bytes(content))
    found = verify(inputs(digits, "resnet", floats, replace(file, path=tmp_path / "file")), digits.job(tmp_path))
    assert found["reason"].startswith("integers are the float weights")


def test_language_models_are_refused(tales: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="language models"):
        Int8Coreml().quantize(tales.torch("llama"), tales.job(tmp_path))
