"""What an ONNX graph asks of a processor: its operations, each with its work and its traffic, counted from shapes.

Counts are numbers of elements, not bytes, for a batch of one at the greatest length: how many bytes an element takes
follows from the precision. Quantizing and dequantizing nodes are not operations; the layers they stand around are the
same layers. Weights are never read: a graph whose initializers have shapes and no content is enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from edgeforge import onnx_graph
from edgeforge.estimators import _shapes

if TYPE_CHECKING:
    import onnx

Class = Literal[
    "convolution", "grouped", "depthwise", "matmul", "product", "activation", "pointwise", "movement", "reduction"
]
"""`matmul` has constant weights, `product` (attention) has none; `activation` is a function of one value that is no
ReLU; `movement` copies; `reduction` also normalizes."""
Precision = Literal["float", "w8a8", "w8a16"]

CACHED = 10**6
"""Elements that an operation may touch before a phone's caches no longer hold them, at about a byte each."""


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_CONVOLUTIONS = _words("Conv ConvTranspose QLinearConv")
_PRODUCTS = _words("Gemm MatMul QGemm QLinearMatMul")
_MOVES = _words(
    "Concat DepthToSpace Expand Gather GatherElements GatherND Pad Resize Slice SpaceToDepth Split Tile Transpose",
    "Upsample Where",
)
_REDUCES = _words(
    "ArgMax AveragePool GlobalAveragePool GlobalMaxPool GroupNormalization InstanceNormalization LayerNormalization",
    "LogSoftmax LpNormalization MaxPool RMSNormalization ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum",
    "ReduceSumSquare Softmax TopK",
)
_ACTIVATIONS = _words(
    "Celu Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Mish PRelu Selu Sigmoid Softplus Softsign Swish Tanh"
)
_GATES = _words("HardSigmoid Sigmoid")
_POINTWISE = _ACTIVATIONS | _words(
    "Abs Add And BatchNormalization Ceil Clip Cos CumSum Div Equal Exp Floor Greater GreaterOrEqual Less LessOrEqual",
    "Log Max Min Mod Mul Neg Not Or Pow Reciprocal Relu Round Sign Sin Sqrt Sub",
)
# They take no time of their own: views, shapes, and what stands around quantized layers.
_FREE = _words(
    "Cast CastLike Constant ConstantOfShape DequantizeLinear Dropout Flatten Identity QuantizeLinear Range Reshape",
    "Shape Size Squeeze Unsqueeze",
)
# Runtimes compute these while they still hold the result of the layer before.
_FUSED = _words("BatchNormalization Clip Relu")
_SCALED = _words("Add Div Mul Pow Sub")


class Uncounted(Exception):
    """The graph holds something whose work cannot be counted; the message is a sentence."""


@dataclass(frozen=True)
class Operation:
    """One layer's work. `weights`, `read` and `written` are elements; `quantized`: its operands are integers."""

    type: str
    kind: Class
    read: int
    written: int
    macs: int = 0
    weights: int = 0
    quantized: bool = False


@dataclass(frozen=True)
class Work:
    """A whole graph: its operations in order, and the elements that go in and come out."""

    operations: tuple[Operation, ...]
    inputs: int
    outputs: int

    def terms(self) -> dict[str, float]:
        """What a latency is a sum of, each times a coefficient: 10^9 multiply-accumulates, 10^6 elements, or counts."""
        millions = {
            kind: sum(o.read + o.written for o in self.operations if o.kind == kind) / 1e6 for kind in get_args(Class)
        }
        activation = sum(o.written for o in self.operations if o.kind == "activation") / 1e6
        plain = millions["pointwise"] + millions["reduction"]
        return {
            "base": 1.0,
            "operations": float(len(self.operations)),
            "gmacs": self.gmacs(),
            "grouped_gmacs": self._gmacs("grouped", "depthwise"),
            "weights": sum(o.weights for o in self.operations) / 1e6,
            "layer_traffic": sum(millions[kind] for kind in ("convolution", "matmul", "grouped", "depthwise")),
            "attention_traffic": millions["product"],
            "pointwise_traffic": plain,
            "moved": millions["movement"],
            "other_traffic": plain + millions["movement"] + activation + millions["product"],
            "spilled": sum(max(0, o.read + o.written - CACHED) for o in self.operations if o.kind != "activation")
            / 1e6,
            "inputs": self.inputs / 1e6,
            "outputs": self.outputs / 1e6,
        }

    def gmacs(self) -> float:
        """All multiply-accumulates (10^9)."""
        return self._gmacs(*get_args(Class))

    def shares(self) -> dict[str, float]:
        """The part of the multiply-accumulates in grouped convolutions, products with weights, and attention."""
        kinds: dict[str, tuple[Class, ...]] = {
            "grouped convolutions": ("grouped", "depthwise"),
            "matrix products": ("matmul",),
            "attention": ("product",),
        }
        return {name: self._gmacs(*parts) / max(self.gmacs(), 1e-12) for name, parts in kinds.items()}

    def quantized_share(self) -> float:
        """The part of the multiply-accumulates whose operands are integers."""
        return sum(o.macs for o in self.operations if o.quantized) / 1e9 / max(self.gmacs(), 1e-12)

    def _gmacs(self, *kinds: Class) -> float:
        return sum(o.macs for o in self.operations if o.kind in kinds) / 1e9


def work(model: onnx.ModelProto) -> Work:
    """What the graph asks for. Raises Uncounted with the reason where that cannot be counted."""
    reader = _Reader(model)
    return Work(tuple(reader.operations()), reader.elements(model.graph.input), reader.elements(model.graph.output))


def precision(model: onnx.ModelProto) -> Precision:
    """How the file computes: in floating point, or with weights of 8 bits and activations of 8 or 16.

    Raises Uncounted for every other arithmetic: ranges taken at run time, weights alone quantized, a mixture.
    """
    from onnx import TensorProto

    types = {node.op_type for node in model.graph.node}
    if types & {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul"}:
        raise Uncounted(
            "its activations are quantized while it runs (int8_dynamic), of which there are no measurements"
        )
    if types & {"MatMulNBits", "GatherBlockQuantized"}:
        raise Uncounted("its weights have 4 bits, of which there are no measurements")
    if not types & {"QuantizeLinear", "DequantizeLinear"}:
        return "float"
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    eight, sixteen = {TensorProto.INT8, TensorProto.UINT8}, {TensorProto.INT16, TensorProto.UINT16}
    written = {
        constants.get(node.input[2], TensorProto.UINT8) if len(node.input) > 2 else TensorProto.UINT8
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    weights = {
        constants[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    } - {TensorProto.INT32}
    if not written:
        raise Uncounted("only its weights are quantized, of which there are no measurements")
    if weights <= eight and written <= eight:
        return "w8a8"
    if weights <= eight and written <= sixteen:
        return "w8a16"
    raise Uncounted("it mixes integer types in a way of which there are no measurements")


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            model = _shapes.of_one_sample(model, _greatest_length(model))
        except ValueError as error:
            raise Uncounted(f"{error}, and the file does not say how long it may be") from error
        self.graph = model.graph
        self.shapes = _shapes.known(model)
        self.producer = {name: node for node in model.graph.node for name in node.output}
        self.constant = {tensor.name for tensor in model.graph.initializer} | {""}
        for node in model.graph.node:
            if node.op_type in ("Shape", "Size") or all(name in self.constant for name in node.input):
                self.constant.update(node.output)

    def operations(self) -> Iterator[Operation]:
        for node in self.graph.node:
            if node.op_type in _FREE or node.output[0] in self.constant:
                continue
            if node.op_type in _CONVOLUTIONS:
                yield self._convolution(node)
            elif node.op_type in _PRODUCTS:
                yield self._product(node)
            elif node.op_type in _MOVES | _REDUCES | _POINTWISE:
                if not self._fused(node):
                    yield Operation(node.op_type, self._class_of(node), self._read(node), self._written(node))
            else:
                raise Uncounted(f"there are no measurements of the operator {node.op_type}")

    def _convolution(self, node: onnx.NodeProto) -> Operation:
        data, weight = (0, 3) if node.op_type == "QLinearConv" else (0, 1)
        kernel = self._shape(node.input[weight])
        if len(kernel) > 4:
            raise Uncounted("there are no measurements of convolutions over three axes")
        groups = int(onnx_graph.attribute(node, "group", 1))
        transposed = node.op_type == "ConvTranspose"
        source, result = self._shape(node.input[data]), self._shape(node.output[0])
        inputs, outputs = source[1] // groups, result[1] // groups
        places = math.prod((source if transposed else result)[2:]) * math.prod(kernel[2:])
        depthwise = groups > 1 and inputs == 1
        kind: Class = "depthwise" if depthwise else "grouped" if groups > 1 else "convolution"
        return Operation(
            node.op_type,
            kind,
            read=math.prod(source),
            written=math.prod(result),
            macs=places * groups * inputs * outputs,
            weights=math.prod(kernel),
            quantized=node.op_type == "QLinearConv" or self._decoded(node.input[weight]),
        )

    def _product(self, node: onnx.NodeProto) -> Operation:
        left, right = (0, 3) if node.op_type.startswith("Q") else (0, 1)
        first, second, result = (
            self._shape(node.input[left]),
            self._shape(node.input[right]),
            self._shape(node.output[0]),
        )
        flipped = node.op_type.endswith("Gemm") and onnx_graph.attribute(node, "transA", 0)
        inner = first[0] if flipped else first[-1]
        rows, columns = math.prod(result[:-1]), result[-1]
        fixed = node.input[right] in self.constant
        return Operation(
            node.op_type,
            "matmul" if fixed else "product",
            read=math.prod(first) + (0 if fixed else math.prod(second)),
            written=math.prod(result),
            macs=rows * columns * inner,
            weights=math.prod(second) if fixed else 0,
            quantized=node.op_type.startswith("Q") or self._decoded(node.input[right]),
        )

    def _fused(self, node: onnx.NodeProto) -> bool:
        """Whether the runtime computes it with the operation before: an activation, a constant factor."""
        if node.op_type in _SCALED and any(
            name in self.constant and all(size == 1 for size in self.shapes.get(name, (0,))) for name in node.input
        ):
            return True
        before = self._source(node.input[0])
        return node.op_type in _FUSED and before is not None and before.op_type in _CONVOLUTIONS | _PRODUCTS | {"Add"}

    def _class_of(self, node: onnx.NodeProto) -> Class:
        if node.op_type in _ACTIVATIONS or (node.op_type == "Mul" and self._gated(node)):
            return "activation"
        return "movement" if node.op_type in _MOVES else "reduction" if node.op_type in _REDUCES else "pointwise"

    def _gated(self, node: onnx.NodeProto) -> bool:
        """x * sigmoid(x), the form in which SiLU and hard swish are written."""
        sources = [self._source(name) for name in node.input]
        return any(
            gate is not None and gate.op_type in _GATES and self._shape(gate.output[0]) == self._shape(node.output[0])
            for gate in sources
        )

    def _source(self, name: str) -> onnx.NodeProto | None:
        """The node that computes a value, behind what only passes it on."""
        node = self.producer.get(name)
        while node is not None and node.op_type in _FREE and node.input:
            node = self.producer.get(node.input[0])
        return node

    def _decoded(self, name: str) -> bool:
        """Whether a value comes out of a DequantizeLinear, perhaps transposed or reshaped."""
        node = self.producer.get(name)
        while node is not None and node.op_type in ("Transpose", "Reshape", "Identity"):
            node = self.producer.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"

    def _read(self, node: onnx.NodeProto) -> int:
        if node.op_type == "Gather":
            return self._written(node)  # of a table, the rows that are asked for
        return sum(math.prod(self._shape(name)) for name in node.input if name not in self.constant)

    def _written(self, node: onnx.NodeProto) -> int:
        return sum(math.prod(self._shape(name)) for name in node.output if name)

    def elements(self, values: Iterable[onnx.ValueInfoProto]) -> int:
        """Elements of the graph's own inputs or outputs."""
        return sum(math.prod(self._shape(value.name)) for value in values if value.name not in self.constant)

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None or any(size is None for size in shape):
            raise Uncounted("the sizes of its inner values depend on more than the sizes of its inputs")
        return tuple(size for size in shape if size is not None)


def _greatest_length(model: onnx.ModelProto) -> int | None:
    said: Mapping[str, str] = {item.key: item.value for item in model.metadata_props}
    length = json.loads(said.get("preprocessing", "{}")).get("max_length")
    return None if length is None else int(length)
