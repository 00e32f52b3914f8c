"""Export, quantize, verify and evaluate as stages: what they make, which limits they hold, what they record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.stages import verify
from edgeforge.stages.evaluate import Evaluate
from edgeforge.stages.export import Export
from edgeforge.stages.quantize import Quantize
from edgeforge.stages.verify import Verify
from edgeforge.verification import Check, Fidelity, Parity, outcome

if TYPE_CHECKING:
    Digits = Any


def test_what_each_stage_makes() -> None:
    assert Export.model_validate({"exporter": "onnx"}).makes_format() == "onnx"
    assert Quantize.model_validate({"quantizer": "int8_static"}).makes_format() == "onnx"
    assert Quantize.model_validate({"quantizer": "int4_weights"}).makes_format() == "torch"
    assert Verify().makes_format() == Evaluate().makes_format() == "measurements"
    for stage in (Export, Quantize, Verify, Evaluate):
        assert not stage.in_chain


def test_a_file_through_all_stages(digits: Digits, tmp_path: Path) -> None:
    source = digits.torch("resnet")
    export = Export.model_validate({"exporter": "onnx"})
    facts = export.run({"model": source}, digits.job(tmp_path / "onnx"))
    file = digits.artifact(tmp_path / "onnx", "onnx", facts)
    quantize = Quantize.model_validate({"quantizer": {"kind": "int8_static", "samples": 64}})
    facts = quantize.run({"model": file}, digits.job(tmp_path / "int8"))
    assert facts["quantization"]["kind"] == "int8_static"
    assert facts["quantization"]["scheme"] == "static"
    small = digits.artifact(tmp_path / "int8", "onnx", facts)
    inputs = {"file": small, "model": source, "reference": source, "unquantized": file}
    assert Verify().run(inputs, digits.job(tmp_path / "verify"))["passed"]
    evaluated = [
        Evaluate().run({"model": item}, digits.job(tmp_path / item.path.name)) for item in (source, file, small)
    ]
    assert [item["runtime"] for item in evaluated] == ["torch_eager", "onnxruntime", "onnxruntime"]
    assert all(item["reason"] is None for item in evaluated)
    assert evaluated[0]["metrics"]["accuracy"] == evaluated[1]["metrics"]["accuracy"]


def test_evaluation_keeps_every_output_of_the_test_split(digits: Digits, tmp_path: Path) -> None:
    facts = Evaluate().run({"model": digits.onnx("resnet")}, digits.job(tmp_path))
    logits, labels = np.load(tmp_path / "logits.npy"), np.load(tmp_path / "labels.npy")
    assert (logits.shape, logits.dtype) == ((digits.data.size("test"), 10), np.float32)
    assert facts["metrics"]["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).mean()))


def test_evaluation_without_a_runtime_says_so(digits: Digits, tmp_path: Path) -> None:
    package = Artifact("", "", "no_such_format", tmp_path, "", {}, {}, {})
    facts = Evaluate().run({"model": package}, digits.job(tmp_path))
    assert facts == {"runtime": None, "metrics": None, "reason": "no runtime opens no_such_format files"}


def test_outputs_that_are_not_finite_have_no_metrics(digits: Digits, tmp_path: Path) -> None:
    shutil.copytree(digits.onnx("resnet").path, tmp_path / "file")
    model = onnx.load(tmp_path / "file" / "model.onnx")
    (gemm,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    (bias,) = [tensor for tensor in model.graph.initializer if tensor.name == gemm.input[2]]
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, np.float32), bias.name))
    onnx.save(model, tmp_path / "file" / "model.onnx")
    facts = Evaluate().run({"model": digits.artifact(tmp_path / "file", "onnx")}, digits.job(tmp_path / "evaluate"))
    assert facts["metrics"] is None
    assert "NaN" in facts["reason"]


# -- limits


class Module:
    """A verification module that says what it is told to."""

    def __init__(self, **fidelity: float) -> None:
        self.fidelity = Fidelity(
            **{"agreement": 0.95, "cosine": 0.99, "metric": "accuracy", "metric_drop": 0.01, "samples": 256, **fidelity}  # type: ignore[arg-type]
        )

    def verify(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        return outcome(Parity("torch", None, "cannot run here"), [Check("a", None, "not here")], self.fidelity)


@pytest.mark.parametrize(
    ("limits", "fidelity", "reason"),
    [
        ({}, {}, None),
        ({}, {"agreement": 0.5}, "agreement with float: 0.500, limit 0.7"),
        ({}, {"cosine": 0.1}, "cosine with float: 0.100, limit 0.7"),
        ({}, {"metric_drop": 0.2}, "drop of accuracy: 0.200, limit 0.1"),
        ({"min_agreement": 0.97}, {}, "agreement with float: 0.950, limit 0.97"),
        ({"max_metric_drop": 0.3}, {"metric_drop": 0.2}, None),
    ],
)
def test_limits_on_the_distance_from_the_float_model(
    digits: Digits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, float],
    fidelity: dict[str, float],
    reason: str | None,
) -> None:
    monkeypatch.setattr(verify, "verification_of", lambda _: Module(**fidelity))
    job = digits.job(tmp_path)
    model = digits.torch("resnet")
    inputs = {"file": digits.onnx("resnet"), "model": model, "reference": model}
    facts = Verify(**limits).run(inputs, job)  # type: ignore[arg-type]
    assert (facts["passed"], facts["reason"]) == (reason is None, reason)
    assert any(check["passed"] is False for check in facts["checks"]) is (reason is not None)
    assert job.progress.warnings == ["not checked: a: not here"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("agreement", "passed"), [(0.5, True), (0.3, False)])
def test_tokens_may_differ_more_often_than_classes(
    digits: Digits, tales: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agreement: float, passed: bool
) -> None:
    monkeypatch.setattr(verify, "verification_of", lambda _: Module(agreement=agreement))
    monkeypatch.setattr(verify, "recorded_check", lambda *rest: [])
    monkeypatch.setattr(verify._golden, "write", lambda *rest: None)
    file, model = digits.onnx("resnet"), tales.torch("llama")
    facts = Verify().run({"file": file, "model": model, "reference": model}, tales.job(tmp_path))
    assert facts["passed"] is passed
    assert passed or facts["reason"] == f"agreement with float: {agreement:.3f}, limit 0.4"


def test_a_format_nobody_verifies_does_not_pass(digits: Digits, tmp_path: Path) -> None:
    file = Artifact("", "", "no_such_format", tmp_path, "", {}, {}, {})
    facts = Verify().run({"file": file}, digits.job(tmp_path))
    assert not facts["passed"]
    assert facts["reason"] == "verification: EdgeForge cannot verify no_such_format files"


def test_every_module_of_verification_is_part_of_the_key() -> None:
    names = {path.stem for path in Path(verify.verification.__file__).parent.glob("*.py")} - {"__init__"}
    assert {f"edgeforge.verification.{name}" for name in names} <= set(Verify.uses)
