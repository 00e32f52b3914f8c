"""ONNX files: one `model.onnx` for any batch and length, beside what Transformers, optimum and Transformers.js read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.exporters import Exporter
from edgeforge.exporters._companions import write_companions
from edgeforge.exporters._onnx_decoder import decoder
from edgeforge.exporters._onnx_program import translated
from edgeforge.exporters._onnx_weights import BLOCKS_OPSET, write_quantized


class Onnx(Exporter):
    """ONNX by ``torch.onnx.export(dynamo=True)``: batch normalization and constants folded, for any batch size, and for
    any length of text up to the task's.

    Layers are named by their module path (other nodes and all values have short names), so later steps and profilers
    can refer to them. Weights that a weight-only quantizer chose are written as its integers. Language models become
    a decoder with past (keys and values go in and out), by optimum.
    """

    kind: Literal["onnx"] = "onnx"
    opset: int = Field(
        default=20,
        ge=18,
        le=23,
        description="Version of the operators; at least 21 where weights alone are quantized. From 21 on, ONNX Runtime "
        "1.31 on x86 cannot open s8 by s8 files of transformers.",
    )

    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript", "torch", "transformers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.exporters._companions",
        "edgeforge.exporters._onnx_decoder",
        "edgeforge.exporters._onnx_program",
        "edgeforge.exporters._onnx_weights",
        "edgeforge.models.loading",
        "edgeforge.models.quantized_weights",
        "edgeforge.models.tokenizer",
        "edgeforge.models.tokenizer_settings",
        "edgeforge.onnx_graph",
    )

    def export(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Exporter. Raises ModelError where torch cannot express the model as ONNX."""
        from edgeforge.models import loading, quantized_weights

        network = loading.load(model.path)
        interface = job.data.interface
        quantized = quantized_weights.read(model.path)
        opset = self.opset if quantized is None else max(self.opset, BLOCKS_OPSET)
        proto = decoder(network, opset) if interface.per_token else translated(network, interface, opset)
        facts: dict[str, Any] = {}
        if quantized is not None:
            facts["coverage_percent"] = write_quantized(proto, quantized)
        onnx_graph.compact(proto, quantized=False)
        proto.graph.name = network.config.model_type
        onnx_graph.describe(proto, interface, job.task.kind)
        size = onnx_graph.save(proto, job.folder)
        write_companions(network, interface, model.path, job.folder)
        return {
            **facts,
            "bytes": size,
            "opset": next(item.version for item in proto.opset_import if not item.domain),
            "ops": dict(sorted(Counter(node.op_type for node in proto.graph.node).items())),
        }
