"""Integers that a quantizer of torch models chose, against the weights of the float model it was given.

A file is held against the quantized model; this holds that model against the float one, weight by weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.models.quantized_weights import LinearWeight, PalettizedWeight, QuantizedWeight, QuantizedWeights
from edgeforge.verification import Check
from edgeforge.verification._layer_noise import LayerNoise, of_weights

if TYPE_CHECKING:
    from edgeforge.models.operations import Trace

NAME = "integers are the float weights"
NEAREST = frozenset({"int4_weights", "int8_weights"})
"""Quantizers that round each number to the nearest of its grid, unless their spec says otherwise: GPTQ moves an integer
for another's sake, AWQ scales weights before."""

HALF_A_STEP = 0.501
"""Scales are float16 and weights float32: halves are not met to the last bit."""

LEAST_SCALE, LARGEST_SCALE = 0.45, 1.3
"""Of the scale whose grid ends at the largest weight. A search may cut off half of that; the negative side of a grid
is one step longer."""


def of_reference(reference: Path, model: Path, reads: Trace) -> tuple[list[Check], tuple[LayerNoise, ...]]:
    """A check that the integers are those of the float model, and what each layer lost; nothing where none are."""
    from edgeforge.models import quantized_weights

    try:
        quantized = quantized_weights.read(reference)
    except ModelError as error:
        return [Check(NAME, False, error.what)], ()
    if quantized is None:
        return [], ()
    floats = _floats(model, reads, quantized)
    noise = of_weights(quantized, floats)
    spec = quantized.quantizer
    if spec.get("kind") not in NEAREST or spec.get("rounding", "nearest") != "nearest" or spec.get("awq"):
        return [], noise
    problem = next(_problems(quantized, floats), None)
    return [Check(NAME, problem is None, problem or "")], noise


def _floats(model: Path, reads: Trace, quantized: QuantizedWeights) -> dict[str, np.ndarray]:
    """The float weights as the quantizer saw them: with factors of batch normalization in them."""
    from edgeforge.models import loading
    from edgeforge.models.batch_norm import absorb_batch_norm

    network = loading.load(model)
    absorb_batch_norm(network, reads.layers)
    known = dict(network.named_parameters(remove_duplicate=False))
    return {name: known[name].detach().numpy() for name in quantized.weights if name in known}


def _problems(quantized: QuantizedWeights, floats: dict[str, np.ndarray]) -> Iterator[str]:
    for name, weight in quantized.weights.items():
        if name not in floats or floats[name].shape != weight.shape:
            yield f"{name} is no weight of the float model"
        elif problem := _problem(weight, floats[name].astype(np.float64)):
            yield f"{name}: {problem}"


def _problem(weight: QuantizedWeight, values: np.ndarray) -> str | None:
    if isinstance(weight, LinearWeight):
        return linear_problem(weight, values, half_step=HALF_A_STEP)
    wrong = _misplaced(weight, values)
    return (
        f"{int(wrong.sum())} of {wrong.size} integers are not the nearest to their float weight"
        if wrong.any()
        else None
    )


def linear_problem(weight: LinearWeight, values: np.ndarray, *, half_step: float) -> str | None:
    """What is wrong with integers and scales of float weights, float64; None where nothing is."""
    wrong = _misrounded(weight, values, half_step)
    if wrong.any():
        return f"{int(wrong.sum())} of {wrong.size} integers are not the nearest to their float weight"
    return _misfit(weight, values)


def _misrounded(weight: LinearWeight, values: np.ndarray, half_step: float = HALF_A_STEP) -> np.ndarray:
    low, high = -(2 ** (weight.bits - 1)), 2 ** (weight.bits - 1) - 1
    scales = np.repeat(weight.scales.astype(np.float64), weight.shape[1] // weight.scales.shape[1], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # a channel of zeros may have a scale of zero
        steps = (values / scales).clip(low, high)
    wrong: np.ndarray = np.abs(steps - weight.integers) > half_step
    return wrong


def _misfit(weight: LinearWeight, values: np.ndarray) -> str | None:
    """Whether a scale is that of other weights."""
    channels, blocks = weight.scales.shape[:2]
    largest = np.abs(values).reshape(channels, blocks, -1).max(axis=-1)
    scales = weight.scales.astype(np.float64).reshape(channels, blocks)
    share = scales * (2 ** (weight.bits - 1) - 1) / np.where(largest > 0, largest, np.nan)
    # float16 has few steps left where weights are next to nothing.
    off = ((share < LEAST_SCALE) | (share > LARGEST_SCALE)) & (scales > 1e-6)
    return f"{int(off.sum())} of {off.size} scales do not fit their weights" if off.any() else None


def _misplaced(weight: PalettizedWeight, values: np.ndarray) -> np.ndarray:
    groups = len(weight.palettes)
    palettes = weight.palettes.astype(np.float64)
    rows = values.reshape(groups, -1)
    best = np.stack([np.abs(row[:, None] - palette).min(axis=1) for row, palette in zip(rows, palettes, strict=True)])
    error = np.abs(weight.dequantize().astype(np.float64).reshape(groups, -1) - rows)
    wrong: np.ndarray = error > best + 1e-6 * np.abs(rows) + 1e-9
    return wrong
