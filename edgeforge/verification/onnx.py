"""ONNX files: opened again with ONNX Runtime and held against torch, on real inputs.

What a float file must equal is the torch model, within what float32 arithmetic may move. What a quantized file must
equal is computed by `_evaluator` from the float file's weights and the quantizer's recorded numbers: the file's own
integers and scales are never trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.runtimes.onnxruntime import EXACT_PRODUCTS, FLOAT_INPUTS, OnnxSession
from edgeforge.verification import Check, Parity, differences, outcome
from edgeforge.verification._evaluator import evaluate
from edgeforge.verification._expected_weights import Expected, expected_weights
from edgeforge.verification._layer_noise import LayerNoise
from edgeforge.verification._model_weights import NAME as WEIGHTS
from edgeforge.verification._model_weights import weights_check
from edgeforge.verification._onnx_constants import floats
from edgeforge.verification._onnx_decoder import float_activations, verify_decoder
from edgeforge.verification._onnx_opened import OpenedOnnx
from edgeforge.verification._onnx_promises import promise_checks
from edgeforge.verification._onnx_quantized import Quantized
from edgeforge.verification._opened import PARITY_SAMPLES, Inputs, batches_of, float_limit
from edgeforge.verification._operators import UnknownOperator
from edgeforge.verification._rounded_weights import of_reference

if TYPE_CHECKING:
    import onnx


Found = tuple[Parity, list[Check], tuple[LayerNoise, ...]]

_DAMAGED = (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, ModelError)
"""What reading a file may raise where something is missing that every file written here has, or is of another kind."""


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`."""
    if job.data.interface.per_token:
        return verify_decoder(inputs, job)
    try:
        opened = OpenedOnnx(inputs, job)
    except ModelError as error:
        nothing = Parity("the torch model", None, "the file does not open")
        return outcome(nothing, [Check("opens", False, error.what)])
    checks = [Check("opens", True), *promise_checks(opened)]
    if (broken := opened.unusable()) is not None:
        return outcome(Parity("the torch model", None, "the file does not run"), [*checks, broken])
    try:
        if "unquantized" in inputs:
            parity, more, layers = _rewritten_parity(opened)
        else:
            parity, more, layers = _torch_parity(opened)
    except _DAMAGED as error:
        why = f"it is built in another way: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        parity, more, layers = Parity("the torch model", None, why), [Check("program", False, why)], ()
    fidelity = opened.fidelity() if opened.quantized else None
    return outcome(parity, [*checks, *more], fidelity, layers=layers)


# -- files whose arithmetic is float


def _torch_parity(opened: OpenedOnnx) -> Found:
    """The file against torch. Weights may lie on a grid, in which case both sides multiply the same numbers."""
    samples = batches_of(opened.samples, PARITY_SAMPLES)[0]
    exact = opened.torch_outputs("reference", samples, "float64")
    limit, why = float_limit(exact, opened.torch_outputs("reference", samples))
    outputs = opened.outputs[: len(exact)]
    reference, checks = "the torch model", list[Check]()
    expected = _expected(opened, "reference")
    checks.append(_weights(opened.proto, expected))
    layers: tuple[LayerNoise, ...] = ()
    if opened.quantized:
        if isinstance(expected, Expected):
            rounded, layers = of_reference(opened.inputs["reference"].path, opened.inputs["model"].path, expected.reads)
            checks += rounded
        reference = "the torch model with the same quantized weights"
        outputs = opened.run(OnnxSession(float_activations(opened.proto), settings=FLOAT_INPUTS), samples)
        checks.append(_meaning(opened, samples, exact, limit))
        if not np.array_equal(outputs, opened.outputs[: len(exact)]):
            checks.append(Check("activations of matrix products", True, _ROUNDED_ACTIVATIONS))
    found = differences(outputs, exact)
    error = found["max_abs_error"]
    parity = Parity(reference, error is not None and error <= limit, why, tolerance=limit, **found)  # type: ignore[arg-type]
    return parity, checks, layers


def _expected(opened: OpenedOnnx, role: str) -> Expected | str:
    """The numbers that a file made of that torch model must hold, or why they are not known."""
    try:
        return expected_weights(opened.inputs[role].path, opened.interface)
    except ModelError as error:
        return error.what


def _weights(file: onnx.ModelProto, expected: Expected | str) -> Check:
    """The constants of a file whose arithmetic is float are those of the torch model."""
    if isinstance(expected, str):
        return Check(WEIGHTS, None, expected)
    try:
        return weights_check(expected, floats(file))
    except UnknownOperator as error:
        return Check(WEIGHTS, None, f"integers in a form that is not known: {error}")


def _meaning(opened: OpenedOnnx, samples: Inputs, exact: np.ndarray, limit: float) -> Check:
    """What the integers in the file stand for, computed without a runtime."""
    name = "file means the quantized model"
    try:
        found = np.concatenate([evaluate(opened.proto, batch) for batch in batches_of(samples, opened.batch)])
    except UnknownOperator as error:
        return Check(name, None, f"the evaluator does not know the operator {error}")
    apart = float(np.abs(found - exact).max()) if np.isfinite(found).all() else np.inf
    return Check(name, apart <= limit, f"outputs differ by {apart:.3g}, at most {limit:.3g}")


_ROUNDED_ACTIVATIONS = (
    "parity is taken with activations in float; the runtime rounds them to 8 bits per block, which fidelity measures"
)


def _rewritten_parity(opened: OpenedOnnx) -> Found:
    """A file that a quantizer made from a float file: against that file with the recorded numbers, which is held
    against torch in its turn."""
    samples = batches_of(opened.samples, PARITY_SAMPLES)[0]
    exact = opened.torch_outputs("model", samples, "float64")
    limit, why = float_limit(exact, opened.torch_outputs("model", samples))
    rewritten = Quantized(opened.inputs["unquantized"].path, opened.folder, samples, opened.batch)
    if (unknown := rewritten.unknown()) is not None:
        return Parity(rewritten.reference, None, unknown), [Check("float file equals torch", None, unknown)], ()
    apart = float(np.abs(rewritten.clean - exact).max())
    equal = Check("float file equals torch", apart <= limit, f"they differ by {apart:.3g}; {why}")
    original = onnx_graph.load(opened.inputs["unquantized"].path)
    checks = [equal, _weights(original, _expected(opened, "model")), *rewritten.checks(floor=limit)]
    said = opened.inputs["file"].facts.get("quantization") or {}
    if (ranges := rewritten.ranges(said.get("calibration", "minmax"))) is not None:
        checks.append(ranges)
    # Exact products: what a processor without VNNI saturates is its own affair, measured when the file is evaluated.
    session = OnnxSession(opened.folder / onnx_graph.MODEL, settings=EXACT_PRODUCTS)
    return rewritten.parity(opened.run(session, samples), floor=limit), checks, rewritten.layers()
