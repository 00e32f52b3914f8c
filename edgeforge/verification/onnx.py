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
from edgeforge.verification._onnx_opened import OpenedOnnx
from edgeforge.verification._onnx_promises import promise_checks
from edgeforge.verification._onnx_quantized import Quantized
from edgeforge.verification._opened import PARITY_SAMPLES, Inputs, batches_of, float_limit
from edgeforge.verification._operators import UnknownOperator

if TYPE_CHECKING:
    import onnx


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`."""
    try:
        opened = OpenedOnnx(inputs, job)
    except ModelError as error:
        nothing = Parity("the torch model", None, "the file does not open")
        return outcome(nothing, [Check("opens", False, error.what)])
    checks = [Check("opens", True), *promise_checks(opened)]
    if (broken := opened.unusable()) is not None:
        return outcome(Parity("the torch model", None, "the file does not run"), [*checks, broken])
    if "unquantized" in inputs:
        parity, more = _rewritten_parity(opened)
    else:
        parity, more = _torch_parity(opened)
    fidelity = opened.fidelity() if opened.quantized else None
    return outcome(parity, [*checks, *more], fidelity)


# -- files whose arithmetic is float


def _torch_parity(opened: OpenedOnnx) -> tuple[Parity, list[Check]]:
    """The file against torch. Weights may lie on a grid, in which case both sides multiply the same numbers."""
    samples = batches_of(opened.samples, PARITY_SAMPLES)[0]
    exact = opened.torch_outputs("reference", samples, "float64")
    limit, why = float_limit(exact, opened.torch_outputs("reference", samples))
    outputs = opened.outputs[: len(exact)]
    reference, checks = "the torch model", []
    if opened.quantized:
        reference = "the torch model with the same quantized weights"
        outputs = opened.run(OnnxSession(_float_activations(opened.proto), settings=FLOAT_INPUTS), samples)
        checks = [_meaning(opened, samples, exact, limit)]
        if not np.array_equal(outputs, opened.outputs[: len(exact)]):
            checks.append(Check("activations of matrix products", True, _ROUNDED_ACTIVATIONS))
    found = differences(outputs, exact)
    error = found["max_abs_error"]
    return Parity(reference, error is not None and error <= limit, why, tolerance=limit, **found), checks  # type: ignore[arg-type]


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


def _rewritten_parity(opened: OpenedOnnx) -> tuple[Parity, list[Check]]:
    """A file that a quantizer made from a float file: against that file with the recorded numbers, which is held
    against torch in its turn."""
    samples = batches_of(opened.samples, PARITY_SAMPLES)[0]
    exact = opened.torch_outputs("model", samples, "float64")
    limit, why = float_limit(exact, opened.torch_outputs("model", samples))
    rewritten = Quantized(opened.inputs["unquantized"].path, opened.folder, samples, opened.batch)
    if (unknown := rewritten.unknown()) is not None:
        return Parity(rewritten.reference, None, unknown), [Check("float file equals torch", None, unknown)]
    apart = float(np.abs(rewritten.clean - exact).max())
    equal = Check("float file equals torch", apart <= limit, f"they differ by {apart:.3g}; {why}")
    # Exact products: what a processor without VNNI saturates is its own affair, measured when the file is evaluated.
    session = OnnxSession(opened.folder / onnx_graph.MODEL, settings=EXACT_PRODUCTS)
    return rewritten.parity(opened.run(session, samples), floor=limit), [equal, *rewritten.checks(floor=limit)]


def _float_activations(proto: onnx.ModelProto) -> bytes:
    """The file with 4-bit products that take their inputs as they are."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        for item in node.attribute:
            if node.op_type == "MatMulNBits" and item.name == "accuracy_level":
                item.i = 1
    content: bytes = copy.SerializeToString()
    return content
