"""OpenVINO files: opened again with OpenVINO and held against torch, on real inputs.

What a float file, or one with weights as integers, must equal is the torch model, within what float32 arithmetic may
move. What a quantizer made of a float file is held against that file; see `_openvino_quantized`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import onnx_graph, openvino_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Input
from edgeforge.runtimes.openvino import FLOAT_INPUTS, OpenvinoSession
from edgeforge.verification import Check, Parity, differences, outcome
from edgeforge.verification._expected_weights import Expected, expected_weights
from edgeforge.verification._layer_noise import LayerNoise
from edgeforge.verification._model_weights import NAME as WEIGHTS
from edgeforge.verification._model_weights import weights_check
from edgeforge.verification._opened import PARITY_SAMPLES, Inputs, Opened, batches_of, float_limit
from edgeforge.verification._openvino_quantized import Quantized
from edgeforge.verification._promises import any_batch, any_length, companions, paths, tokenizer_files
from edgeforge.verification._rounded_weights import of_reference

if TYPE_CHECKING:
    import openvino

Found = tuple[Parity, list[Check], tuple[LayerNoise, ...]]

WATCHED = 32
"""Samples whose inner values are looked at."""

RECORD = "quantization.json"

HALF_ROUNDINGS = 4
"""How many times further than rounding torch's own weights to float16 a file may be: its folded weights are others."""


class OpenedOpenvino(Opened):
    """See `Opened`; `graph` is the file's own. Raises ModelError where it does not open."""

    session: OpenvinoSession

    def __init__(self, inputs: Mapping[str, Artifact], job: Job) -> None:
        folder = inputs["file"].path
        self.graph = openvino_graph.load(folder)
        super().__init__(inputs, job, OpenvinoSession(folder / openvino_graph.MODEL))


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`."""
    try:
        opened = OpenedOpenvino(inputs, job)
    except ModelError as error:
        nothing = Parity("the torch model", None, "the file does not open")
        return outcome(nothing, [Check("opens", False, error.what)])
    checks = [Check("opens", True), *_promises(opened)]
    if (broken := opened.unusable()) is not None:
        return outcome(Parity("the torch model", None, "the file does not run"), [*checks, broken])
    samples = batches_of(opened.samples, PARITY_SAMPLES)[0]
    exact = opened.torch_outputs("model" if "unquantized" in inputs else "reference", samples, "float64")
    if not np.isfinite(exact).all():
        # OpenVINO's ReLU makes zero of NaN: the file looks sound where the model is not.
        reason = "the torch model gives NaN or Infinity on real inputs"
        return outcome(Parity("the torch model", False, reason), [*checks, Check("finite reference", False, reason)])
    if "unquantized" in inputs:
        parity, more, layers = _rewritten_parity(opened, samples, exact)
    else:
        parity, more, layers = _torch_parity(opened, samples, exact)
    fidelity = opened.fidelity() if opened.quantized else None
    return outcome(parity, [*checks, *more], fidelity, layers=layers)


# -- what the file says of itself


def _promises(opened: OpenedOpenvino) -> list[Check]:
    texts = opened.interface.tokens is not None
    return [
        _tensors(opened),
        any_batch(opened),
        *([any_length(opened)] if texts else []),
        _metadata(opened),
        companions(opened),
        *([tokenizer_files(opened)] if texts else []),
        paths(opened.inputs["file"]),
    ]


def _tensors(opened: OpenedOpenvino) -> Check:
    interface = opened.interface
    kinds = {"float32": "f32", "int64": "i64"}
    wanted = (
        [(item.name, kinds[item.dtype], _written_shape(item)) for item in interface.inputs],
        [(interface.output_name, "f32", f"[?,{len(interface.labels)}]")],
    )
    found = tuple(
        [(value.any_name, value.element_type.get_type_name(), str(value.partial_shape)) for value in values]
        for values in (opened.graph.inputs, opened.graph.outputs)
    )
    return Check("inputs and outputs", found == wanted, "" if found == wanted else f"{found}, expected {wanted}")


def _written_shape(item: Input) -> str:
    """As OpenVINO writes it: any batch; a length that varies has its limits."""
    *fixed, last = item.shape
    return f"[{','.join(['?', *map(str, fixed), f'1..{last}' if item.variable else str(last)])}]"


def _metadata(opened: OpenedOpenvino) -> Check:
    wanted = onnx_graph.described(opened.interface, opened.job.task.kind)
    found = openvino_graph.metadata(opened.graph)
    for key, value in wanted.items():
        if found.get(key) != value:
            return Check("metadata", False, f"'{key}' is {found.get(key)!r}, expected {value!r}")
    return Check("metadata", True)


# -- what it computes


def _torch_parity(opened: OpenedOpenvino, samples: Inputs, exact: np.ndarray) -> Found:
    """The file against torch. Weights may lie on a grid, in which case both sides multiply the same numbers."""
    limit, why = _limit(opened, "reference", samples, exact, half=openvino_graph.has_half(opened.graph))
    outputs = opened.outputs[: len(exact)]
    reference = "the torch model"
    expected = _expected(opened, "reference")
    checks, layers = [_weights(opened.graph, expected)], tuple[LayerNoise, ...]()
    if opened.quantized:
        reference = "the torch model with the same quantized weights"
        if isinstance(expected, Expected):
            rounded, layers = of_reference(opened.inputs["reference"].path, opened.inputs["model"].path, expected.reads)
            checks += rounded
        outputs = opened.run(OpenvinoSession(opened.graph, settings=FLOAT_INPUTS), samples)
        if not np.array_equal(outputs, opened.outputs[: len(exact)]):
            checks.append(Check("activations of matrix products", True, _ROUNDED_ACTIVATIONS))
    found = differences(outputs, exact)
    error = found["max_abs_error"]
    parity = Parity(reference, error is not None and error <= limit, why, tolerance=limit, **found)  # type: ignore[arg-type]
    return parity, checks, layers


def _expected(opened: OpenedOpenvino, role: str) -> Expected | str:
    """The numbers that a file made of that torch model must hold, or why they are not known."""
    try:
        return expected_weights(opened.inputs[role].path, opened.interface)
    except ModelError as error:
        return error.what


def _weights(graph: openvino.Model, expected: Expected | str) -> Check:
    """The constants of a file whose arithmetic is float are those of the torch model."""
    if isinstance(expected, str):
        return Check(WEIGHTS, None, expected)
    return weights_check(expected, openvino_graph.float_constants(graph))


_ROUNDED_ACTIVATIONS = (
    "parity is taken with activations in float; the runtime rounds them to 8 bits per group, which fidelity measures"
)


def _limit(opened: OpenedOpenvino, role: str, samples: Inputs, exact: np.ndarray, *, half: bool) -> tuple[float, str]:
    """How far a file may be from the torch model of that role, and why; `half`: it holds float16 constants."""
    limit, why = float_limit(exact, opened.torch_outputs(role, samples))
    if not half:
        return limit, why
    moved = float(np.abs(opened.torch_outputs(role, samples, "float64", half_weights=True) - exact).max())
    limit += HALF_ROUNDINGS * moved
    return limit, f"at most {limit:.3g}: {HALF_ROUNDINGS} times what rounding torch's weights to float16 moves"


def _rewritten_parity(opened: OpenedOpenvino, samples: Inputs, exact: np.ndarray) -> Found:
    """A file that a quantizer made from a float file: against that file, which is held against torch in its turn."""
    original = openvino_graph.load(opened.inputs["unquantized"].path)
    limit, why = _limit(opened, "model", samples, exact, half=openvino_graph.has_half(original))
    rewritten = Quantized(original, opened.graph, lambda graph: opened.run(OpenvinoSession(graph), samples))
    apart = float(np.abs(rewritten.clean - exact).max())
    equal = [
        Check("float file equals torch", apart <= limit, f"they differ by {apart:.3g}; {why}"),
        _weights(original, _expected(opened, "model")),
    ]
    try:
        record = json.loads((opened.folder / RECORD).read_text(encoding="utf-8"))
        few = {name: array[:WATCHED] for name, array in samples.items()}
        checks = [*rewritten.checks(record, limit=limit), rewritten.ranges(few)]
        layers = rewritten.layers()
        parity = rewritten.parity(opened.outputs[: len(exact)], floor=limit)
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, ModelError) as error:
        # Something that every file written here has is missing, or is of another kind.
        why = f"it is built in another way: {type(error).__name__}: {openvino_graph.reason(error)}"
        return Parity(rewritten.reference, None, why), [*equal, Check("quantization", False, why)], ()
    return parity, [*equal, *checks], layers
