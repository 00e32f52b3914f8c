"""What an ONNX file says of itself, beside what every format promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeforge import onnx_graph
from edgeforge.core.task import Input, Interface
from edgeforge.verification import Check
from edgeforge.verification._onnx_opened import OpenedOnnx
from edgeforge.verification._promises import any_batch, any_length, companions, paths, tokenizer_files

if TYPE_CHECKING:
    import onnx

LENGTH = "length"
"""The name of the axis along which texts are longer or shorter."""


def promise_checks(opened: OpenedOnnx) -> list[Check]:
    """All of them; one per promise."""
    texts = opened.interface.tokens is not None
    return [
        valid(opened.proto),
        _tensors(opened),
        any_batch(opened),
        *([any_length(opened)] if texts else []),
        metadata(opened.proto, opened.interface, opened.job.task.kind),
        companions(opened),
        *([tokenizer_files(opened)] if texts else []),
        paths(opened.inputs["file"]),
    ]


def valid(proto: onnx.ModelProto) -> Check:
    """Whether the format's own checker takes it."""
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("valid ONNX", False, str(error).splitlines()[0])
    return Check("valid ONNX", True)


def _tensors(opened: OpenedOnnx) -> Check:
    interface = opened.interface
    inputs, outputs = opened.session.interface()
    kinds = {"float32": "tensor(float)", "int64": "tensor(int64)"}
    wanted = (
        [(item.name, kinds[item.dtype], _written_shape(item)) for item in interface.inputs],
        [(interface.output_name, "tensor(float)", [len(interface.labels)])],
    )
    found = tuple([(name, kind, list(shape[1:])) for name, kind, shape in values] for values in (inputs, outputs))
    return Check("inputs and outputs", found == wanted, "" if found == wanted else f"{found}, expected {wanted}")


def _written_shape(item: Input) -> list[int | str]:
    """One sample's shape as the file gives it: a length that varies has a name."""
    return [*item.shape[:-1], LENGTH] if item.variable else list(item.shape)


def metadata(proto: onnx.ModelProto, interface: Interface, task: str) -> Check:
    """What the file says of itself: its task, labels and preprocessing."""
    wanted = onnx_graph.described(interface, task)
    found = {item.key: item.value for item in proto.metadata_props}
    for key, value in wanted.items():
        if found.get(key) != value:
            return Check("metadata", False, f"'{key}' is {found.get(key)!r}, expected {value!r}")
    return Check("metadata", True)
