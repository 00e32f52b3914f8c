"""Weights rounded with an eye on what multiplies them: GPTQ's rounding and AWQ's scaling, from the layers' inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.core.task import model_inputs
from edgeforge.models.quantized_weights import LinearWeight

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job

DAMPING = 0.01
"""Share of the mean of a Hessian's diagonal that is added to it (GPTQ's own default)."""

COLUMNS = 128
"""Input channels whose errors are passed on to the later ones together: the same numbers, in fewer passes."""

EXPONENTS = tuple(step / 10 for step in range(10))
"""What AWQ tries; 0 leaves a layer as it is."""

BATCH_TOKENS = 4096

Choose = Callable[[np.ndarray], LinearWeight]


@dataclass(frozen=True)
class Products:
    """Mean products of a layer's inputs, float64, (inputs, inputs), by the name of its weight.

    Layers that read the same tensor share one matrix.
    """

    by_weight: Mapping[str, torch.Tensor]

    def __contains__(self, weight: str) -> bool:
        return weight in self.by_weight

    def error(self, weight: str, moved: torch.Tensor) -> float:
        """Mean squared error of the layer's outputs where its weight moved by `moved`, (outputs, inputs)."""
        return float(((moved @ self.by_weight[weight]) * moved).sum())


def input_products(network: PreTrainedModel, weights: Iterable[str], job: Job, *, samples: int) -> Products:
    """Pass `samples` training samples through and sum up what enters each linear layer; padding is left out."""
    import torch

    found: dict[str, torch.Tensor] = {}
    owner: dict[str, str] = {}
    wanted, data = set(weights), job.data
    layers = {
        f"{path}.weight": module for path, module in network.named_modules() if isinstance(module, torch.nn.Linear)
    }
    count, real = 0, None

    with ExitStack() as hooks, torch.no_grad():
        seen: dict[int, str] = {}
        alive: list[torch.Tensor] = []  # so that no two inputs of one pass have the same id

        def hook(name: str) -> Callable[[nn.Module, Any], None]:
            def keep(_layer: nn.Module, args: Any) -> None:
                (values,) = args
                alive.append(values)
                first = seen.setdefault(id(values), name)
                owner[name] = first
                if first == name:
                    found[name] = found.get(name, 0) + _product(values, real)

            return keep

        for name in wanted & layers.keys():
            hooks.callback(layers[name].register_forward_pre_hook(hook(name)).remove)
        size = min(samples, data.size("train"))
        longest = data.interface.inputs[0].shape[-1] if data.interface.tokens is not None else 64
        step = max(1, BATCH_TOKENS // longest)
        for start in range(0, size, step):
            batch = model_inputs(data.batch("train", range(start, min(size, start + step))))
            mask = batch.get("attention_mask")
            real = None if mask is None else mask.bool()
            network(**batch)
            seen.clear()
            alive.clear()
            count = min(size, start + step)
            job.progress.update(count, size, "calibration")
    return Products({name: found[first] / count for name, first in owner.items() if name in wanted})


def _product(values: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Sum over tokens of x x^T, float64."""
    if real is not None and values.dim() == 3 and values.shape[:2] == real.shape:
        rows = values[real]
    else:
        rows = values.reshape(-1, values.shape[-1])
    rows = rows.double()
    return rows.T @ rows


def gptq(weight: np.ndarray, product: torch.Tensor, start: LinearWeight) -> LinearWeight:
    """Integers that keep the layer's outputs, not its weights (Frantar et al., 2022, https://arxiv.org/abs/2210.17323).

    Input channels are rounded one after another, the largest inputs first, and each one's error is made good by those
    that follow. Scales are those of `start`. weight: float32, (outputs, inputs); product: (inputs, inputs).
    """
    import torch

    order, factor = _cholesky(product)
    blocks = start.scales.shape[1]
    scale = torch.from_numpy(np.repeat(start.scales.astype(np.float64), weight.shape[1] // blocks, axis=1))[:, order]
    low, high = -(2 ** (start.bits - 1)), 2 ** (start.bits - 1) - 1
    rest = torch.from_numpy(weight).double()[:, order]
    integers = torch.empty_like(rest)
    for first in range(0, rest.shape[1], COLUMNS):
        last = min(first + COLUMNS, rest.shape[1])
        errors = torch.empty(rest.shape[0], last - first, dtype=torch.float64)
        for column in range(first, last):
            integers[:, column] = (rest[:, column] / scale[:, column]).round().clamp(low, high)
            moved = rest[:, column] - integers[:, column] * scale[:, column]
            error = moved / factor[column, column]
            rest[:, column:last] -= error[:, None] * factor[column, column:last]
            errors[:, column - first] = error
        rest[:, last:] -= errors @ factor[first:last, last:]
    restored = torch.empty_like(integers)
    restored[:, order] = integers
    return LinearWeight(start.bits, restored.to(torch.int8).numpy(), start.scales)


def _cholesky(product: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The order of input channels, and the upper Cholesky factor of the damped product's inverse in that order."""
    import torch

    diagonal = product.diagonal()
    # An input that is always zero: its weight is rounded alone.
    hessian = product + torch.diag(torch.where(diagonal == 0, 1.0, 0.0) + DAMPING * diagonal.mean())
    order = hessian.diagonal().argsort(descending=True, stable=True)
    ordered = hessian[order][:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ordered))
    return order, torch.linalg.cholesky(inverse, upper=True)


# -- AWQ


@dataclass(frozen=True)
class Scalable:
    """Layers that read one value, and the parameters that make it and nothing else: their first axis is scaled down."""

    layers: tuple[str, ...]
    makers: tuple[str, ...]


def scalable(network: PreTrainedModel) -> list[Scalable]:
    """Where a value's channels can be scaled at no cost, in blocks that normalise before each layer.

    Behind a normalization: query, key and value; gate and up. Behind `up`: down. Empty for other models: where the
    normalized value is also the residual, a scale would be another operation at run time.
    """
    found = []
    names = {name for name, _ in network.named_parameters()}
    for path, module in network.named_modules():
        if not (hasattr(module, "self_attn") and hasattr(module, "mlp") and hasattr(module.mlp, "gate_proj")):
            continue

        def there(*candidates: str, path: str = path) -> tuple[str, ...]:
            return tuple(f"{path}.{name}" for name in candidates if f"{path}.{name}" in names)

        found.append(
            Scalable(
                there(*(f"self_attn.{name}.weight" for name in ("q_proj", "k_proj", "v_proj"))),
                there("input_layernorm.weight", "input_layernorm.bias"),
            )
        )
        found.append(
            Scalable(
                there("mlp.gate_proj.weight", "mlp.up_proj.weight"),
                there("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
            )
        )
        found.append(Scalable(there("mlp.down_proj.weight"), there("mlp.up_proj.weight", "mlp.up_proj.bias")))
    return found


def scale_channels(network: PreTrainedModel, products: Products, choose: Choose) -> tuple[Products, dict[str, float]]:
    """Scale input channels that large values pass through up, and what makes them down, in place.

    Lin et al., 2023 (AWQ, https://arxiv.org/abs/2306.00978): the factor is the channel's magnitude to a power; the
    power is that of those tried at which rounding (`choose`) moves the layers' outputs least. Magnitudes are root mean
    squares. The function stays the same. Returns the products of the new inputs, and the power by layer.
    Raises ModelError where the model has no place for a scale.
    """
    import torch

    places = scalable(network)
    if not places:
        raise ModelError(
            f"AWQ scales nothing in a {type(network).__name__}: it normalises after the residual",
            where="quantize.awq",
            remedy="leave `awq` out, or use `rounding: gptq`",
        )
    parameters = dict(network.named_parameters())
    changed, powers = dict(products.by_weight), {}
    with torch.no_grad():
        for place in places:
            if not all(name in products for name in place.layers):
                continue
            weights = {name: parameters[name].detach() for name in place.layers}
            magnitude = products.by_weight[place.layers[0]].diagonal().sqrt()
            tried = {power: _factors(magnitude, power) for power in EXPONENTS}
            errors = {power: _scaled_error(weights, products, factors, choose) for power, factors in tried.items()}
            power = min(errors, key=lambda one: (errors[one], one))
            factors = tried[power]
            for name in place.layers:
                parameters[name].mul_(factors.float())
                changed[name] = products.by_weight[name] / factors[:, None] / factors[None, :]
                powers[name] = power
            for name in place.makers:
                shape = (-1, *(1,) * (parameters[name].dim() - 1))
                parameters[name].div_(factors.float().reshape(shape))
    return Products(changed), powers


def _factors(magnitude: torch.Tensor, power: float) -> torch.Tensor:
    """Around 1, so that neither side leaves float16's range; 1 where nothing passes."""
    import torch

    raised = torch.where(magnitude > 0, magnitude, 1.0) ** power
    return raised / (raised.max() * raised.min()).sqrt()


def _scaled_error(
    weights: Mapping[str, torch.Tensor], products: Products, factors: torch.Tensor, choose: Choose
) -> float:
    """Squared error of the layers' outputs after rounding with these factors."""
    import torch

    total = 0.0
    for name, weight in weights.items():
        rounded = torch.from_numpy(choose((weight * factors.float()).numpy()).dequantize()).double() / factors
        total += products.error(name, rounded - weight.double())
    return total
