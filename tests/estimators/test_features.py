"""Work and precision of graphs, against torch's own counter and against the formulas by hand."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeforge.estimators import _features
from edgeforge.estimators._features import Uncounted

FLOAT = TensorProto.FLOAT


def graph(
    nodes: list[Any], *, shape: tuple[Any, ...], out: tuple[Any, ...], constants: dict[str, Any], **metadata: str
) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    ends = (helper.make_tensor_value_info("x", FLOAT, shape), helper.make_tensor_value_info("y", FLOAT, out))
    made = helper.make_graph(nodes, "g", [ends[0]], [ends[1]], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)])
    helper.set_model_props(model, metadata)
    return model


def weight(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def exported(model: nn.Module, sample: torch.Tensor) -> onnx.ModelProto:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (sample,), stream, dynamo=False, opset_version=17)
    return onnx.load_from_string(stream.getvalue())


class Mixed(nn.Module):
    """One of every class of multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Conv2d(16, 32, 3, padding=1, groups=4),
            nn.ConvTranspose2d(32, 24, 2, 2),
        )
        self.linear = nn.Linear(24, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.linear(self.convs(x).flatten(2).transpose(1, 2))
        return torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens


def test_multiplications_are_those_that_torch_counts() -> None:
    sample = torch.zeros(1, 3, 16, 16)
    model = Mixed().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(sample)
    work = _features.work(exported(model, sample))
    assert 1e9 * work.gmacs() == pytest.approx(counter.get_total_flops() / 2)
    assert {operation.kind for operation in work.operations} >= {
        "convolution",
        "depthwise",
        "grouped",
        "matmul",
        "product",
    }
    # 8 x 8 places, 16 channels, one 3 x 3 filter each
    (depthwise,) = (item for item in work.operations if item.kind == "depthwise")
    assert depthwise.macs == 8 * 8 * 16 * 9
    assert (depthwise.read, depthwise.written, depthwise.weights) == (1024, 1024, 144)
    assert sum(work.shares().values()) < 1


def test_activations_behind_a_layer_are_part_of_it_and_gates_are_activations() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("Mul", ["b", "c"], ["d"]),
        helper.make_node("Mul", ["d", "half"], ["e"]),
        helper.make_node("Add", ["e", "b"], ["y"]),
    ]
    constants = {"w": weight(4, 3, 1, 1), "half": np.float32(0.5)}
    work = _features.work(graph(nodes, shape=(1, 3, 5, 5), out=(1, 4, 5, 5), constants=constants))
    kinds = [(item.type, item.kind) for item in work.operations]
    assert kinds == [("Conv", "convolution"), ("Sigmoid", "activation"), ("Mul", "activation"), ("Add", "pointwise")]
    terms = work.terms()
    assert terms["pointwise_traffic"] == pytest.approx(3 * 100 / 1e6)
    assert terms["other_traffic"] == pytest.approx((3 * 100 + 2 * 100) / 1e6)
    assert (terms["inputs"], terms["outputs"]) == (pytest.approx(75e-6), pytest.approx(100e-6))


def qdq(activation: Any, kernel: Any) -> onnx.ModelProto:
    """A convolution between quantized ends."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["y"]),
    ]
    constants = {"s": np.float32(0.1), "z": activation(0), "w": np.zeros((4, 3, 1, 1), kernel)}
    return graph(nodes, shape=(1, 3, 5, 5), out=(1, 4, 5, 5), constants=constants)


@pytest.mark.parametrize(
    ("activation", "kernel", "expected"),
    [(np.uint8, np.int8, "w8a8"), (np.int8, np.int8, "w8a8"), (np.uint16, np.int8, "w8a16")],
)
def test_a_quantized_layer_is_the_same_work(activation: Any, kernel: Any, expected: str) -> None:
    model = qdq(activation, kernel)
    plain = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        shape=(1, 3, 5, 5),
        out=(1, 4, 5, 5),
        constants={"w": weight(4, 3, 1, 1)},
    )
    assert _features.precision(model) == expected
    assert _features.work(model).terms() == _features.work(plain).terms()
    assert _features.work(model).quantized_share() == 1
    assert _features.precision(plain) == "float"
    assert _features.work(plain).quantized_share() == 0


def test_arithmetic_that_nobody_measured_is_refused() -> None:
    shapes: dict[str, Any] = {"shape": (1, 3, 5, 5), "out": (1, 4, 5, 5)}
    alone = [helper.make_node("DequantizeLinear", ["w", "s"], ["wd"]), helper.make_node("Conv", ["x", "wd"], ["y"])]
    constants = {"s": np.float32(0.1), "w": np.zeros((4, 3, 1, 1), np.int8)}
    with pytest.raises(Uncounted, match="only its weights"):
        _features.precision(graph(alone, **shapes, constants=constants))
    dynamic = [helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "b", "c"])]
    with pytest.raises(Uncounted, match="while it runs"):
        _features.precision(graph(dynamic, **shapes, constants={}))
    four = [helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")]
    with pytest.raises(Uncounted, match="4 bits"):
        _features.precision(graph(four, **shapes, constants={}))
    with pytest.raises(Uncounted, match="mixes"):
        _features.precision(qdq(np.uint8, np.uint16))


def test_operators_that_nobody_measured_are_refused_by_name() -> None:
    unknown = graph([helper.make_node("NonZero", ["x"], ["y"])], shape=(1, 4), out=(2, 4), constants={})
    with pytest.raises(Uncounted, match="NonZero"):
        _features.work(unknown)
    volume = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        shape=(1, 2, 4, 4, 4),
        out=(1, 2, 4, 4, 4),
        constants={"w": weight(2, 2, 1, 1, 1)},
    )
    with pytest.raises(Uncounted, match="three axes"):
        _features.work(volume)


def test_open_axes_are_one_sample_of_the_greatest_length() -> None:
    node = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    said = {"preprocessing": '{"tokenizer": "tokenizer.json", "max_length": 7}'}
    model = graph(node, shape=("batch", "length", 4), out=("batch", "length", 5), constants={"w": weight(4, 5)}, **said)
    (operation,) = _features.work(model).operations
    assert operation.macs == 7 * 4 * 5
    silent = graph(node, shape=("batch", "length", 4), out=("batch", "length", 5), constants={"w": weight(4, 5)})
    with pytest.raises(Uncounted, match="how long"):
        _features.work(silent)


def test_sizes_that_the_graph_computes_are_followed() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"]),
        helper.make_node("Mul", ["n", "two"], ["m"]),
        helper.make_node("Concat", ["m", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    constants = {
        "first": np.array([0]),
        "two": np.array([2]),
        "rest": np.array([-1]),
        "w": weight(3, 5),
    }
    work = _features.work(graph(nodes, shape=("batch", 6), out=("a", "b"), constants=constants))
    assert [(item.type, item.macs) for item in work.operations] == [("MatMul", 2 * 3 * 5)]
    assert work.outputs == 10


def test_weights_need_no_content() -> None:
    model = exported(Mixed(), torch.zeros(1, 3, 16, 16))
    full = _features.work(model).terms()
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 8192:
            tensor.ClearField("raw_data")
    assert _features.work(model).terms() == full
