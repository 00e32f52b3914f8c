"""ONNX files of text encoders: right ones pass, and no broken one does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from edgeforge.core.artifact import Artifact
from edgeforge.core.task import model_inputs
from edgeforge.exporters.onnx import Onnx
from edgeforge.models import loading
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_dynamic import Int8Dynamic
from edgeforge.quantizers.int8_static import Int8Static
from edgeforge.quantizers.int8_weights import Int8Weights
from edgeforge.quantizers.smooth_quant import SmoothQuant
from edgeforge.verification._evaluator import evaluate
from edgeforge.verification._operators import UnknownOperator, operator_of
from edgeforge.verification.onnx import verify

if TYPE_CHECKING:
    Mails = Any

SCHEMES: dict[str, Quantizer | None] = {
    "float": None,
    "dynamic": Int8Dynamic(),
    "dynamic, 4-bit rows": Int8Dynamic(embeddings="int4"),
    "static": Int8Static(samples=64),
    "static, some float": Int8Static(samples=64, layout="arm", keep=("*layer.1*", "*classifier*"), embeddings="float"),
    "smooth": SmoothQuant(samples=64),
    "int4": Int4Weights(min_elements=64, block_size=16),
    "int8": Int8Weights(min_elements=64),
}
FAST = {("bert", scheme) for scheme in SCHEMES} | {("roberta", "float"), ("electra", "dynamic")}
MATRIX = [
    pytest.param(family, scheme, marks=() if (family, scheme) in FAST else pytest.mark.slow)
    for family in ("bert", "distilbert", "roberta", "electra")
    for scheme in SCHEMES
]
MEANING = "file means what the quantizer chose"


def build(mails: Mails, family: str, scheme: str, folder: Path) -> dict[str, Artifact]:
    """What `verify` takes: a fresh copy of the file and the artifacts it came from."""
    model, source, quantizer = mails.torch(family), mails.onnx(family), SCHEMES[scheme]
    inputs = {"model": model, "reference": model}
    if quantizer is None:
        shutil.copytree(source.path, folder / "file")
    elif "torch" in quantizer.accepts:
        quantizer.quantize(model, mails.job(folder / "reference"))
        inputs["reference"] = mails.artifact(folder / "reference", "torch")
        Onnx().export(inputs["reference"], mails.job(folder / "file"))
    else:
        quantizer.quantize(source, mails.job(folder / "file"))
        inputs["unquantized"] = source
    return {**inputs, "file": mails.artifact(folder / "file", "onnx")}


def verified(mails: Mails, inputs: Mapping[str, Artifact]) -> Mapping[str, Any]:
    folder = inputs["file"].path
    facts = verify({**inputs, "file": mails.artifact(folder, "onnx")}, mails.job(folder.parent / "verify"))
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    return facts


def failed(facts: Mapping[str, Any]) -> set[str]:
    names = {check["name"] for check in facts["checks"] if check["passed"] is False}
    return names | ({"parity"} if facts["parity"]["passed"] is False else set())


@pytest.mark.parametrize(("family", "scheme"), MATRIX)
def test_clean_files_pass(mails: Mails, tmp_path: Path, family: str, scheme: str) -> None:
    facts = verified(mails, build(mails, family, scheme, tmp_path))
    assert facts["passed"], facts["reason"]
    assert facts["parity"]["passed"] is True
    assert all(check["passed"] is True for check in facts["checks"])
    assert {"any length", "tokenizer"} <= {check["name"] for check in facts["checks"]}


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_the_evaluator_computes_what_torch_and_the_runtime_do(mails: Mails, family: str) -> None:
    folder = mails.onnx(family).path
    batch = model_inputs(mails.data.batch("validation", range(8)))
    inputs = {name: value.numpy() for name, value in batch.items()}
    assert (inputs["attention_mask"] == 0).any()
    found = evaluate(onnx.load(folder / "model.onnx"), inputs)
    with torch.no_grad():
        exact = loading.load(mails.torch(family).path).double()(**batch).logits.numpy()
    (ran,) = onnxruntime.InferenceSession(folder / "model.onnx").run(None, inputs)
    scale = np.abs(exact).max()
    np.testing.assert_allclose(found, exact, atol=1e-6 * scale)
    np.testing.assert_allclose(found, ran, atol=1e-4 * scale)


# -- files that compute something else


class Edit:
    """Change a file's model; written back on leaving the block."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.onnx"
        self.model = onnx.load(self.path)
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def __enter__(self) -> Edit:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.model.SerializeToString())

    def of(self, operator: str) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == operator]

    def change(self, name: str, by: Callable[[np.ndarray], np.ndarray]) -> None:
        array = np.ascontiguousarray(by(numpy_helper.to_array(self.tensors[name]).copy()))
        self.tensors[name].CopyFrom(numpy_helper.from_array(array, name))


def ignored_mask(edit: Edit) -> None:
    """Padding is attended to."""
    softmax = edit.of("Softmax")[0]
    (masked,) = [node for node in edit.of("Add") if softmax.input[0] in node.output]
    softmax.input[0] = masked.input[0]


def shifted_positions(edit: Edit) -> None:
    edit.change(_table(edit, rows=16), lambda table: np.roll(table, 1, axis=0))


def _table(edit: Edit, rows: int | None = None) -> str:
    """The constant with that many rows that is looked up; the largest without."""
    sizes = {
        node.input[0]: edit.tensors[node.input[0]].dims for node in edit.of("Gather") if node.input[0] in edit.tensors
    }
    found = {name: dims for name, dims in sizes.items() if rows is None or dims[0] == rows}
    return max(found, key=lambda name: int(np.prod(found[name])))


@pytest.mark.parametrize(
    ("damage", "caught"),
    [(ignored_mask, {"parity", "any length"}), (shifted_positions, {"parity", "weights are the model's"})],
)
def test_a_float_file_that_computes_something_else(
    mails: Mails, tmp_path: Path, damage: Callable[[Edit], None], caught: set[str]
) -> None:
    inputs = build(mails, "bert", "float", tmp_path)
    with Edit(inputs["file"].path) as edit:
        damage(edit)
    assert failed(verified(mails, inputs)) == caught


def test_a_file_of_one_length_only(mails: Mails, tmp_path: Path) -> None:
    inputs = build(mails, "bert", "float", tmp_path)
    with Edit(inputs["file"].path) as edit:
        for value in edit.model.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 16
    assert {"inputs and outputs", "any length"} <= failed(verified(mails, inputs))


@pytest.mark.parametrize("damage", ["gone", "other"])
def test_a_tokenizer_that_is_not_the_models(mails: Mails, tmp_path: Path, damage: str) -> None:
    inputs = build(mails, "bert", "float", tmp_path)
    path = inputs["file"].path / "tokenizer.json"
    if damage == "gone":
        path.unlink()
    else:
        path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false'))
    assert failed(verified(mails, inputs)) == {"tokenizer"}


def one_scale_of_a_row(edit: Edit) -> None:
    (scales,) = [
        node.input[0]
        for node in edit.of("Gather")
        if node.input[0] in edit.tensors and edit.tensors[node.input[0]].dims[1:] == [1] and rows_of(edit, node) > 16
    ]

    def twice(array: np.ndarray) -> np.ndarray:
        array[2] *= 2  # [CLS], which every text begins with
        return array

    edit.change(scales, twice)


def rows_of(edit: Edit, node: onnx.NodeProto) -> int:
    return int(edit.tensors[node.input[0]].dims[0])


def swapped_halves(edit: Edit) -> None:
    edit.change(edit.of("GatherBlockQuantized")[0].input[0], lambda packed: packed << 4 | packed >> 4)


def other_scales(edit: Edit) -> None:
    edit.change(edit.of("GatherBlockQuantized")[0].input[2], lambda scales: np.roll(scales, 1, axis=0))


def rounded_residual(edit: Edit) -> None:
    """A sum reads the rounded value in place of the float one."""
    quantizer = next(node for node in edit.of("QuantizeLinear")[1:] if len(readers(edit, node.input[0])) > 1)
    (decoder,) = [node for node in edit.of("DequantizeLinear") if node.input[0] == quantizer.output[0]]
    reader = next(node for node in readers(edit, quantizer.input[0]) if node is not quantizer)
    reader.input[:] = [decoder.output[0] if name == quantizer.input[0] else name for name in reader.input]
    nodes = sorted(edit.model.graph.node, key=lambda node: node is reader)
    del edit.model.graph.node[:]
    edit.model.graph.node.extend(_ordered(nodes, edit))


def readers(edit: Edit, name: str) -> list[onnx.NodeProto]:
    return [node for node in edit.model.graph.node if name in node.input]


def _ordered(nodes: list[onnx.NodeProto], edit: Edit) -> list[onnx.NodeProto]:
    """Topologically sorted."""
    known = {"", *edit.tensors, *(value.name for value in edit.model.graph.input)}
    left, done = list(nodes), []
    while left:
        node = next(node for node in left if set(node.input) <= known)
        left.remove(node)
        done.append(node)
        known.update(node.output)
    return done


def other_factors(edit: Edit) -> None:
    divided = next(
        node for node in edit.of("Mul") if node.input[1] in edit.tensors and len(edit.tensors[node.input[1]].dims) == 1
    )
    edit.change(divided.input[1], lambda factors: factors[::-1])


@pytest.mark.parametrize(
    ("scheme", "damage", "caught"),
    [
        ("dynamic", one_scale_of_a_row, MEANING),
        ("dynamic, 4-bit rows", swapped_halves, MEANING),
        ("dynamic, 4-bit rows", other_scales, MEANING),
        ("static", rounded_residual, MEANING),
        ("smooth", other_factors, MEANING),
        ("int4", swapped_halves, "file means the quantized model"),
        ("int4", other_scales, "parity"),
    ],
)
def test_a_quantized_file_with_wrong_numbers(
    mails: Mails, tmp_path: Path, scheme: str, damage: Callable[[Edit], None], caught: str
) -> None:
    inputs = build(mails, "bert", scheme, tmp_path)
    with Edit(inputs["file"].path) as edit:
        damage(edit)
    assert caught in failed(verified(mails, inputs))


def test_smoothing_that_changes_the_function(mails: Mails, tmp_path: Path) -> None:
    """A division that the record says is in the normalization, whose value the residual reads too."""
    inputs = build(mails, "bert", "smooth", tmp_path)
    path = inputs["file"].path / "quantization.json"
    record = json.loads(path.read_text())
    assert record["smoothed"][0]["folded"] is False
    record["smoothed"][0]["folded"] = True
    path.write_text(json.dumps(record))
    assert {"smoothing keeps the function", MEANING} <= failed(verified(mails, inputs))


def test_unknown_operators_of_other_domains_are_reported() -> None:
    with pytest.raises(UnknownOperator, match=r"com\.microsoft\.FusedGelu"):
        operator_of(helper.make_node("FusedGelu", ["x"], ["y"], domain="com.microsoft"))
