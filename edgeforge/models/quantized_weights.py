"""Integers and scales beside a torch artifact: what a weight-only quantizer decided, for every exporter to write.

``quantization.json`` says how each weight was quantized and why others stayed float; ``quantization.safetensors``
holds the numbers. The artifact's own weights are the same numbers multiplied out, so the torch model is the
quantized model. Formats that cannot say a scheme refuse it; none computes integers of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from edgeforge.core.errors import ModelError
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DESCRIPTION = "quantization.json"
TENSORS = "quantization.safetensors"

_WRITE_AGAIN = "quantize the model again"


@dataclass(frozen=True)
class LinearWeight:
    """weight = integers * scales, symmetric about zero.

    integers: int8, the weight's shape (output channels, input channels, kernel...), within
    [-2**(bits-1), 2**(bits-1) - 1]. scales: float16, finite, above zero, shape (output channels, blocks, 1...): each
    serves ``input channels / blocks`` consecutive input channels and all of the kernel.
    """

    bits: int
    integers: np.ndarray
    scales: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.integers.shape)

    @property
    def block_size(self) -> int | None:
        """Input channels that share a scale; None: all of an output channel."""
        return None if self.scales.shape[1] == 1 else self.shape[1] // self.scales.shape[1]

    def dequantize(self) -> np.ndarray:
        """The weight, float32; exact, for 8 bits times the 11 of a float16."""
        scales = np.repeat(self.scales.astype(np.float32), self.shape[1] // self.scales.shape[1], axis=1)
        return self.integers.astype(np.float32) * scales

    def first(self, rows: int) -> LinearWeight:
        """The part of the first output channels (the first rows of an embedding table)."""
        return LinearWeight(self.bits, self.integers[:rows], self.scales[:rows])

    def tensors(self) -> dict[str, np.ndarray]:
        return {"integers": self.integers, "scales": self.scales}

    def problem(self) -> str | None:
        """What is wrong with the numbers, or None."""
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        if self.integers.dtype != np.int8 or self.scales.dtype != np.float16:
            return "integers must be int8 and scales float16"
        if self.integers.ndim < 2 or 0 in self.shape or self.scales.ndim != self.integers.ndim:
            return "integers and scales must have two or more axes, as many as each other"
        blocks = self.scales.shape[1]
        wanted = (self.shape[0], blocks) + (1,) * (self.integers.ndim - 2)
        if self.scales.shape != wanted or blocks == 0 or self.shape[1] % blocks:
            return f"scales of shape {self.scales.shape} do not divide a weight of shape {self.shape}"
        if self.integers.min() < low or self.integers.max() > high:
            return f"an integer lies outside [{low}, {high}]"
        if not (np.isfinite(self.scales).all() and (self.scales > 0).all()):
            return "a scale is not a positive number"
        return None


@dataclass(frozen=True)
class PalettizedWeight:
    """weight = palettes[group of the output channel, indices].

    indices: uint8, the weight's shape, below 2**bits. palettes: float16, finite, shape (groups, 2**bits): each serves
    ``output channels / groups`` consecutive output channels.
    """

    bits: int
    indices: np.ndarray
    palettes: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.indices.shape)

    @property
    def group_size(self) -> int:
        """Output channels that share a palette."""
        return int(self.shape[0] // self.palettes.shape[0])

    def dequantize(self) -> np.ndarray:
        """The weight, float32."""
        flat = self.indices.reshape(self.palettes.shape[0], -1).astype(np.int64)
        return np.take_along_axis(self.palettes.astype(np.float32), flat, axis=1).reshape(self.shape)

    def first(self, rows: int) -> PalettizedWeight:
        """The part of the first output channels; palettes are repeated where their groups would end unevenly."""
        size = math.gcd(rows, self.group_size)
        palettes = np.repeat(self.palettes, self.group_size // size, axis=0)[: rows // size]
        return PalettizedWeight(self.bits, self.indices[:rows], palettes)

    def tensors(self) -> dict[str, np.ndarray]:
        return {"indices": self.indices, "palettes": self.palettes}

    def problem(self) -> str | None:
        """What is wrong with the numbers, or None."""
        if self.indices.dtype != np.uint8 or self.palettes.dtype != np.float16:
            return "indices must be uint8 and palettes float16"
        if self.indices.ndim < 2 or 0 in self.shape:
            return "indices must have two or more axes"
        groups = self.palettes.shape[0] if self.palettes.ndim == 2 else 0
        if groups == 0 or self.palettes.shape != (groups, 2**self.bits) or self.shape[0] % groups:
            return f"palettes of shape {self.palettes.shape} do not divide a weight of shape {self.shape}"
        if self.indices.max() >= 2**self.bits:
            return f"an index is not below {2**self.bits}"
        if not np.isfinite(self.palettes).all():
            return "a palette holds a number that is not finite"
        return None


QuantizedWeight = LinearWeight | PalettizedWeight


@dataclass(frozen=True)
class QuantizedWeights:
    """Every quantized weight of a model by parameter name, and why others stayed float."""

    weights: Mapping[str, QuantizedWeight]
    kept: Mapping[str, str] = field(default_factory=dict)
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    """The quantizer's spec."""


class _Linear(Spec):
    method: Literal["linear"] = "linear"
    bits: Literal[4, 8]


class _Palettized(Spec):
    method: Literal["palettized"] = "palettized"
    bits: Literal[1, 2, 4, 8]


class _Description(Spec):
    """``quantization.json``."""

    format: Literal[1] = 1
    parameters: dict[str, Annotated[_Linear | _Palettized, Field(discriminator="method")]]
    kept: dict[str, str]
    quantizer: dict[str, Any]


def write(quantized: QuantizedWeights, folder: Path) -> None:
    """Write both files, the same bytes for the same numbers."""
    from safetensors.numpy import save_file

    tensors, parameters = {}, {}
    for name, weight in sorted(quantized.weights.items()):
        assert weight.problem() is None, (name, weight.problem())
        kind = _Linear if isinstance(weight, LinearWeight) else _Palettized
        parameters[name] = kind(bits=weight.bits)
        tensors.update({f"{name}.{part}": np.ascontiguousarray(value) for part, value in weight.tensors().items()})
    description = _Description(
        parameters=parameters, kept=dict(sorted(quantized.kept.items())), quantizer=dict(quantized.quantizer)
    )
    save_file(tensors, folder / TENSORS)
    text = json.dumps(description.model_dump(mode="json"), indent=1, sort_keys=True)
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def read(folder: Path) -> QuantizedWeights | None:
    """What a quantizer left in a torch artifact; None where nothing was quantized. Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / DESCRIPTION).is_file():
        return None
    where = str(folder / DESCRIPTION)
    try:
        raw = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        description = _Description.model_validate(raw)
        tensors = load_file(folder / TENSORS)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise ModelError(f"{place}: {problem['msg']}", where=where, remedy=_WRITE_AGAIN) from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"cannot be read: {error}", where=where, remedy=_WRITE_AGAIN) from error
    weights: dict[str, QuantizedWeight] = {}
    for name, entry in description.parameters.items():
        cls = LinearWeight if isinstance(entry, _Linear) else PalettizedWeight
        parts = ("integers", "scales") if cls is LinearWeight else ("indices", "palettes")
        if missing := [part for part in parts if f"{name}.{part}" not in tensors]:
            raise ModelError(f"{name}.{missing[0]} is missing from {TENSORS}", where=where, remedy=_WRITE_AGAIN)
        weight = cls(entry.bits, *(tensors[f"{name}.{part}"] for part in parts))
        if reason := weight.problem():
            raise ModelError(f"{name}: {reason}", where=str(folder / TENSORS), remedy=_WRITE_AGAIN)
        weights[name] = weight
    return QuantizedWeights(weights, description.kept, description.quantizer)


def check_model(quantized: QuantizedWeights, model: PreTrainedModel, *, where: str) -> None:
    """Raise ModelError unless each quantized weight, multiplied out, is the model's own, to the bit."""
    state = model.state_dict()
    for name, weight in quantized.weights.items():
        if name not in state:
            raise ModelError(f"{name} is quantized but no weight of the model", where=where, remedy=_WRITE_AGAIN)
        if not np.array_equal(state[name].detach().cpu().numpy(), weight.dequantize()):
            raise ModelError(f"{name} is not its integers times its scales", where=where, remedy=_WRITE_AGAIN)
