"""The numbers a written file must hold, computed from a torch artifact with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeforge.models.quantized_weights import QuantizedWeight

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface
    from edgeforge.models.operations import Operation, Trace

FLOAT32_ROUNDING = 1e-6  # of a few multiplications and additions in float32, relative to their largest operand


@dataclass(frozen=True)
class Values:
    """Numbers of the torch model, float64, and how far float32 arithmetic on the way to a file may move each."""

    name: str
    numbers: np.ndarray
    slack: np.ndarray

    @classmethod
    def of(cls, name: str, numbers: np.ndarray) -> Values:
        """Numbers that are written as they are."""
        return cls(name, numbers, FLOAT32_ROUNDING * np.abs(numbers))

    @property
    def neutral(self) -> bool:
        """Whether all are one, or all are zero."""
        first = self.numbers.reshape(-1)[0]
        return first in (0.0, 1.0) and bool((self.numbers == first).all())

    def matches(self, stored: np.ndarray) -> bool:
        """Whether these are the stored numbers, as many, in any shape."""
        return self.numbers.size == stored.size and not self.wrong(stored).any()

    def wrong(self, stored: np.ndarray) -> np.ndarray:
        """Which stored numbers (as many, in any shape) are farther off than rounding to their precision explains."""
        with np.errstate(over="ignore"):
            nearest = np.abs(self.numbers).astype(stored.dtype)
        step = np.spacing(nearest).astype(np.float64)
        # coremltools lets nothing become zero: below the smallest number it rounds up.
        rounding = np.where(np.abs(self.numbers) < step, step, step / 2)
        right: np.ndarray = self.error(stored) <= rounding.reshape(-1) + self.slack.reshape(-1)
        return ~right  # what is not a number is not right

    def error(self, stored: np.ndarray) -> np.ndarray:
        """Absolute differences, float64, one axis."""
        difference: np.ndarray = np.abs(stored.astype(np.float64).reshape(-1) - self.numbers.reshape(-1))
        return difference


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as it runs, with the batch normalization behind it folded in.

    `quantized` is what the quantizer decided for its weight, which then must be stored as just that.
    """

    kind: Literal["conv", "linear"]
    weight: Values
    bias: Values
    quantized: QuantizedWeight | None


@dataclass(frozen=True)
class Stored:
    """Numbers that an operation reads, and the integers they must be stored as where a quantizer decided them."""

    values: Values
    quantized: QuantizedWeight | None = None


@dataclass(frozen=True)
class Expected:
    """Layers in the order they run, and what other operations read, likewise, in each of the forms it may have.

    Rows of an embedding table that are the same for every text (positions, token types) are stored as those rows, or
    are looked up in the whole table. `reads` is what the model itself reads.
    """

    layers: list[Layer]
    others: list[tuple[Stored, ...]]
    reads: Trace


def expected_weights(folder: Path, interface: Interface) -> Expected:
    """What a file made of the torch artifact in `folder` must hold. Raises ModelError where that cannot be read."""
    from edgeforge.models import loading, quantized_weights
    from edgeforge.models.operations import trace

    network = loading.load(folder)
    quantized = quantized_weights.read(folder)
    if quantized is not None:
        quantized_weights.check_model(quantized, network, where=str(folder))
    integers = quantized.weights if quantized is not None else {}
    reads = trace(network, interface)
    tables = {lookup.constant: lookup.table for lookup in reads.lookups if lookup.constant is not None}
    others = [
        _rows(network, tables[name], value, integers) if name in tables else (_stored(name, value, integers),)
        for name, value in reads.constants
        if value.is_floating_point() and value.numel() > 1
    ]
    return Expected([_layer(network, layer, integers) for layer in reads.layers], others, reads)


def _stored(name: str, value: torch.Tensor, integers: Mapping[str, QuantizedWeight]) -> Stored:
    return Stored(Values.of(name, value.detach().double().numpy()), integers.get(name))


def _rows(
    network: PreTrainedModel, name: str, value: torch.Tensor, integers: Mapping[str, QuantizedWeight]
) -> tuple[Stored, ...]:
    """The forms of rows read from a table, shape (1..., N, width): a row that repeats is stored once."""
    table = network.get_parameter(name)
    whole = _stored(name, table, integers)
    rows = value.reshape(-1, value.shape[-1])
    count = 1 if bool((rows[:1] == rows).all()) else len(rows)
    first = rows[:count]
    if not bool((first == table[:count]).all()):  # other rows than the first ones: then as they are
        return (Stored(Values.of(f"rows of {name}", first.detach().double().numpy())), whole)
    quantized = whole.quantized.first(count) if whole.quantized is not None else None
    return (Stored(Values.of(f"the first {count} rows of {name}", whole.values.numbers[:count]), quantized), whole)


def _layer(network: PreTrainedModel, operation: Operation, integers: Mapping[str, QuantizedWeight]) -> Layer:
    weight = network.get_parameter(operation.weight).detach().double().numpy()
    bias = np.zeros(len(weight))
    if operation.bias is not None:
        bias = network.get_parameter(operation.bias).detach().double().numpy()
    slack = FLOAT32_ROUNDING * np.abs(bias)
    if operation.batch_norm is not None:
        # Ioffe and Szegedy, 2015: y = gamma * (x - mean) / sqrt(variance + eps) + beta, per channel.
        norm = network.get_submodule(operation.batch_norm)
        mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
        gamma, beta = (
            np.full_like(mean, default) if tensor is None else tensor.detach().double().numpy()
            for tensor, default in ((norm.weight, 1.0), (norm.bias, 0.0))
        )
        factor = gamma / np.sqrt(variance + norm.eps)
        weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        slack = FLOAT32_ROUNDING * (np.abs(beta) + (np.abs(bias) + np.abs(mean)) * np.abs(factor))
        bias = beta + (bias - mean) * factor
    name = operation.weight.removesuffix(".weight")
    return Layer(
        operation.kind,
        Values.of(operation.weight, weight),
        Values(f"{name}.bias", bias, slack),
        integers.get(operation.weight),
    )
