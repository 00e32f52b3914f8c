"""A torch model as an ONNX graph in memory: what every exporter that goes through ONNX starts from."""

from __future__ import annotations

import ast
import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import ModelError
from edgeforge.core.task import Input, Interface

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators that hold a layer's weight and carry its module path as their name."""

_PREFIX = "model."


def translated(network: PreTrainedModel, interface: Interface, opset: int) -> onnx.ModelProto:
    """The model with the task's inputs and output; layers carry their module path as name, nothing else has one.

    Raises ModelError where torch cannot express the model as ONNX.
    """
    import torch

    from edgeforge.models.example import example_inputs
    from edgeforge.models.loading import quiet

    # The plain form of attention becomes two products and a softmax; the fused one drags shape arithmetic along.
    with quiet():
        network.set_attn_implementation("eager")
    # Two of everything: a batch of one would be taken for a constant.
    sample = example_inputs(interface, 2)
    try:
        with _quiet():
            program = torch.onnx.export(
                _logits_only(network, interface),
                tuple(sample.values()),
                dynamo=True,
                input_names=list(sample),
                output_names=[interface.output_name],
                dynamic_shapes=(tuple(_free_axes(value) for value in interface.inputs),),
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
    for value, promised in zip(proto.graph.input, interface.inputs, strict=True):
        if promised.variable:
            value.type.tensor_type.shape.dim[-1].dim_param = "length"
    _name_layers(proto)
    return proto


def _free_axes(value: Input) -> dict[int, Any]:
    """Which axes of an input the file leaves open."""
    import torch

    length = {len(value.shape): torch.export.Dim("length", min=2, max=value.shape[-1])} if value.variable else {}
    return {0: torch.export.Dim("batch"), **length}


def _logits_only(network: PreTrainedModel, interface: Interface) -> Any:
    import torch

    class Logits(torch.nn.Module):
        """Takes inputs by position and returns the logits alone: a file has plain tensors on both ends."""

        def __init__(self) -> None:
            super().__init__()
            self.model = network

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            names = [value.name for value in interface.inputs]
            logits: torch.Tensor = self.model(**dict(zip(names, inputs, strict=True))).logits
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
