"""How much each quantized layer lost: signal-to-quantization-noise ratios, for people and for the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgeforge.models.quantized_weights import QuantizedWeights

QUIET = 200.0
"""Said where there is no noise at all (dB)."""


@dataclass(frozen=True)
class LayerNoise:
    """`weight_db`: the float weight's power over that of what quantization moves, in dB. `output_db`: the same of what
    the layer gives on real inputs, all that was quantized before it included; None where it was not computed."""

    name: str
    weight_db: float
    output_db: float | None = None


def decibels(clean: np.ndarray, disturbed: np.ndarray) -> float:
    """10 log10(power of `clean` / power of the difference); at most `QUIET`."""
    signal = float(np.square(clean, dtype=np.float64).sum())
    noise = float(np.square(disturbed.astype(np.float64) - clean).sum())
    if not np.isfinite(noise) or not signal:
        return -QUIET if noise else QUIET
    return min(QUIET, 10 * float(np.log10(signal / noise))) if noise else QUIET


def worst_first(layers: Iterable[LayerNoise]) -> tuple[LayerNoise, ...]:
    """By output where that is known, else by weight."""
    return tuple(sorted(layers, key=lambda layer: layer.weight_db if layer.output_db is None else layer.output_db))


def of_weights(quantized: QuantizedWeights, floats: Mapping[str, np.ndarray]) -> tuple[LayerNoise, ...]:
    """Of weights that a quantizer of torch models chose; `floats`: what they were, by parameter."""
    return worst_first(
        LayerNoise(name.removesuffix(".weight"), decibels(floats[name], weight.dequantize()))
        for name, weight in quantized.weights.items()
        if name in floats
    )
