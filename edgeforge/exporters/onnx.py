"""ONNX files: one `model.onnx`, dynamic batch, beside the JSON that Transformers, optimum and Transformers.js read."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.exporters import Exporter
from edgeforge.exporters._onnx_weights import write_quantized

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that hold a layer's weight and carry its module path as their name."""

BLOCKS_OPSET = 21
"""The first with 4-bit integers and scales per block."""

_PREFIX = "model."


class Onnx(Exporter):
    """ONNX by ``torch.onnx.export(dynamo=True)``: batch normalization folded, constants folded, any batch size.

    Layers are named by their module path (other nodes and all values have short names), so later steps and profilers
    can refer to them. Weights that a weight-only quantizer chose are written as its integers.
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
        "edgeforge.exporters._onnx_weights",
        "edgeforge.models.loading",
        "edgeforge.models.quantized_weights",
        "edgeforge.onnx_graph",
    )

    def export(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Exporter. Raises ModelError where torch cannot express the model as ONNX."""
        from edgeforge.models import loading, quantized_weights

        network = loading.load(model.path)
        interface = job.task.open().interface
        quantized = quantized_weights.read(model.path)
        opset = self.opset if quantized is None else max(self.opset, BLOCKS_OPSET)
        proto = _translated(network, interface, opset)
        _name_layers(proto)
        facts: dict[str, Any] = {}
        if quantized is not None:
            facts["coverage_percent"] = write_quantized(proto, quantized)
        onnx_graph.compact(proto, quantized=False)
        proto.graph.name = network.config.model_type
        onnx_graph.describe(proto, interface, job.task.kind)
        size = onnx_graph.save(proto, job.folder)
        _write_companions(network, interface, job)
        return {
            **facts,
            "bytes": size,
            "opset": opset,
            "ops": dict(sorted(Counter(node.op_type for node in proto.graph.node).items())),
        }


def _translated(network: PreTrainedModel, interface: Interface, opset: int) -> onnx.ModelProto:
    import torch

    # The plain form of attention becomes two products and a softmax; the fused one drags shape arithmetic along.
    network.set_attn_implementation("eager")
    # Two of everything: a batch of one would be taken for a constant.
    sample = torch.zeros(2, *interface.input_shape)
    try:
        with _quiet():
            program = torch.onnx.export(
                _logits_only(network),
                (sample,),
                dynamo=True,
                input_names=[interface.input_name],
                output_names=[interface.output_name],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=opset,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ModelError(
            f"torch cannot write this {type(network).__name__} as ONNX: {str(error).splitlines()[0]}",
            remedy="exclude the target, or report the model's family",
        ) from error
    assert program is not None
    proto = program.model_proto
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto


def _logits_only(network: PreTrainedModel) -> Any:
    import torch

    class Logits(torch.nn.Module):
        """Takes the input by position and returns the logits alone: a file has plain tensors on both ends."""

        def __init__(self) -> None:
            super().__init__()
            self.model = network

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(inputs).logits
            return logits

    return Logits().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about libraries that no model here uses; what goes wrong is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _name_layers(proto: onnx.ModelProto) -> None:
    """Give each layer with a weight its module path, ``resnet.embedder...``, and nothing else a name."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    taken: Counter[str] = Counter()
    for node in proto.graph.node:
        name = ""
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in constants:
            path = _module_path(node)
            taken[path] += 1
            name = path if taken[path] == 1 else f"{path}#{taken[path]}"
        node.name = name


def _module_path(node: onnx.NodeProto) -> str:
    weight = str(node.input[1])
    if weight.startswith(_PREFIX) and weight.endswith(".weight"):
        return weight.removeprefix(_PREFIX).removesuffix(".weight")
    # Transposed weights are new constants; what is left is the scope: ['', 'model', ..., the layer, its operation].
    scopes = next((item.value for item in node.metadata_props if item.key == "pkg.torch.onnx.name_scopes"), "[]")
    path = ast.literal_eval(scopes)
    return str(path[-2]).removeprefix(_PREFIX) if len(path) > 1 else node.op_type.lower()


def _write_companions(network: PreTrainedModel, interface: Interface, job: Job) -> None:
    """``config.json`` (with the labels) and ``preprocessor_config.json``."""
    config = network.config.to_diff_dict()
    for private in ("_name_or_path", "_attn_implementation", "_attn_implementation_autoset"):
        config.pop(private, None)
    config["architectures"] = [type(network).__name__]
    config["id2label"] = dict(enumerate(interface.labels))
    config["label2id"] = {label: index for index, label in enumerate(interface.labels)}
    for name, content in (("config.json", config), (onnx_graph.PREPROCESSOR, onnx_graph.preprocessor(interface))):
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        (job.folder / name).write_text(text + "\n", encoding="utf-8")
