"""OpenVINO files as EdgeForge writes and reads them: two files of fixed names, the same bytes for the same model."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require

if TYPE_CHECKING:
    import openvino
    from openvino import Node, Output

MODEL = "openvino_model.xml"
"""The name that optimum-intel opens a folder by."""
WEIGHTS = "openvino_model.bin"
METADATA = "edgeforge"
"""Where a file says what it is: task, labels, how raw data become its inputs."""

_WEIGHT_PORTS = {"Convolution": 1, "GroupConvolution": 1, "MatMul": 1, "Gather": 0}


@functools.cache
def load_openvino() -> Any:
    """Import openvino, and nncf after it, without their telemetry. Raises MissingExtraError.

    Both would write an identifier into the home folder and report each conversion to a server.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # not installed, as imports see it
    return require("openvino", "openvino")


@functools.cache
def core() -> openvino.Core:
    """The one gateway to devices of this process."""
    return load_openvino().Core()


# -- files


def load(folder: Path) -> openvino.Model:
    """The model in an artifact's folder. Raises ModelError where a file is missing, cut short, or something else."""
    path = folder / MODEL
    for part in (path, folder / WEIGHTS):
        if not part.is_file():
            raise ModelError("there is no such file", where=str(part), remedy="export the model again")
    try:
        return core().read_model(path)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"not a whole OpenVINO file: {reason(error)}", where=str(path), remedy="export the model again"
        ) from error


def save(model: openvino.Model, folder: Path, *, metadata: Mapping[str, str], half: bool = False) -> int:
    """Write the model; returns the size of both files in bytes. `half`: float constants as float16.

    Layers keep their names; everything else gets a short one in the order of computation, in place, since the
    library numbers what it makes by how much the process made before. Raises EnvironmentProblem.
    """
    _shorten_names(model)
    bare = load_openvino().Model(model.get_results(), model.get_parameters(), model.get_friendly_name())
    for key, value in metadata.items():
        bare.set_rt_info(value, [METADATA, key])
    path = folder / MODEL
    try:
        load_openvino().save_model(bare, path, compress_to_fp16=half)
        # A third of the text would be indentation, and of a small model the text is most.
        path.write_bytes(re.sub(rb">\s+<", b"><", path.read_bytes()))
        return path.stat().st_size + (folder / WEIGHTS).stat().st_size
    except (OSError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"the file cannot be written: {reason(error)}", where=str(path), remedy="is there room on the disk?"
        ) from error


def metadata(model: openvino.Model) -> dict[str, str]:
    """What the file says of itself; empty where EdgeForge did not write it."""
    if not model.has_rt_info([METADATA]):
        return {}
    return {key: str(value) for key, value in model.get_rt_info([METADATA]).value.items()}


def reason(error: Exception) -> str:
    """The last line of the library's message, which says what is wrong; those before say where in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _shorten_names(model: openvino.Model) -> None:
    kept = {layer.node.get_name(): name for name, layer in layers(model).items()}
    # A result has the very tensor of what it returns, names included.
    ends = [end for result in model.get_results() for end in (result, result.input_value(0).get_node())]
    promised = {node.get_name() for node in (*model.get_parameters(), *ends)}
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(kept.get(node.get_name(), f"{number:x}"))
        for output in node.outputs():
            if node.get_name() not in promised:
                output.set_names(set())


# -- what the graph holds


@dataclass(frozen=True)
class Layer:
    """An operation with a weight. `port` is the weight's; the other input of a `Gather` is no activation."""

    node: Node
    port: int

    @property
    def weight(self) -> Output:
        """What computes the weight: a constant, or integers multiplied out."""
        return self.node.input_value(self.port)

    @property
    def activation(self) -> Output | None:
        """What the weight is multiplied by; None for a table that is looked up."""
        return self.node.input_value(0) if self.port else None


def layers(model: openvino.Model) -> dict[str, Layer]:
    """Every operation that has a weight of two or more axes, by name, in the order of computation."""
    found = {}
    for node in model.get_ordered_ops():
        port = _WEIGHT_PORTS.get(node.get_type_name())
        if port is None:
            continue
        source = node.input_value(port)
        floating = source.get_element_type().is_real() and source.get_partial_shape().rank.get_length() > 1
        if floating and is_constant(source):
            found[node.get_friendly_name()] = Layer(node, port)
    return found


_DECODING = ("Convert", "Multiply", "Subtract", "Reshape")


def is_constant(value: Output) -> bool:
    """Whether it is a constant, or decoded from constants."""
    node = value.get_node()
    if node.get_type_name() == "Constant":
        return True
    return node.get_type_name() in _DECODING and all(is_constant(source) for source in node.input_values())


def constant(value: Output) -> np.ndarray:
    """The numbers of a constant, multiplied out where it is kept as integers; float32 arithmetic, as at run time."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return integers(node) if _is_integer(node) else np.array(node.data)
    first, *rest = (constant(source) for source in node.input_values())
    if kind == "Convert":
        return first.astype(np.float32)
    if kind == "Reshape":
        return first.reshape(value.get_shape())
    result: np.ndarray = first * rest[0] if kind == "Multiply" else first - rest[0]
    return result


def stored(value: Output) -> Node:
    """The constant that a weight is decoded from, which may hold integers."""
    node = value.get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node


def is_quantized(layer: Layer) -> bool:
    """Whether the weight is kept as integers."""
    return _is_integer(stored(layer.weight))


def scales(layer: Layer) -> np.ndarray:
    """What a quantized weight's integers are multiplied by; broadcasts to the weight where it has no blocks."""
    return constant(_scales(layer))


def _scales(layer: Layer) -> Output:
    node = layer.weight.get_node()
    while node.get_type_name() != "Multiply":
        node = node.input_value(0).get_node()
    return node.input_value(1)


def has_half(model: openvino.Model) -> bool:
    """Whether the file holds float16 constants."""
    half = load_openvino().Type.f16
    return any(node.get_type_name() == "Constant" and node.get_element_type() == half for node in model.get_ops())


def widen(model: openvino.Model) -> None:
    """Make float16 constants float32, in place: the same numbers, for whoever computes new ones from them."""
    ops = load_openvino().opset13
    for node in model.get_ordered_ops():
        if (
            node.get_type_name() == "Convert"
            and is_constant(node.output(0))
            and not _is_integer(stored(node.output(0)))
        ):
            wide = ops.constant(constant(node.output(0)))
            wide.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(wide.output(0))


def _is_integer(node: Node) -> bool:
    return bool(node.get_element_type().is_integral_number())


def integers(node: Node) -> np.ndarray:
    """An integer constant's numbers, four bits unpacked."""
    kind = node.get_element_type().get_type_name()
    if kind not in ("i4", "u4"):
        return np.array(node.data)
    packed = np.array(node.data).view(np.uint8).reshape(-1)
    nibbles = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.int8)
    signed = (nibbles ^ 8) - 8 if kind == "i4" else nibbles
    shape = tuple(node.get_output_shape(0))
    return signed[: int(np.prod(shape))].reshape(shape)


def numbers(model: openvino.Model) -> int:
    """How many floating-point numbers the model's constants stand for, kept as integers or not."""
    quantized = [layer for layer in layers(model).values() if is_quantized(layer)]
    decoded = {stored(layer.weight).get_name() for layer in quantized}
    scaling = {stored(_scales(layer)).get_name() for layer in quantized}
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    return sum(
        int(np.prod(node.get_output_shape(0)))
        for node in constants
        if node.get_name() in decoded or (node.get_element_type().is_real() and node.get_name() not in scaling)
    )


def float_constants(model: openvino.Model) -> dict[str, np.ndarray]:
    """Floating-point constants of more than one number, weights that are kept as integers multiplied out."""
    found = {name: layer for name, layer in layers(model).items() if is_quantized(layer)}
    decoding = {stored(_scales(layer)).get_name() for layer in found.values()}
    plain = {
        node.get_friendly_name(): np.array(node.data)
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().is_real() and node.get_name() not in decoding
    }
    weights = {f"the weight of {name}": constant(layer.weight) for name, layer in found.items()}
    return {name: array for name, array in {**plain, **weights}.items() if array.size > 1}


# -- what a quantizer put into it


def quantized_values(model: openvino.Model) -> dict[str, dict[str, Any]]:
    """Every value that is rounded to eight bits, by the name of the operation that rounds it.

    ``{"low": [...], "high": [...], "levels": 256}``: what it spans, one range or one per channel. `low` and `high` are
    NaN where the rounding ends in another range than it starts from.
    """
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            before, after = ([constant(node.input_value(port)) for port in ports] for ports in ((1, 2), (3, 4)))
            same = all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
            low, high = (array.reshape(-1).tolist() if same else [np.nan] for array in before)
            found[node.get_friendly_name()] = {"low": low, "high": high, "levels": node.get_attributes()["levels"]}
    return found


def biases(model: openvino.Model) -> dict[str, np.ndarray]:
    """What is added to a layer's result, by the layer's name, where it is a constant."""
    found = {name: bias_of(layer) for name, layer in layers(model).items()}
    return {
        name: constant(addition.input_value(port)) for name, pair in found.items() if pair for addition, port in [pair]
    }


def bias_digests(model: openvino.Model) -> dict[str, str]:
    """sha256 (hex) of each bias: enough to tell whether it is the one that was chosen."""
    return {name: hashlib.sha256(bias.tobytes()).hexdigest() for name, bias in biases(model).items()}


def bias_of(layer: Layer) -> tuple[Node, int] | None:
    """The addition of a constant behind a layer and the constant's port, or None."""
    readers = list(layer.node.output(0).get_target_inputs())
    if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
        return None
    addition, port = readers[0].get_node(), 1 - readers[0].get_index()
    return (addition, port) if is_constant(addition.input_value(port)) else None
