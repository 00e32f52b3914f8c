"""OpenVINO files: `openvino_model.xml` and `.bin`, beside the JSON that Transformers and optimum-intel read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge import onnx_graph, openvino_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Input, Interface
from edgeforge.exporters import Exporter
from edgeforge.exporters._companions import write_companions
from edgeforge.exporters._onnx_program import translated
from edgeforge.exporters._openvino_weights import write_quantized

if TYPE_CHECKING:
    import onnx
    import openvino
    from openvino import Node, Output

OPSET = 20


class Openvino(Exporter):
    """OpenVINO's own format (IR), for the processors of laptops and servers; any batch size, any length of text.

    It is the ONNX exporter's graph, read by OpenVINO: layers are named by their module path, batch normalization and
    constants are folded. Weights that a weight-only quantizer chose are written as its integers.
    """

    kind: Literal["openvino"] = "openvino"
    precision: Literal["float32", "float16"] = Field(
        default="float32",
        description="Of what no quantizer made integers, in the file; float16 halves it. The arithmetic is float32.",
    )

    answers_per: ClassVar[frozenset[str]] = frozenset({"sample"})
    needs: ClassVar[tuple[str, ...]] = ("numpy", "onnx", "onnxscript", "openvino", "torch", "transformers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.exporters._companions",
        "edgeforge.exporters._onnx_program",
        "edgeforge.exporters._openvino_weights",
        "edgeforge.models.loading",
        "edgeforge.models.quantized_weights",
        "edgeforge.models.tokenizer",
        "edgeforge.models.tokenizer_settings",
        "edgeforge.onnx_graph",
        "edgeforge.openvino_graph",
    )

    def export(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Exporter. Raises ModelError where torch or OpenVINO cannot express the model."""
        from edgeforge.models import loading, quantized_weights

        network = loading.load(model.path)
        interface = job.data.interface
        quantized = quantized_weights.read(model.path)
        graph = _read(translated(network, interface, OPSET), interface)
        graph.set_friendly_name(network.config.model_type)
        facts: dict[str, Any] = {}
        if quantized is not None:
            facts["coverage_percent"] = write_quantized(graph, quantized)
        metadata = onnx_graph.described(interface, job.task.kind)
        size = openvino_graph.save(graph, job.folder, metadata=metadata, half=self.precision == "float16")
        write_companions(network, interface, model.path, job.folder)
        ops = Counter(node.get_type_name() for node in graph.get_ops())
        return {**facts, "bytes": size, "precision": self.precision, "ops": dict(sorted(ops.items()))}


def _read(proto: onnx.ModelProto, interface: Interface) -> openvino.Model:
    """The graph in OpenVINO's operators, its constants folded."""
    core = openvino_graph.core()

    from openvino.passes import ConstantFolding, Manager

    try:
        graph = core.read_model(proto.SerializeToString())
    except RuntimeError as error:
        raise ModelError(
            f"OpenVINO cannot read the model's graph: {openvino_graph.reason(error)}", remedy="export to onnx instead"
        ) from error
    graph.reshape({value.name: _shape(value) for value in interface.inputs})
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(graph)
    _drop_factors_of_one(graph)
    _join_clamps(graph)
    _name_layers(graph)
    return graph


def _shape(value: Input) -> openvino.PartialShape:
    """Any batch; any length up to the greatest, since longer texts have no positions: better refused than answered."""
    ov = openvino_graph.load_openvino()
    last = ov.Dimension(1, value.shape[-1]) if value.variable else ov.Dimension(value.shape[-1])
    return ov.PartialShape([ov.Dimension(), *value.shape[:-1], last])


def _drop_factors_of_one(graph: openvino.Model) -> None:
    """What is left of ONNX's Gemm: a quantizer that looks for a product's bias must find the addition behind it."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() == "Multiply" and (number := _number(node)) is not None and number[1] == 1:
            node.output(0).replace(number[0])


def _join_clamps(graph: openvino.Model) -> None:
    """ReLU6 comes as a minimum of a maximum; as one operator, a quantizer takes it for the end of its layer."""
    from openvino import opset13 as ops

    for node in graph.get_ordered_ops():
        upper = _number(node) if node.get_type_name() == "Minimum" else None
        inner = upper[0].get_node() if upper else None
        if upper and inner and inner.get_type_name() == "Maximum" and (lower := _number(inner)) is not None:
            node.output(0).replace(ops.clamp(lower[0], lower[1], upper[1]).output(0))


def _number(node: Node) -> tuple[Output, float] | None:
    """The other input of an operator on a value and one number, and the number."""
    for here, there in ((0, 1), (1, 0)):
        value, found = node.input_value(here), node.input_value(there).get_node()
        if found.get_type_name() == "Constant" and found.data.size == 1 and found.get_element_type().is_real():
            same_rank = found.data.ndim <= value.get_partial_shape().rank.get_length()
            return (value, float(found.data.reshape(-1)[0])) if same_rank else None
    return None


def _name_layers(graph: openvino.Model) -> None:
    """OpenVINO gives a layer's name to the addition of its bias; tables have the name of their constant."""
    layers = openvino_graph.layers(graph)
    for node in graph.get_ops():
        if node.get_type_name() == "Add" and f"{node.get_friendly_name()}/WithoutBiases" in layers:
            node.set_friendly_name(f"{node.get_friendly_name()}/bias")
    for name, layer in layers.items():
        if layer.node.get_type_name() == "Gather":
            name = layer.weight.get_node().get_friendly_name().removeprefix("model.").removesuffix(".weight")
        layer.node.set_friendly_name(name.removesuffix("/WithoutBiases"))
