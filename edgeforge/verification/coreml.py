"""Is a Core ML package what it should be? Its interface and its weights, compared on any machine.

What it does not do, for now: run the program. How the operations between the weights are wired is taken on trust.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import VerificationError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.runtimes import coreml as runtime
from edgeforge.verification import Check, Parity, outcome
from edgeforge.verification._coreml_package import Package, PyMIL, open_package
from edgeforge.verification._coreml_weights import Comparison
from edgeforge.verification._expected_weights import expected_weights

REFERENCE = "weights and interface"
WHY = "weights equal the torch model's, rounded to the file's precision; integers, scales and palettes exactly"
HALF_PRECISION = 2**-10  # relative: one step of float16


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`."""
    interface = job.task.open().interface
    reference = inputs["reference"]
    try:
        package = open_package(inputs["file"].path / runtime.PACKAGE)
    except VerificationError as error:
        return _facts([Check("opens", False, error.what)], None)
    comparison = Comparison(expected_weights(reference.path, interface))
    checks = [Check("opens", True)]
    try:
        normalisation = list(_normalisation(package.function))
        checks += _interface_checks(package, interface, reference.key)
        checks.append(_normalisation_check(normalisation, interface))
        checks.append(comparison.layers(package.function))
        checks.append(comparison.others(package.function, ignored=normalisation))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Something that every program written here has is missing, or is of another kind.
        checks.append(Check("program", False, f"it is built in another way: {type(error).__name__}: {error}"))
    return _facts(checks, comparison.max_abs_error)


def _facts(checks: list[Check], max_abs_error: float | None) -> Mapping[str, Any]:
    passed = all(check.passed for check in checks)
    if max_abs_error is not None and not math.isfinite(max_abs_error):
        max_abs_error = None  # JSON has no such number
    return outcome(Parity(REFERENCE, passed, WHY, max_abs_error=max_abs_error), checks)


def _check(name: str, found: Any, wanted: Any) -> Check:
    return Check(name, found == wanted, "" if found == wanted else f"it is {found!r}, and should be {wanted!r}")


def _interface_checks(package: Package, interface: Interface, recipe: str) -> Iterator[Check]:
    """What an app sees: the image it hands over, the answer it gets, and the metadata."""
    description = package.spec.description
    channels, height, width = interface.input_shape
    inputs = [(value.name, value.type.WhichOneof("Type")) for value in description.input]
    yield _check("input", inputs, [(runtime.IMAGE, "imageType")])
    image = description.input[0].type.imageType if description.input else None
    if image is not None:
        yield _check("image size", (image.width, image.height), (width, height))
        layout = type(image).ColorSpace.Name(image.colorSpace)
        yield _check("color layout", layout, "RGB" if channels == 3 else "GRAYSCALE")
    shapes = {name: tuple(value.shape) for name, value in package.function.inputs.items()}
    yield _check("program input", shapes, {runtime.IMAGE: (1, channels, height, width)})
    yield _check("outputs", [output.name for output in description.output], [runtime.LABEL, runtime.PROBABILITIES])
    yield _check("predicted feature", description.predictedFeatureName, runtime.LABEL)
    yield _check("predicted probabilities", description.predictedProbabilitiesName, runtime.PROBABILITIES)
    yield _labels_check(package.function, interface)
    metadata = description.metadata.userDefined
    yield _check("recipe", metadata[runtime.RECIPE_KEY], recipe)
    yield _check("labels in metadata", metadata[runtime.LABELS_KEY], json.dumps(interface.labels))
    preprocessing = json.dumps({"mean": interface.mean, "std": interface.std})
    yield _check("preprocessing in metadata", metadata[runtime.PREPROCESSING_KEY], preprocessing)


def _labels_check(function: PyMIL, interface: Interface) -> Check:
    """The program ends in softmax over the labels' axis, then a choice among the labels in the right order."""
    last = function.outputs[0].op
    if last is None or last.op_type != "classify":
        return Check("labels", False, "the program does not end in a choice of a label")
    found = [str(label) for label in last.inputs["classes"].val]
    if found != list(interface.labels):
        return _check("labels", found, list(interface.labels))
    probabilities = last.inputs["probabilities"].op
    while probabilities is not None and probabilities.op_type == "cast":
        probabilities = probabilities.inputs["x"].op
    normalised = probabilities is not None and probabilities.op_type == "softmax"
    normalised = normalised and int(probabilities.inputs["axis"].val) in (-1, 1)
    return Check("labels", normalised, "" if normalised else "what the label is chosen by are not probabilities")


def _normalisation(function: PyMIL) -> Iterator[PyMIL]:
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


def _normalisation_check(operations: list[PyMIL], interface: Interface) -> Check:
    """Pixels of 0 to 255 become (pixel / 255 - mean) / std, per channel, before anything else happens to them."""
    factor, shift = np.ones(1), np.zeros(1)
    for operation in operations:
        if (step := _affine(operation)) is not None:
            factor, shift = factor * step[0], shift * step[0] + step[1]
    mean, std = np.asarray(interface.mean), np.asarray(interface.std)
    wanted_factor, wanted_shift = 1 / (255 * std), -mean / std
    try:
        close = np.allclose(factor, wanted_factor, rtol=2 * HALF_PRECISION, atol=0)
        close = close and np.allclose(shift, wanted_shift, rtol=2 * HALF_PRECISION, atol=1e-7)
    except ValueError:  # not one number per channel
        close = False
    detail = f"it is {factor} * x + {shift}, and should be {wanted_factor} * x + {wanted_shift}"
    return Check("normalisation", close, "" if close else detail)
