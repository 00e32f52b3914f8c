"""An ONNX file under verification."""

from __future__ import annotations

from collections.abc import Mapping

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.runtimes.onnxruntime import OnnxSession
from edgeforge.verification._opened import Opened


class OpenedOnnx(Opened):
    """See `Opened`; `proto` is the file's graph. Raises ModelError where it does not open."""

    session: OnnxSession

    def __init__(self, inputs: Mapping[str, Artifact], job: Job) -> None:
        folder = inputs["file"].path
        self.proto = onnx_graph.load(folder)
        self.batch_matters = "DynamicQuantizeLinear" in {node.op_type for node in self.proto.graph.node}
        super().__init__(inputs, job, OnnxSession(folder / onnx_graph.MODEL))
