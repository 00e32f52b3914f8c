"""Is a Core ML package what it should be? Its interface, its weights and its answers, compared on any machine.

The program is computed by the reference evaluator: what the file says, not what Apple's compiler makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError, VerificationError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.models import loading
from edgeforge.models.folder import read_json
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes.coreml import CoremlSession
from edgeforge.runtimes.coreml_reference import CoremlReference, open_model
from edgeforge.verification import Check, Parity, differences, outcome
from edgeforge.verification._coreml_decoder import verify_decoder
from edgeforge.verification._coreml_inputs import (
    applied,
    check,
    image_checks,
    normalisation,
    normalisation_check,
    text_checks,
)
from edgeforge.verification._coreml_package import Package, PyMIL, open_package
from edgeforge.verification._coreml_program import (
    WIRING,
    Answer,
    gelu_check,
    half_precision,
    nudged,
    wiring,
    with_weights,
)
from edgeforge.verification._coreml_rewritten import Rewritten
from edgeforge.verification._coreml_weights import Comparison
from edgeforge.verification._expected_weights import expected_weights
from edgeforge.verification._on_a_mac import own_answers
from edgeforge.verification._opened import PARITY_SAMPLES, ROUNDINGS, Inputs, Opened
from edgeforge.verification._rounded_weights import of_reference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.runtimes._mil.model import ReferenceModel

REFERENCE = "the torch model, on the reference evaluator"
FEW = 32
"""Samples that are computed several times over."""

LAST_BIT = 2.0**-11
"""Half a step of float16 just below one, where the probabilities lie."""


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`."""
    interface = job.data.interface
    if interface.per_token:
        return verify_decoder(inputs, job)
    try:
        package = open_package(inputs["file"].path / runtime.PACKAGE)
    except VerificationError as error:
        return outcome(Parity(REFERENCE, None, "the file does not open"), [Check("opens", False, error.what)])
    comparison = Comparison(expected_weights(inputs["reference"].path, interface))
    if "unquantized" in inputs:
        return _verify_rewritten(package, comparison, inputs, job)
    rounded, layers = of_reference(inputs["reference"].path, inputs["model"].path, comparison.expected.reads)
    checks = [Check("opens", True), *_looked_at(package, comparison, inputs, interface), *rounded]
    if not all(check.passed for check in checks):
        return outcome(Parity(REFERENCE, None, "the package is not what it should be"), checks, layers=layers)
    return {**_computed(package, comparison, inputs, job, checks), "layers": [asdict(layer) for layer in layers]}


def _looked_at(
    package: Package, comparison: Comparison, inputs: Mapping[str, Artifact], interface: Interface
) -> list[Check]:
    """What can be seen without running the program."""
    checks: list[Check] = []
    try:
        first = [] if interface.tokens is not None else list(normalisation(package.function))
        checks.extend(_promised(package, inputs, interface))
        checks += gelu_check(package.function, read_json(inputs["reference"].path / "config.json"))
        checks.append(comparison.layers(package.function))
        checks.append(comparison.others(package.function, ignored=first))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Something that every program written here has is missing, or is of another kind.
        checks.append(Check("program", False, f"it is built in another way: {type(error).__name__}: {error}"))
    return checks


def _promised(package: Package, inputs: Mapping[str, Artifact], interface: Interface) -> Iterator[Check]:
    """What an app hands over, and the answer that it gets."""
    reference = inputs["reference"]
    if interface.tokens is not None:
        yield from text_checks(package, interface, inputs["file"].path, reference.path)
    else:
        yield from image_checks(package, interface)
        yield normalisation_check(list(normalisation(package.function)), interface)
    yield from _interface_checks(package, interface, reference.key)


def _verify_rewritten(
    package: Package, comparison: Comparison, inputs: Mapping[str, Artifact], job: Job
) -> Mapping[str, Any]:
    """A package that a quantizer of files made of another one, which is held against torch."""
    interface = job.data.interface
    nothing = Parity(REFERENCE, None, "the package is not what it should be")
    try:
        original = open_package(inputs["unquantized"].path / runtime.PACKAGE)
    except VerificationError as error:
        return outcome(nothing, [Check("float file: opens", False, error.what)])
    before = _looked_at(original, comparison, {**inputs, "file": inputs["unquantized"]}, interface)
    checks = [Check("opens", True), *(replace(one, name=f"float file: {one.name}") for one in before)]
    try:
        rewritten = Rewritten(package.function, original.function)
        checks += [*_promised(package, inputs, interface), *rewritten.checks()]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, VerificationError) as error:
        return outcome(nothing, [*checks, Check("program", False, f"it is built in another way: {error}")])
    if not all(check.passed for check in checks):
        return outcome(nothing, checks, layers=rewritten.layers)
    return _rewritten_answers(rewritten, inputs, job, checks)


def _rewritten_answers(
    rewritten: Rewritten, inputs: Mapping[str, Artifact], job: Job, checks: list[Check]
) -> Mapping[str, Any]:
    """Ranges and answers on real inputs."""
    nothing = Parity(REFERENCE, None, "the program does not run")
    path = inputs["file"].path / runtime.PACKAGE
    try:
        opened = _Opened(inputs, job, CoremlReference().open(inputs["file"].path))
        if (broken := opened.unusable()) is not None:
            return outcome(nothing, [*checks, broken], layers=rewritten.layers)
        few = {name: array[:FEW] for name, array in opened.samples.items()}
        given = opened.session.samples(few)  # type: ignore[attr-defined]  # a classifier's
        ranges = rewritten.ranges(open_model(inputs["unquantized"].path / runtime.PACKAGE), given)
        half = open_model(path, precision="float16")
        rough = np.exp(opened.run(CoremlSession(half, half.metadata, half.features), few))
    except ModelError as error:
        return outcome(nothing, [*checks, Check("computes", False, error.what)], layers=rewritten.layers)
    exact = np.exp(opened.torch_outputs("reference", few))
    why = "eight bits move answers: its operations and numbers are the float file's, and fidelity says how far they are"
    parity = Parity(REFERENCE, None, why, **differences(np.exp(opened.outputs[: len(exact)]), exact))  # type: ignore[arg-type]
    fits = Check("fits float16", bool(np.isfinite(rough).all()), "")
    checks = [*checks, ranges, fits, *own_answers(path, few)]
    return outcome(parity, checks, opened.fidelity(), layers=rewritten.layers)


class _Opened(Opened):
    """Answers of a package are logarithms of probabilities; so are torch's here."""

    def torch_outputs(
        self, role: str, samples: Inputs, dtype: str = "float32", *, half_weights: bool = False
    ) -> np.ndarray:
        return _log_softmax(super().torch_outputs(role, samples, dtype, half_weights=half_weights))

    def probabilities(self, network: PreTrainedModel, samples: Inputs, dtype: str) -> np.ndarray:
        """Of a torch model, computed in `dtype`."""
        return np.asarray(np.exp(_log_softmax(self.logits(network, samples, dtype))))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _computed(
    package: Package, comparison: Comparison, inputs: Mapping[str, Artifact], job: Job, checks: list[Check]
) -> Mapping[str, Any]:
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
    try:
        checks = [*checks, *_program_checks(package, comparison, opened, samples)]
        few = {name: array[:FEW] for name, array in samples.items()}
        checks += own_answers(opened.folder / runtime.PACKAGE, few)
    except ModelError as error:
        checks = [*checks, Check("program", False, error.what)]
    return outcome(parity, checks, opened.fidelity() if opened.quantized else None)


def _program_checks(package: Package, comparison: Comparison, opened: _Opened, samples: Inputs) -> Iterator[Check]:
    """How the program is wired, and whether it fits float16."""
    interface, folder = opened.interface, opened.folder
    few = {name: array[:FEW] for name, array in samples.items()}

    def answers(model: ReferenceModel) -> Answer:
        session = CoremlSession(model, model.metadata, model.features)
        return lambda given: np.exp(opened.run(session, given))

    model = open_model(folder / runtime.PACKAGE)
    network = loading.load(opened.inputs["reference"].path)
    exact = opened.probabilities(network, few, "float64")
    unplaced = with_weights(network, comparison.expected.reads, comparison.stored)
    if unplaced is not None:
        yield Check(WIRING, None, f"the torch model has no place for {unplaced}")
    else:
        normalised = _as_the_program(package, interface)
        first = [] if interface.pixels is None else list(normalisation(package.function))
        kept = {value.name for operation in first for value in operation.inputs.values() if value is not None}
        yield wiring(
            answers(model),
            answers(model.nudged(kept)),
            lambda dtype: lambda given: opened.probabilities(network, normalised(given), dtype),
            few,
        )
    half = open_model(folder / runtime.PACKAGE, precision="float16")
    moved = float(np.abs(opened.probabilities(nudged(network), few, "float64") - exact[:FEW]).max())
    yield half_precision(answers(half), np.exp(opened.outputs[:FEW]), few, weights_moved=moved)


def _as_the_program(package: Package, interface: Interface) -> Callable[[Inputs], Inputs]:
    """Images normalised by the program's own factor and shift, which are rounded to float16; texts as they are."""
    if interface.pixels is None:
        return lambda given: given
    factor, shift = (one.reshape(1, -1, 1, 1) for one in applied(list(normalisation(package.function))))
    mean, std = (np.asarray(one).reshape(1, -1, 1, 1) for one in (interface.pixels.mean, interface.pixels.std))

    def normalised(given: Inputs) -> Inputs:
        return {
            name: (np.rint((array * std + mean) * 255).clip(0, 255) * factor + shift).astype(np.float32)
            for name, array in given.items()
        }

    return normalised


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
