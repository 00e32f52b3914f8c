"""What an app hands over: an image that the program normalises, or tokens of a length that it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.core.task import Interface
from edgeforge.models import tokenizer_settings
from edgeforge.runtimes import coreml as runtime
from edgeforge.verification import Check
from edgeforge.verification._coreml_package import Package, PyMIL

HALF_PRECISION = 2**-10  # relative: one step of float16


def check(name: str, found: Any, wanted: Any) -> Check:
    """Whether two things are equal, and how they are not."""
    return Check(name, found == wanted, "" if found == wanted else f"it is {found!r}, and should be {wanted!r}")


def image_checks(package: Package, interface: Interface) -> Iterator[Check]:
    """The image an app hands over, and what the package says of its normalisation."""
    assert interface.pixels is not None
    description = package.spec.description
    channels, height, width = interface.image_shape
    inputs = [(value.name, value.type.WhichOneof("Type")) for value in description.input]
    yield check("input", inputs, [(runtime.IMAGE, "imageType")])
    image = description.input[0].type.imageType if description.input else None
    if image is not None:
        yield check("image size", (image.width, image.height), (width, height))
        layout = type(image).ColorSpace.Name(image.colorSpace)
        yield check("color layout", layout, "RGB" if channels == 3 else "GRAYSCALE")
    shapes = {name: tuple(value.shape) for name, value in package.function.inputs.items()}
    yield check("program input", shapes, {runtime.IMAGE: (1, channels, height, width)})
    preprocessing = json.dumps({"mean": interface.pixels.mean, "std": interface.pixels.std})
    metadata = description.metadata.userDefined
    yield check("preprocessing in metadata", metadata[runtime.PREPROCESSING_KEY], preprocessing)


def text_checks(package: Package, interface: Interface, folder: Path, reference: Path) -> Iterator[Check]:
    """The tokens an app hands over, in which lengths, and the tokenizer in `folder` that makes them."""
    from coremltools.converters.mil.mil import types

    description = package.spec.description
    names = [value.name for value in interface.inputs]
    inputs = [(value.name, value.type.WhichOneof("Type")) for value in description.input]
    yield check("input", inputs, [(name, "multiArrayType") for name in names])
    arrays = [value.type.multiArrayType for value in description.input]
    kinds = [type(array).ArrayDataType.Name(array.dataType) for array in arrays]
    yield check("input types", kinds, ["INT32"] * len(names))
    longest = interface.text.max_length
    shapes = [_shapes(array) for array in arrays]
    yield check("default length", [tuple(array.shape) for array in arrays], [(1, longest)] * len(names))
    right = all(
        shape == shapes[0]
        and max(shape, default=()) == (1, longest)
        and all(len(one) == 2 and one[0] == 1 for one in shape)
        for shape in shapes
    )
    detail = f"they are {shapes}, and should be the same ones of a batch of 1 and up to {longest} tokens"
    yield Check("lengths", right, "" if right else detail)
    program = [
        (name, types.builtin_to_string(value.dtype), *(size if isinstance(size, int) else None for size in value.shape))
        for name, value in package.function.inputs.items()
    ]
    length = longest if shapes and len(shapes[0]) == 1 else None
    yield check("program input", program, [(name, "int32", 1, length) for name in names])
    tokens = json.dumps({"max_length": longest, "pad_id": interface.text.pad_id})
    yield check("tokens in metadata", description.metadata.userDefined[runtime.TOKENS_KEY], tokens)
    yield _tokenizer_check(folder, reference, interface)


def _shapes(array: Any) -> list[tuple[int, ...]]:
    """Every shape that an array input takes; none for a range, which no exporter here writes."""
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "enumeratedShapes":
        return sorted(tuple(one.shape) for one in array.enumeratedShapes.shapes)
    return [] if flexible else [tuple(array.shape)]


def _tokenizer_check(folder: Path, reference: Path, interface: Interface) -> Check:
    try:
        same = tokenizer_settings.is_as_shipped(folder, reference, interface)
    except ModelError as error:
        return Check("tokenizer", False, error.what)
    return Check("tokenizer", same, "" if same else "its files are not those of the model")


def normalisation(function: PyMIL) -> Iterator[PyMIL]:
    """The operations between the image and the first that is not a factor, a shift or a change of type."""
    values = list(function.inputs.values())
    value = values[0] if len(values) == 1 else None
    while value is not None and len(value.child_ops) == 1:
        operation = value.child_ops[0]
        if operation.op_type != "cast" and _affine(operation) is None:
            return
        yield operation
        value = operation.outputs[0]


def _affine(operation: PyMIL) -> tuple[np.ndarray, np.ndarray] | None:
    """(factor, shift) of an operation that computes x * factor + shift per channel, shape (C,) or (1,); else None."""
    given = {
        name: np.asarray(value.val, dtype=np.float64).reshape(-1)
        for name, value in operation.inputs.items()
        if value is not None and value.val is not None and not isinstance(value.val, str)
    }
    one, zero = np.ones(1), np.zeros(1)
    if operation.op_type == "batch_norm":
        factor = given["gamma"] / np.sqrt(given["variance"] + given["epsilon"])
        return factor, given["beta"] - given["mean"] * factor
    other = given.get("y", given.get("x"))
    if other is None or operation.op_type not in ("mul", "add", "sub", "real_div"):
        return None
    if operation.op_type == "mul":
        return other, zero
    if operation.op_type == "real_div" and "y" in given:
        return 1 / other, zero
    if operation.op_type == "add":
        return one, other
    return (one, -other) if operation.op_type == "sub" and "y" in given else None


def applied(operations: Sequence[PyMIL]) -> tuple[np.ndarray, np.ndarray]:
    """(factor, shift): what the operations together make of pixels of 0 to 255, per channel, shape (C,) or (1,)."""
    factor, shift = np.ones(1), np.zeros(1)
    for operation in operations:
        if (step := _affine(operation)) is not None:
            factor, shift = factor * step[0], shift * step[0] + step[1]
    return factor, shift


def normalisation_check(operations: Sequence[PyMIL], interface: Interface) -> Check:
    """Pixels of 0 to 255 become (pixel / 255 - mean) / std, per channel, before anything else happens to them."""
    factor, shift = applied(operations)
    assert interface.pixels is not None
    mean, std = np.asarray(interface.pixels.mean), np.asarray(interface.pixels.std)
    wanted_factor, wanted_shift = 1 / (255 * std), -mean / std
    try:
        close = np.allclose(factor, wanted_factor, rtol=2 * HALF_PRECISION, atol=0)
        close = close and np.allclose(shift, wanted_shift, rtol=2 * HALF_PRECISION, atol=1e-7)
    except ValueError:  # not one number per channel
        close = False
    detail = f"it is {factor} * x + {shift}, and should be {wanted_factor} * x + {wanted_shift}"
    return Check("normalisation", close, "" if close else detail)
