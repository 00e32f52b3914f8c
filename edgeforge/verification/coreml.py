"""Is a Core ML package what it should be? Its interface, its weights and its answers, compared on any machine.

The program is computed by the reference evaluator: what the file says, not what Apple's compiler makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError, VerificationError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes.coreml_reference import CoremlReference
from edgeforge.verification import Check, Parity, differences, outcome
from edgeforge.verification._coreml_inputs import (
    check,
    image_checks,
    normalisation,
    normalisation_check,
    text_checks,
)
from edgeforge.verification._coreml_package import Package, PyMIL, open_package
from edgeforge.verification._coreml_weights import Comparison
from edgeforge.verification._expected_weights import expected_weights
from edgeforge.verification._opened import PARITY_SAMPLES, ROUNDINGS, Inputs, Opened

REFERENCE = "the torch model, on the reference evaluator"
LAST_BIT = 2.0**-11
"""Half a step of float16 just below one, where the probabilities lie."""


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`."""
    interface = job.data.interface
    try:
        package = open_package(inputs["file"].path / runtime.PACKAGE)
    except VerificationError as error:
        return outcome(Parity(REFERENCE, None, "the file does not open"), [Check("opens", False, error.what)])
    checks = [Check("opens", True), *_looked_at(package, inputs, interface)]
    if not all(check.passed for check in checks):
        return outcome(Parity(REFERENCE, None, "the package is not what it should be"), checks)
    return _computed(inputs, job, checks)


def _looked_at(package: Package, inputs: Mapping[str, Artifact], interface: Interface) -> list[Check]:
    """What can be seen without running the program."""
    reference = inputs["reference"]
    comparison = Comparison(expected_weights(reference.path, interface))
    checks: list[Check] = []
    first: list[PyMIL] = []
    try:
        if interface.tokens is not None:
            checks += text_checks(package, interface, inputs["file"].path, reference.path)
        else:
            first = list(normalisation(package.function))
            checks += [*image_checks(package, interface), normalisation_check(first, interface)]
        checks += _interface_checks(package, interface, reference.key)
        checks.append(comparison.layers(package.function))
        checks.append(comparison.others(package.function, ignored=first))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Something that every program written here has is missing, or is of another kind.
        checks.append(Check("program", False, f"it is built in another way: {type(error).__name__}: {error}"))
    return checks


class _Opened(Opened):
    """Answers of a package are logarithms of probabilities; so are torch's here."""

    def torch_outputs(
        self, role: str, samples: Inputs, dtype: str = "float32", *, half_weights: bool = False
    ) -> np.ndarray:
        logits = super().torch_outputs(role, samples, dtype, half_weights=half_weights)
        shifted = logits - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _computed(inputs: Mapping[str, Artifact], job: Job, checks: list[Check]) -> Mapping[str, Any]:
    """The program's answers to real inputs against torch's."""
    try:
        opened = _Opened(inputs, job, CoremlReference().open(inputs["file"].path))
    except ModelError as error:
        nothing = Parity(REFERENCE, None, "the program cannot be computed")
        return outcome(nothing, [*checks, Check("computes", False, error.what)])
    if (broken := opened.unusable()) is not None:
        return outcome(Parity(REFERENCE, None, "the program does not run"), [*checks, broken])
    samples = {name: array[:PARITY_SAMPLES] for name, array in opened.samples.items()}
    exact = np.exp(opened.torch_outputs("reference", samples))
    rounded = np.exp(opened.torch_outputs("reference", samples, half_weights=True))
    limit = ROUNDINGS * max(LAST_BIT, float(np.abs(rounded - exact).max()))
    found = differences(np.exp(opened.outputs[: len(exact)]), exact)
    apart = found["max_abs_error"]
    parity = Parity(
        REFERENCE,
        apart is not None and apart <= limit,
        f"probabilities differ by at most {limit:.3g}: {ROUNDINGS} times what rounding to float16 moves",
        tolerance=limit,
        **found,  # type: ignore[arg-type]
    )
    return outcome(parity, checks, opened.fidelity() if opened.quantized else None)


def _interface_checks(package: Package, interface: Interface, recipe: str) -> Iterator[Check]:
    """The answer that an app gets, and the metadata."""
    description = package.spec.description
    yield check("outputs", [output.name for output in description.output], [runtime.LABEL, runtime.PROBABILITIES])
    yield check("predicted feature", description.predictedFeatureName, runtime.LABEL)
    yield check("predicted probabilities", description.predictedProbabilitiesName, runtime.PROBABILITIES)
    yield _labels_check(package.function, interface)
    metadata = description.metadata.userDefined
    yield check("recipe", metadata[runtime.RECIPE_KEY], recipe)
    yield check("labels in metadata", metadata[runtime.LABELS_KEY], json.dumps(interface.labels))


def _labels_check(function: PyMIL, interface: Interface) -> Check:
    """The program ends in softmax over the labels' axis, then a choice among the labels in the right order."""
    last = function.outputs[0].op
    if last is None or last.op_type != "classify":
        return Check("labels", False, "the program does not end in a choice of a label")
    found = [str(label) for label in last.inputs["classes"].val]
    if found != list(interface.labels):
        return check("labels", found, list(interface.labels))
    probabilities = last.inputs["probabilities"].op
    while probabilities is not None and probabilities.op_type == "cast":
        probabilities = probabilities.inputs["x"].op
    normalised = probabilities is not None and probabilities.op_type == "softmax"
    normalised = normalised and int(probabilities.inputs["axis"].val) in (-1, 1)
    return Check("labels", normalised, "" if normalised else "what the label is chosen by are not probabilities")
