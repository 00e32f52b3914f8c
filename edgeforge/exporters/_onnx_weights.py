"""Weight-only quantization in ONNX: the integers that a quantizer chose in torch, written as integers.

Four bits in a matrix product become ``com.microsoft.MatMulNBits``, which multiplies them as they are (eight bits too
where the file's operators are older than ``DequantizeLinear`` with blocks); of an embedding table only the rows that
are looked up become floats; everything else becomes ``DequantizeLinear`` before the operator that reads it: smaller,
not faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.errors import ModelError
from edgeforge.models.quantized_weights import LinearWeight, QuantizedWeights
from edgeforge.onnx_rows import MICROSOFT, IntegerTable, gathers_rows, lookup

if TYPE_CHECKING:
    import onnx

BLOCKS_OPSET = 21
"""The first with 4-bit integers and scales per block."""

PRODUCT_BLOCKS = (128, 64, 32, 16)
"""Block sizes of MatMulNBits, best first: 128 is fastest, at the same integers."""


def write_quantized(proto: onnx.ModelProto, quantized: QuantizedWeights) -> float:
    """Replace, in place, each constant that equals a quantized weight (or its transpose) by its integers.

    Returns the share of the graph's float numbers that became integers, in percent. Raises ModelError where a
    quantized weight is nowhere in the graph: it would be shipped in float under the name of a quantized model.
    """
    constants = onnx_graph.initializers(proto)
    floats = sum(array.size for array in constants.values() if array.dtype == np.float32)
    writer = _Writer(proto)
    covered = 0
    for name, weight in sorted(quantized.weights.items()):
        if not isinstance(weight, LinearWeight):
            raise ModelError(f"{name}: ONNX has no palettes", remedy="use method: linear, or export to coreml")
        places = list(_equal(constants, weight.dequantize()))
        if not places:
            raise ModelError(
                f"{name} is quantized, but the exported graph has no such constant",
                remedy="keep this layer in float, or report the model's family",
            )
        for constant, transposed in places:
            writer.replace(constant, weight, transposed=transposed)
            covered += weight.integers.size
    writer.finish()
    return 100 * covered / floats


def _equal(constants: dict[str, np.ndarray], weight: np.ndarray) -> Iterator[tuple[str, bool]]:
    """Names of the constants equal to `weight`, to the bit, and whether they are transposed."""
    for name, array in constants.items():
        if array.dtype != np.float32:
            continue
        if array.shape == weight.shape and np.array_equal(array, weight):
            yield name, False
        elif weight.ndim == 2 and array.shape == weight.T.shape and np.array_equal(array, weight.T):
            yield name, True


class _Writer:
    """Rewrites the nodes that read a constant."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.readers = onnx_graph.consumers(proto)
        self.instead: dict[int, list[onnx.NodeProto]] = {}
        self.decoders: list[onnx.NodeProto] = []
        self.added: set[str] = set()
        opset = next(item.version for item in proto.opset_import if not item.domain)
        self.product_bits = (4,) if opset >= BLOCKS_OPSET else (4, 8)

    def replace(self, constant: str, weight: LinearWeight, *, transposed: bool) -> None:
        decoded: str | None = None
        block = _product_block(weight) if weight.bits in self.product_bits else None
        for node in self.readers.get(constant, ()):
            if block is not None and _multiplies_by(node, constant, transposed):
                self._to_product(node, weight, block)
            elif block is not None and not transposed and self._flipped_for_products(node):
                # A table that is both looked up and, flipped, multiplied by: tied embeddings.
                for product in self.readers[node.output[0]]:
                    self._to_product(product, weight, block)
                self.instead[id(node)] = []
            elif transposed or not gathers_rows(node, constant) or not self._to_lookup(node, weight):
                decoded = decoded or self._decode(constant, weight, transposed)
                node.input[:] = [decoded if name == constant else name for name in node.input]

    def finish(self) -> None:
        nodes = [new for node in self.proto.graph.node for new in self.instead.get(id(node), [node])]
        self.proto.graph.ClearField("node")
        self.proto.graph.node.extend([*self.decoders, *nodes])
        if any(node.domain == MICROSOFT for node in nodes):
            self.proto.opset_import.add(domain=MICROSOFT, version=1)

    def _flipped_for_products(self, node: onnx.NodeProto) -> bool:
        """Whether the node transposes a matrix that is then only multiplied by."""
        if node.op_type != "Transpose" or list(onnx_graph.attribute(node, "perm", (1, 0))) != [1, 0]:
            return False
        readers = self.readers.get(node.output[0], [])
        return bool(readers) and all(_multiplies_by(reader, node.output[0], True) for reader in readers)

    def _constant(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.added:
            self.proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
            self.added.add(name)
        return name

    def _to_product(self, node: onnx.NodeProto, weight: LinearWeight, block: int) -> None:
        from onnx import helper

        channels, inputs = weight.shape
        stem = f"{node.input[1]}_{len(self.instead)}"
        packed, scales = packed_blocks(weight, block)
        bias = [node.input[2]] if node.op_type == "Gemm" and len(node.input) > 2 else []
        product = helper.make_node(
            "MatMulNBits",
            [
                node.input[0],
                self._constant(f"{stem}_integers", packed),
                self._constant(f"{stem}_scales", scales),
                *(["", "", *bias] if bias else []),
            ],
            list(node.output),
            name=node.name,
            domain=MICROSOFT,
            K=inputs,
            N=channels,
            bits=weight.bits,
            block_size=block,
            accuracy_level=4,
        )
        self.instead[id(node)] = [product]

    def _to_lookup(self, node: onnx.NodeProto, weight: LinearWeight) -> bool:
        """Whether the rows that a Gather looks up can be turned into floats after it."""
        scales = weight.scales.astype(np.float32)
        written = lookup(node, IntegerTable(weight.bits, weight.integers, scales, weight.block_size))
        if written is not None:
            self.instead[id(node)] = written[0]
            for name, array in written[1].items():
                self._constant(name, array)
        return written is not None

    def _decode(self, constant: str, weight: LinearWeight, transposed: bool) -> str:
        """A DequantizeLinear (and a Reshape, where blocks span a kernel) that gives back the constant."""
        from onnx import helper

        integers, scales, axis, block = _decodable(weight, transposed)
        shape = weight.shape[::-1] if transposed else weight.shape
        output = f"{constant}_float"
        decoded = output if integers.shape == shape else f"{constant}_rows"
        names = [
            self._integers(f"{constant}_integers", integers, weight.bits),
            self._constant(f"{constant}_scales", scales),
        ]
        blocks = {"block_size": block} if block else {}
        self.decoders.append(helper.make_node("DequantizeLinear", names, [decoded], axis=axis, **blocks))
        if decoded != output:
            target = self._constant(f"{constant}_shape", np.asarray(shape, dtype=np.int64))
            self.decoders.append(helper.make_node("Reshape", [decoded, target], [output]))
        return output

    def _integers(self, name: str, integers: np.ndarray, bits: int) -> str:
        if bits == 8:
            return self._constant(name, integers)
        import ml_dtypes

        return self._constant(name, integers.astype(ml_dtypes.int4))


def _multiplies_by(node: onnx.NodeProto, constant: str, transposed: bool) -> bool:
    """Whether the node computes inputs @ weight.T (+ bias) and nothing else."""
    if list(node.input).index(constant) != 1:
        return False
    if node.op_type == "MatMul":
        return transposed
    plain = node.op_type == "Gemm" and all(
        onnx_graph.attribute(node, name, default) == value
        for name, default, value in (("alpha", 1.0, 1.0), ("beta", 1.0, 1.0), ("transA", 0, 0))
    )
    return plain and bool(onnx_graph.attribute(node, "transB", 0)) is not transposed


def _product_block(weight: LinearWeight) -> int | None:
    """The block size MatMulNBits can hold this weight in; None where it cannot."""
    if len(weight.shape) != 2:
        return None
    inputs = weight.shape[1]
    if weight.block_size is None:
        # One scale for all inputs, so blocks may end anywhere: the fastest size that pads the least.
        return min(PRODUCT_BLOCKS[:3], key=lambda block: (-(-inputs // block) * block, -block))
    return next((block for block in PRODUCT_BLOCKS if weight.block_size % block == 0), None)


def packed_blocks(weight: LinearWeight, block: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight (N, K) of 4 or 8 bits as MatMulNBits stores it.

    Integers: uint8, (N, ceil(K / block), block * bits / 8), half of the range added, the lower half byte first, zeros
    behind K. Scales: float32, (N, ceil(K / block)).
    """
    channels, inputs = weight.shape
    blocks = -(-inputs // block)
    zero = 2 ** (weight.bits - 1)
    shifted = np.full((channels, blocks * block), zero, dtype=np.uint8)
    shifted[:, :inputs] = (weight.integers.astype(np.int16) + zero).astype(np.uint8)
    group = np.arange(blocks) * block * weight.scales.shape[1] // inputs
    scales = weight.scales.astype(np.float32)[:, group]
    if weight.bits == 8:
        return shifted.reshape(channels, blocks, block), scales
    pairs = shifted.reshape(channels, blocks, block // 2, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, scales


def _decodable(weight: LinearWeight, transposed: bool) -> tuple[np.ndarray, np.ndarray, int, int | None]:
    """Integers, float32 scales, axis and block size that DequantizeLinear turns into the weight, or into its rows.

    ONNX repeats no scale over a kernel, so a blocked convolution is decoded as one row per output channel and block.
    """
    channels, blocks = weight.scales.shape[:2]
    scales = weight.scales.astype(np.float32).reshape(channels, blocks)
    if transposed:
        flipped = weight.integers.T
        return (flipped, scales[:, 0], 1, None) if blocks == 1 else (flipped, scales.T, 0, weight.block_size)
    if blocks == 1:
        return weight.integers, scales[:, 0], 0, None
    if weight.integers.ndim == 2:
        return weight.integers, scales, 1, weight.block_size
    return weight.integers.reshape(channels * blocks, -1), scales.reshape(-1), 0, None
