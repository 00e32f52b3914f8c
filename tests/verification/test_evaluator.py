"""The evaluator against ONNX's own reference implementation, operator by operator and model by model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeforge.verification._evaluator import evaluate
from edgeforge.verification._grids import Grid, Grids, Table
from edgeforge.verification._operators import MICROSOFT, OPERATORS, UnknownOperator

if TYPE_CHECKING:
    Digits = Any

IMAGE = (2, 4, 6, 8)
BLOCKS = {"axis": 1, "block_size": 3}
CASES: dict[str, tuple[str, tuple[int, ...], list[np.ndarray], dict[str, Any]]] = {
    "conv": (
        "Conv",
        IMAGE,
        [np.ones((6, 2, 3, 3)), np.arange(6.0)],
        {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]},
    ),
    "dilated conv": ("Conv", IMAGE, [np.ones((3, 4, 2, 2))], {"dilations": [2, 3]}),
    "max pool": ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "ceiling pool": ("MaxPool", IMAGE, [], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "gemm": ("Gemm", (2, 3), [np.arange(12.0).reshape(4, 3), np.arange(4.0)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "transposed gemm": ("Gemm", (3, 2), [np.arange(12.0).reshape(3, 4)], {"transA": 1}),
    "matmul": ("MatMul", (2, 5, 3), [np.arange(12.0).reshape(3, 4)], {}),
    "clip": ("Clip", IMAGE, [np.array(-0.5), np.array(0.25)], {}),
    "half a clip": ("Clip", IMAGE, [np.array(-0.5)], {}),
    "mean": ("ReduceMean", IMAGE, [np.array([-1, 2])], {"keepdims": 0}),
    "mean of all": ("ReduceMean", IMAGE, [], {}),
    "reshape": ("Reshape", IMAGE, [np.array([0, -1, 8])], {}),
    "layer norm": ("LayerNormalization", IMAGE, [np.arange(8.0), np.ones(8)], {"epsilon": 0.1}),
    "wide layer norm": ("LayerNormalization", IMAGE, [np.ones((6, 8))], {"axis": 2}),
    "gelu": ("Gelu", IMAGE, [], {}),
    "fast gelu": ("Gelu", IMAGE, [], {"approximate": "tanh"}),
    "shape": ("Shape", IMAGE, [], {"start": 1, "end": -1}),
    "gather": ("Gather", IMAGE, [np.array([[0, -1], [2, 1]])], {"axis": 1}),
    "gather one": ("Gather", IMAGE, [np.array(0)], {"axis": 1}),
    "concat": ("Concat", (2, 3), [np.ones((2, 2))], {"axis": -1}),
    "expand": ("Expand", (1, 3), [np.array([4, 2, 1])], {}),
    "softmax": ("Softmax", IMAGE, [], {"axis": 1}),
    "transpose": ("Transpose", IMAGE, [], {"perm": [0, 3, 1, 2]}),
    "reversed": ("Transpose", (2, 3, 4), [], {}),
    "flatten": ("Flatten", IMAGE, [], {"axis": 2}),
    "pool": ("GlobalAveragePool", IMAGE, [], {}),
    "squares": ("SpaceToDepth", IMAGE, [], {"blocksize": 2}),
    "quantize": ("QuantizeLinear", IMAGE, [np.float32(0.01), np.uint8(100)], {}),
    "quantize channels": ("QuantizeLinear", IMAGE, [np.full(4, 0.01, np.float32), np.zeros(4, np.int8)], {"axis": 1}),
    "slice": ("Slice", IMAGE, [np.array([1, -1]), np.array([2**63 - 1, -6]), np.array([1, -1]), np.array([1, -2])], {}),
    "slice from the front": ("Slice", IMAGE, [np.array([0, 1]), np.array([2, -1])], {}),
    "slice backwards": ("Slice", IMAGE, [np.array([-1]), np.array([-(2**63)]), np.array([2]), np.array([-1])], {}),
    "squeeze": ("Squeeze", (1, 3, 1), [np.array([-1])], {}),
    "squeeze all": ("Squeeze", (1, 3, 1), [], {}),
    "unsqueeze": ("Unsqueeze", (2, 3), [np.array([-1, 0])], {}),
    "sums so far": ("CumSum", (2, 3), [np.array(1)], {}),
    "elements": ("GatherElements", (2, 3), [np.array([[0, -1], [2, 1]])], {"axis": 1}),
    "points": ("GatherND", (2, 3, 4), [np.array([[[0, -1]], [[1, 2]]])], {}),
    "largest": ("Max", (2, 3), [np.arange(3.0), np.array(0.5)], {}),
    "power": ("Pow", (2, 3), [np.array(2.0)], {}),
    **{
        name: (name, (2, 3), [np.zeros(3)], {})
        for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    },
    **{name: (name.capitalize(), (2, 3), [], {}) for name in ("relu", "sigmoid", "tanh", "identity", "erf")},
    **{name: (name.capitalize(), (2, 3), [np.arange(1.0, 4)], {}) for name in ("add", "sub", "mul", "div")},
}


def graph_of(
    operator: str,
    shape: tuple[int, ...],
    constants: list[np.ndarray],
    attributes: dict[str, Any],
    *,
    opset: int = 20,
    domain: str = "",
) -> onnx.ModelProto:
    arrays = [item.astype(np.float32) if item.dtype == np.float64 else item for item in constants]
    names = [f"c{index}" for index in range(len(arrays))]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *names], ["y"], domain=domain, **attributes)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT if domain else TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(np.asarray(array), name) for array, name in zip(arrays, names, strict=True)],
    )
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_means_what_onnx_says(case: str) -> None:
    _operator, shape, *_ = CASES[case]
    model = graph_of(*CASES[case])
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": inputs})
    found = evaluate(model, {"x": inputs})
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


YES_NO = np.array([[True, False], [False, True]])
FIXED: dict[str, tuple[str, list[np.ndarray], dict[str, Any]]] = {
    "where": ("Where", [YES_NO, np.array([1.0, 2.0]), np.array(-3.4e38)], {}),
    "not": ("Not", [YES_NO], {}),
    "and": ("And", [YES_NO, np.array([True, False])], {}),
    "or": ("Or", [YES_NO, np.array([True, False])], {}),
    "range": ("Range", [np.array(2), np.array(11), np.array(3)], {}),
    "root": ("Sqrt", [np.array([0.0, 2.0])], {}),
    "whole division": ("Div", [np.array([7, -7]), np.array(2)], {}),
    "expand truth": ("Expand", [YES_NO, np.array([3, 1, 2])], {}),
    "ids": ("Equal", [np.array([0, 1]), np.array(1)], {}),
    "rows": ("Gather", [np.arange(12.0).reshape(4, 3), np.array([[3, 0]])], {"axis": 0}),
    "blocks": ("DequantizeLinear", [np.arange(-8, 2, dtype=np.int8).reshape(2, 5), np.ones((2, 2))], BLOCKS),
    **{
        f"cast to {kind}": ("Cast", [np.array([-1.7, 0.0, 2.5])], {"to": getattr(TensorProto, kind)})
        for kind in ("FLOAT", "BOOL", "INT32", "INT64")
    },
}


@pytest.mark.parametrize("case", FIXED)
def test_an_operator_on_integers_and_truths_means_what_onnx_says(case: str) -> None:
    operator, constants, attributes = FIXED[case]
    model = graph_of(operator, (), constants, attributes, opset=21)
    del model.graph.input[:], model.graph.node[0].input[0]
    (expected,) = ReferenceEvaluator(model).run(None, {})
    found = evaluate(model, {})
    assert found.dtype == (np.float64 if expected.dtype == np.float32 else expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.shape == expected.shape


def test_every_operator_is_tested() -> None:
    in_models = {"DynamicQuantizeLinear", "MatMulInteger"}  # see below
    assert {case[0] for case in (*CASES.values(), *FIXED.values())} | in_models == OPERATORS.keys()


def packed(integers: np.ndarray, bits: int) -> np.ndarray:
    """Signed integers (N, K) as ONNX Runtime's own operators store them."""
    shifted = (integers + 2 ** (bits - 1)).astype(np.uint8)
    return shifted if bits == 8 else shifted[:, 0::2] | shifted[:, 1::2] << 4


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (4, 64), (8, 16), (8, 64)])
def test_rows_of_blocks_are_what_onnx_runtime_gathers(bits: int, block: int) -> None:
    rng = np.random.default_rng(0)
    table = packed(rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 40)), bits)
    scales = rng.normal(size=(7, -(-40 // block))).astype(np.float32)
    ids = np.array([[0, 6, 3], [-1, 2, 2]])
    attributes = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    model = graph_of("GatherBlockQuantized", (), [table, ids, scales], attributes, domain="com.microsoft")
    del model.graph.input[:], model.graph.node[0].input[0]
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})
    np.testing.assert_allclose(evaluate(model, {}), expected, rtol=1e-6)


@pytest.mark.parametrize(("inputs", "block", "bias"), [(64, 32, True), (64, 64, False), (40, 16, True)])
def test_a_product_of_blocks_is_what_onnx_runtime_computes(inputs: int, block: int, bias: bool) -> None:
    rng = np.random.default_rng(0)
    blocks = -(-inputs // block)
    integers = rng.integers(-8, 8, (5, blocks * block))
    scales = rng.normal(size=(5, blocks)).astype(np.float32)
    constants = [packed(integers, 4).reshape(5, blocks, block // 2), scales]
    attributes = {"K": inputs, "N": 5, "bits": 4, "block_size": block, "accuracy_level": 1}
    model = graph_of("MatMulNBits", (3, inputs), constants, attributes, domain="com.microsoft")
    if bias:
        model.graph.initializer.append(numpy_helper.from_array(np.arange(5, dtype=np.float32), "bias"))
        model.graph.node[0].input.extend(["", "", "bias"])
    x = rng.normal(size=(3, inputs)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(evaluate(model, {"x": x}), expected, rtol=1e-4, atol=1e-4)


def test_own_operators_are_tested() -> None:
    assert MICROSOFT.keys() == {"GatherBlockQuantized", "MatMulNBits"}


def test_a_table_of_8_bits_is_rounded_row_by_row() -> None:
    values = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    values[2] = 0
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scales[2] = 1
    expected = np.rint(values / scales) * scales.astype(np.float64)
    found = Table(8, None).snap(torch.from_numpy(values).double()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_table_of_4_bits_gives_the_largest_of_a_block_to_the_longer_side() -> None:
    values = np.array([[1.0, -3.5, 0.6, 7.0, 7.0, 0.0, 0.0, 0.0, 16.0, -15.9]], np.float32)
    found = Table(4, 4).snap(torch.from_numpy(values).double()).numpy()
    # Steps of -0.875 with 7 as -8, of -0.875 again, and of -2, where -15.9 is 7.95 steps and 7 is the last.
    expected = [0.875, -3.5, 0.875, 7.0, 7.0, 0.0, 0.0, 0.0, 16.0, -14.0]
    np.testing.assert_allclose(found, [expected])


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_quantized_files_mean_what_onnx_says(digits: Digits, tmp_path: Any, scheme: str) -> None:
    from edgeforge.quantizers.int8_dynamic import Int8Dynamic
    from edgeforge.quantizers.int8_static import Int8Static

    quantizer = Int8Static(layout="arm", samples=64) if scheme == "static" else Int8Dynamic()
    source = digits.onnx("resnet" if scheme == "static" else "vit")
    quantizer.quantize(source, digits.job(tmp_path))
    model = onnx.load(tmp_path / "model.onnx")
    images = digits.data.batch("validation", range(4))["pixel_values"].numpy()
    (expected,) = ReferenceEvaluator(model).run(None, {"pixel_values": images})
    np.testing.assert_allclose(evaluate(model, {"pixel_values": images}, dtype="float32"), expected, atol=5e-3)


def test_what_it_does_not_know_it_says() -> None:
    with pytest.raises(UnknownOperator, match=r"ai\.onnx\.Sin"):
        evaluate(graph_of("Sin", (2, 3), [], {}), {"x": np.ones((2, 3), np.float32)})
    with pytest.raises(UnknownOperator, match="auto_pad"):
        evaluate(
            graph_of("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}),
            {"x": np.ones(IMAGE, np.float32)},
        )
    foreign = graph_of("Relu", (2, 3), [], {})
    foreign.graph.node[0].domain = "com.example"
    with pytest.raises(UnknownOperator, match=r"com\.example\.Relu"):
        evaluate(foreign, {"x": np.ones((2, 3), np.float32)})


def test_grids_against_the_formula() -> None:
    """(clip(round(x / scale) + zero_point) - zero_point) * scale, ties to even, on values, weights and biases."""
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    model = graph_of("Gemm", (4, 3), [weight, bias], {"transB": 1})
    inputs = rng.normal(size=(4, 3)).astype(np.float32)
    scales = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    entries = {
        "scheme": "static",
        "values": {
            "x": {"type": "uint8", "scale": 0.02, "zero_point": 120, "axis": None},
            "y": {"type": "int8", "scale": 0.05, "zero_point": -3, "axis": None},
        },
        "weights": {"c0": {"type": "int8", "scale": scales.tolist(), "zero_point": [0] * 5, "axis": 0}},
    }
    step = np.float32(0.02)
    x = (np.clip(np.rint(inputs / step) + 120, 0, 255) - 120) * np.float64(step)
    w = np.clip(np.rint(weight / scales[:, None]), -128, 127) * scales[:, None].astype(np.float64)
    b = np.rint(bias / np.float64(step) / scales) * np.float64(step) * scales
    y = (np.clip(np.rint((x @ w.T + b) / 0.05) - 3, -128, 127) + 3) * np.float64(np.float32(0.05))
    np.testing.assert_allclose(evaluate(model, {"x": inputs}, grids=Grids.read(entries)), y, atol=1e-6)


def test_ties_are_decided_in_float32() -> None:
    """Half of a float32 step is a tie in float32 division and none in float64."""
    scale = np.float32(2) / np.float32(255)
    grid = Grid("uint8", np.asarray(scale), np.asarray(128, np.uint8), None)
    model = graph_of("Identity", (1,), [], {})
    found = evaluate(model, {"x": np.array([1.0], np.float32)}, grids=Grids(values={"x": grid}))
    model = graph_of("QuantizeLinear", (1,), [np.asarray(scale), np.asarray(128, np.uint8)], {})
    (expected,) = ReferenceEvaluator(model).run(None, {"x": np.array([1.0], np.float32)})
    assert found == (int(expected[0]) - 128) * np.float64(scale)
