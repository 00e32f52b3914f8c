"""Eight-bit weights in ONNX files; activations become eight bits as they come, at every run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.extras import require
from edgeforge.core.stage import Job
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._embeddings import Embeddings, quantize_embeddings
from edgeforge.quantizers._record import Numbers, Record, copy_companions

if TYPE_CHECKING:
    import onnx

OPERATORS = ("Gemm", "MatMul")


class Int8Dynamic(Quantizer):
    """Dynamic INT8: layers that are matrix products compute in integers; convolutions stay in float.

    Weights have one scale per output channel. The scale of an activation is found at run time over the whole batch,
    so a sample's result depends, within the rounding, on what else is in its batch. Needs no calibration data.
    """

    kind: Literal["int8_dynamic"] = "int8_dynamic"
    embeddings: Embeddings = "int8"

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    writes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.onnx_graph",
        "edgeforge.onnx_rows",
        "edgeforge.quantizers._embeddings",
        "edgeforge.quantizers._record",
    )

    def advice(self, export: str, reads: str) -> str | None:
        if reads != "images":
            return None
        return (
            "int8_dynamic quantizes matrix products only, since ONNX Runtime's dynamic convolutions are far "
            "slower than float32: convolutional networks stay nearly as large. For those use int8_static"
        )

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Quantizer."""
        original = onnx_graph.load(model.path)
        quantized = _quantized(original)
        weights = _recorded(quantized, original)
        record = Record("dynamic", weights, tables=quantize_embeddings(quantized, self.embeddings))
        layers = _layers(original)
        onnx_graph.compact(quantized, quantized=True)
        onnx_graph.describe(quantized, job.data.interface, job.task.kind)
        size = onnx_graph.save(quantized, job.folder)
        copy_companions(model, job)
        record.write(job.folder)
        if not weights:
            job.progress.warn("int8_dynamic found no matrix product to quantize: the file is as it was")
        return {
            "scheme": "dynamic",
            "bits": 8,
            "weight_type": "int8",
            "activation_type": "uint8",
            "per_channel": True,
            "quantized": [name for name, operator in layers.items() if operator in OPERATORS],
            "kept_float": {name: "a convolution" for name, operator in layers.items() if operator not in OPERATORS},
            "coverage_percent": record.coverage(original),
            "bytes": size,
            **({"embeddings": self.embeddings} if record.tables else {}),
        }


def _layers(model: onnx.ModelProto) -> dict[str, str]:
    """Layer -> operator, for the nodes that multiply by a constant weight."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        node.name: node.op_type
        for node in model.graph.node
        if node.op_type in ("Conv", *OPERATORS) and node.input[1] in constants
    }


def _quantized(original: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    quantization = require("onnxruntime.quantization", "onnx")
    module = require("onnxruntime.quantization.onnx_quantizer", "onnx")
    model = onnx.ModelProto()
    model.CopyFrom(original)
    # Shapes that the quantizer's rewriting of Gemm makes untrue.
    model.graph.ClearField("value_info")
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node {index}"
    kind = quantization.QuantType
    with _quiet():
        quantizer = module.ONNXQuantizer(
            model,
            True,
            False,
            module.QuantizationMode.IntegerOps,
            False,
            kind.QInt8,
            kind.QUInt8,
            None,
            [],
            [],
            list(OPERATORS),
            {"MatMulConstBOnly": True},
        )
        quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without advice on the root logger to use steps that the exporter already did."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _recorded(quantized: onnx.ModelProto, original: onnx.ModelProto) -> dict[str, Numbers]:
    """The numbers of every quantized weight; axes are the original's, since weights of Gemm were transposed."""
    constants = onnx_graph.initializers(quantized)
    found = {}
    for node in original.graph.node:
        if node.op_type not in OPERATORS:
            continue
        # ONNX Runtime since 1.32 gives the transposed weight of a Gemm a name of its own.
        names = (node.input[1], f"{node.input[1]}_Transposed")
        name = next((name for name in names if f"{name}_quantized" in constants), None)
        if name is None:
            continue
        scale, zero_point = constants[f"{name}_scale"], constants[f"{name}_zero_point"]
        transposed = node.op_type == "Gemm" and onnx_graph.attribute(node, "transB", 0)
        axis = (0 if transposed else 1) if scale.size > 1 else None
        found[node.input[1]] = Numbers(str(zero_point.dtype), np.squeeze(scale), np.squeeze(zero_point), axis)
    return found
