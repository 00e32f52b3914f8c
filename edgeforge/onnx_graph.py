"""ONNX files as EdgeForge writes and reads them: one name, one metadata layout, nothing in them that nobody reads."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgeforge
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgeforge.core.task import Interface

MODEL = "model.onnx"
PREPROCESSOR = "preprocessor_config.json"
MAX_BYTES = 2**31 - 1
"""Protocol buffers end here; larger models need external data, which EdgeForge does not write."""


def load(folder: Path) -> onnx.ModelProto:
    """The model in an artifact's folder. Raises ModelError where it is missing, cut short, or no ONNX."""
    import onnx

    damaged = require("google.protobuf.message", "onnx").DecodeError
    path = folder / MODEL
    try:
        return onnx.load_model(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelError("there is no such file", where=str(path), remedy="export the model again") from error
    except damaged as error:
        raise ModelError("not a whole ONNX file", where=str(path), remedy="export the model again") from error


def save(model: onnx.ModelProto, folder: Path) -> int:
    """Check and write the model; returns its size in bytes. The name appears once the file is whole.

    Raises ModelError where the checker refuses it or it is too large, EnvironmentProblem where the disk refuses.
    """
    import onnx

    path = folder / MODEL
    if model.ByteSize() > MAX_BYTES:
        raise ModelError(f"the model has {model.ByteSize()} bytes and ONNX files end at 2 GB", where=str(path))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"not valid ONNX: {str(error).splitlines()[0]}", where=str(path)) from error
    content = model.SerializeToString(deterministic=True)
    partial = path.with_name(f"{MODEL}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise EnvironmentProblem(
            f"the file cannot be written: {error.strerror}", where=str(path), remedy="is there room on the disk?"
        ) from error
    return len(content)


# -- what the graph holds


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Constant tensors by name."""
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def consumers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """Value name -> the nodes that read it, in order."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value; `default` where the node does not have it."""
    from onnx import helper

    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Inferred shape of every value whose rank is known; None stands for the batch and what depends on it."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def batch_size(interface: Interface) -> int:
    """How many samples to run at once where every inner value is kept: 32 small ones, few large ones."""
    return max(1, min(32, 2**19 // max(math.prod(value.shape) for value in interface.inputs)))


# -- what a file says about itself


def describe(model: onnx.ModelProto, interface: Interface, task: str) -> None:
    """Fill the file's own metadata: who wrote it, for which task, its labels, and how raw data become its inputs."""
    from onnx import helper

    model.producer_name = "edgeforge"
    model.producer_version = edgeforge.__version__
    helper.set_model_props(model, described(interface, task))


def described(interface: Interface, task: str) -> dict[str, str]:
    """The metadata entries of a file with this interface.

    ``preprocessing`` of images: input = (value / 255 - mean) / std; of texts: ``tokenizer.json``, cut at `max_length`.
    """
    preprocessing: dict[str, Any]
    if interface.pixels is not None:
        preprocessing = {"rescale": 1 / 255, "mean": interface.pixels.mean, "std": interface.pixels.std}
    else:
        preprocessing = {"tokenizer": "tokenizer.json", "max_length": interface.text.max_length}
    return {
        "task": task,
        "labels": json.dumps(interface.labels, ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing),
    }


def preprocessor(interface: Interface) -> dict[str, Any]:
    """``preprocessor_config.json`` as Transformers, optimum and Transformers.js read it.

    Input shape (C, H, W): images are resized to squares or rectangles of (H, W), bilinear.
    """
    _, height, width = interface.image_shape
    assert interface.pixels is not None
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(interface.pixels.mean),
        "image_std": list(interface.pixels.std),
    }


# -- size


def compact(model: onnx.ModelProto, *, quantized: bool) -> None:
    """Drop, in place, what no runtime reads; what the model computes stays the same.

    Gone are documentation strings, the exporter's stack traces and module paths, shapes that inference finds again,
    constants that nothing reads, and long names of values. A float file keeps its layers' names, since quantizers
    refer to them, and one copy of equal constants; a quantized file keeps all copies, because ONNX Runtime's
    optimizers change scales and zero points in place, one reader at a time.
    """
    _strip(model)
    _pack_constants(model, share=not quantized)
    _shorten(model)
    if quantized:
        for node in model.graph.node:
            node.ClearField("name")


def _strip(model: onnx.ModelProto) -> None:
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for tensor in graph.initializer:
        tensor.ClearField("external_data")
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    graph.ClearField("value_info")
    graph.ClearField("quantization_annotation")
    used = {node.domain for node in graph.node} | {""}
    imports = [(item.domain, item.version) for item in model.opset_import if item.domain in used]
    model.ClearField("opset_import")
    for domain, version in sorted(set(imports)):
        model.opset_import.add(domain=domain, version=version)


def _pack_constants(model: onnx.ModelProto, *, share: bool) -> None:
    """Constants as raw bytes (typed fields take up to ten bytes for a negative number), unread ones dropped."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    instead: dict[str, str] = {}
    kept: list[TensorProto] = []
    for tensor in graph.initializer:
        if tensor.name not in read:
            continue
        raw = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
        same = (raw.data_type, tuple(raw.dims), raw.raw_data)
        instead[tensor.name] = first.setdefault(same, tensor.name) if share else tensor.name
        if instead[tensor.name] == tensor.name:
            kept.append(raw)
    graph.ClearField("initializer")
    graph.initializer.extend(kept)
    _rename(model, instead)


def _shorten(model: onnx.ModelProto) -> None:
    graph = model.graph
    fixed = {"", *(value.name for value in (*graph.input, *graph.output))}
    names = (name for name in _short_names() if name not in fixed)
    produced = [name for node in graph.node for name in (*node.input, *node.output)]
    short = {name: next(names) for name in dict.fromkeys(produced) if name not in fixed}
    _rename(model, short)
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)


def _short_names() -> Iterator[str]:
    letters = string.ascii_letters
    shorter: Iterable[str] = ("",)
    while True:
        shorter = [prefix + letter for prefix in shorter for letter in letters]
        yield from shorter


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
