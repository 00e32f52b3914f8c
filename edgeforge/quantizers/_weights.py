"""What the weight-only quantizers share: which weights, which integers, which scales, and how they are written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.spec import Spec
from edgeforge.core.stage import Job
from edgeforge.models.quantized_weights import (
    LinearWeight,
    PalettizedWeight,
    QuantizedWeight,
    QuantizedWeights,
    write,
)
from edgeforge.quantizers._calibrated import Products, gptq, input_products, scale_channels

if TYPE_CHECKING:
    import torch

USES = (
    "edgeforge.quantizers._calibrated",
    "edgeforge.quantizers._weights",
    "edgeforge.models.batch_norm",
    "edgeforge.models.loading",
    "edgeforge.models.operations",
    "edgeforge.models.quantized_weights",
)
NEEDS = ("numpy", "safetensors", "torch", "transformers")

# Shares of the largest magnitude that the grid's end may stand for. Above 1 because the negative side of the grid
# reaches one step further. 20 candidates lose 1 % of squared error against 40.
SEARCHED = np.linspace(0.5, 1.15, 20)
KMEANS_ROUNDS = 100
HQQ_TURNS, HQQ_NORM, HQQ_GROWTH = 20, 0.7, 1.01  # the authors' own
HQQ_STRENGTH = 100.0  # of weights over the largest of their block; theirs is 10 for weights as they are
MIN_ROWS = 16  # of an embedding table: token types have two
CUTS = 129  # evenly spaced, and as many again at equal shares of the numbers


MinElements = Annotated[int, Field(ge=1, description="Weights with fewer elements stay float.")]
Embeddings = Annotated[
    bool, Field(description="Quantize embedding tables too; a row counts as an output channel, its numbers as inputs.")
]


Rounding = Annotated[
    Literal["nearest", "hqq", "gptq"],
    Field(
        description="Of linear layers: to the nearest integer; `hqq`: scales that leave outliers out of account; "
        "`gptq`: so that the layer's outputs on training samples move least, not its weights. All give the same file "
        "format and speed."
    ),
]
Awq = Annotated[
    bool,
    Field(
        description="Before rounding, scale up the input channels that large values pass through, and what makes them "
        "down (AWQ). For models that normalise before each layer, such as language models."
    ),
]
Samples = Annotated[int, Field(ge=1, description="Training samples that `gptq` and `awq` look at.")]


@dataclass(frozen=True)
class Method:
    """How the weight of one layer becomes numbers. `choose` takes float32, (output channels, input channels, ...)."""

    choose: Callable[[np.ndarray], QuantizedWeight]
    rounding: str = "nearest"
    awq: bool = False
    samples: int = 128

    @property
    def looks_at_data(self) -> bool:
        return self.awq or self.rounding == "gptq"


def quantize_weights(
    model: Artifact, job: Job, *, spec: Spec, minimum: int, embeddings: bool, method: Method
) -> Mapping[str, Any]:
    """Quantize weights of at least `minimum` elements of layers (and embeddings); write the torch artifact.

    Returns facts: what was covered, what stayed float and why, how far the weights moved. Raises ModelError.
    """
    from edgeforge.models import loading
    from edgeforge.models.batch_norm import absorb_batch_norm
    from edgeforge.models.operations import trace

    network = loading.load(model.path)
    traced = trace(network, job.data.interface)
    found = traced.layers
    moved = set(absorb_batch_norm(network, found))
    layers = dict.fromkeys(layer.weight for layer in found)
    tables = dict.fromkeys(lookup.table for lookup in traced.lookups if embeddings)
    layers |= {name: None for name in tables if network.get_parameter(name).shape[0] >= MIN_ROWS}
    shared = {layer.weight for layer in found if layer.batch_norm and layer.batch_norm not in moved}
    products: Products | None = None
    powers: dict[str, float] = {}
    if method.looks_at_data:
        products = input_products(network, [name for name in layers if name not in shared], job, samples=method.samples)
    if products is not None and method.awq:
        products, powers = scale_channels(network, products, method.choose)  # type: ignore[arg-type]
    weights: dict[str, QuantizedWeight] = {}
    error = squared = 0.0
    for done, name in enumerate(layers):
        parameter = network.get_parameter(name)
        before = _finite(parameter, name, where=str(model.path))
        if before.size >= minimum and name not in shared:
            weights[name] = chosen = method.choose(before)
            if method.rounding == "gptq" and products is not None and name in products:
                assert isinstance(chosen, LinearWeight)
                weights[name] = gptq(before, products.by_weight[name], chosen)
            error += _replace(parameter, weights[name].dequantize())
            squared += float(np.square(before, dtype=np.float64).sum())
        job.progress.update(done + 1, len(layers), name)
    done_under_any_name = {id(network.get_parameter(name)) for name in weights}
    kept = {
        name: _reason(name, layers, shared, minimum)
        for name, parameter in network.named_parameters()
        if parameter.dim() >= 2 and id(parameter) not in done_under_any_name
    }
    if not weights:
        job.progress.warn(f"no weight has {minimum} elements or more: nothing was quantized")
    loading.save(network, job.folder, tokenizer_from=model.path)
    write(QuantizedWeights(weights, kept, spec.model_dump(mode="json")), job.folder)
    total = sum(parameter.numel() for parameter in network.parameters())
    return {
        "coverage_percent": 100 * sum(math.prod(weight.shape) for weight in weights.values()) / total,
        "relative_error": (error / squared) ** 0.5 if squared else 0.0,
        "quantized": {name: _scheme(weight) for name, weight in weights.items()},
        "kept_float": kept,
        **({"awq_powers": powers} if powers else {}),
    }


def _finite(parameter: torch.nn.Parameter, name: str, *, where: str) -> np.ndarray:
    """A copy of the parameter's numbers. Raises ModelError where one is not finite."""
    numbers: np.ndarray = parameter.detach().numpy().copy()
    if not np.isfinite(numbers).all():
        raise ModelError(f"{name} holds numbers that are not finite", where=where, remedy="train it again")
    return numbers


def _replace(parameter: torch.nn.Parameter, numbers: np.ndarray) -> float:
    """Set a parameter in place; return how far it moved (squared)."""
    import torch

    moved = np.square(numbers - parameter.detach().numpy(), dtype=np.float64).sum()
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(numbers))
    return float(moved)


def _reason(name: str, layers: Container[str], shared: Container[str], minimum: int) -> str:
    """Why a parameter of two or more axes stayed float."""
    if name in shared:
        return "its batch normalization is used in several places"
    return f"fewer than {minimum} elements" if name in layers else "not of a layer that is quantized"


def _scheme(weight: QuantizedWeight) -> str:
    if isinstance(weight, PalettizedWeight):
        return f"a palette of {2**weight.bits} per {weight.group_size} output channels"
    block = weight.block_size
    return f"int{weight.bits} per output channel" + (f" and {block} input channels" if block else "")


def linear(weight: np.ndarray, bits: int, block_size: int | None, *, search: bool = False) -> LinearWeight:
    """Symmetric round-to-nearest integers of a float32 weight (output channels, input channels, kernel...).

    One float16 scale per output channel and `block_size` input channels; per output channel where that is None or
    does not divide them. The largest magnitude lands on the grid's end, or, with `search`, beyond it where clipping
    it lessens the squared error.
    """
    channels, inputs = weight.shape[:2]
    blocks = inputs // block_size if block_size and inputs % block_size == 0 else 1
    values = weight.reshape(channels, blocks, -1).astype(np.float64)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    largest = np.abs(values).max(axis=-1, keepdims=True)
    scales = _to_float16(largest / high)
    integers, error = _round(values, scales, low, high)
    for share in SEARCHED if search else ():
        candidate = _to_float16(share * largest / high)
        tried, worse = _round(values, candidate, low, high)
        better = worse < error
        scales = np.where(better, candidate, scales)
        integers = np.where(better, tried, integers)
        error = np.where(better, worse, error)
    shape = (channels, blocks) + (1,) * (weight.ndim - 2)
    return LinearWeight(bits, integers.astype(np.int8).reshape(weight.shape), scales.reshape(shape))


def half_quadratic(weight: np.ndarray, bits: int, block_size: int | None) -> LinearWeight:
    """`linear`, its scales moved so that a few large errors are borne and the many small ones shrink.

    Badri and Shaji, 2023, "Half-Quadratic Quantization of Large Machine Learning Models": errors are split off by the
    shrinkage of an l_p norm, p = 0.7, and what is left is fitted in turns. Theirs fits the zero point; these integers
    are symmetric, so it is the scale.
    """
    start = linear(weight, bits, block_size)
    channels = weight.shape[0]
    values = weight.reshape(channels, start.scales.shape[1], -1).astype(np.float64)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scales = kept = start.scales.reshape(channels, -1, 1)
    best, integers = np.full(scales.shape, np.inf), np.zeros_like(values)
    largest = np.maximum(np.abs(values).max(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    for turn in range(HQQ_TURNS):
        tried = np.rint(values / scales.astype(np.float64)).clip(low, high)
        moved = values - tried * scales.astype(np.float64)
        norm = (np.abs(moved) ** HQQ_NORM).sum(axis=-1, keepdims=True)
        better = norm < best
        best, integers = np.where(better, norm, best), np.where(better, tried, integers)
        kept = np.where(better, scales, kept)
        # In units of the largest weight, so that the strength means the same for every block.
        size = np.abs(moved) / largest
        shrunk = size - np.maximum(size, 1e-12) ** (HQQ_NORM - 1) / (HQQ_STRENGTH * HQQ_GROWTH**turn)
        outliers = np.sign(moved) * largest * np.maximum(shrunk, 0)
        squares = np.square(tried).sum(axis=-1, keepdims=True)
        fitted = ((values - outliers) * tried).sum(axis=-1, keepdims=True) / np.maximum(squares, 1)
        scales = _to_float16(np.where(squares > 0, np.abs(fitted), scales))
    shape = (*start.scales.shape[:2], *(1,) * (weight.ndim - 2))
    return LinearWeight(bits, integers.astype(np.int8).reshape(weight.shape), kept.astype(np.float16).reshape(shape))


def _to_float16(scales: np.ndarray) -> np.ndarray:
    """The nearest float16 above zero; 1 for a block of zeros."""
    smallest, largest = np.finfo(np.float16).smallest_subnormal, np.finfo(np.float16).max
    return np.where(scales == 0, 1.0, scales.clip(smallest, largest)).astype(np.float16)


def _round(values: np.ndarray, scales: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest integers, and the squared error of each block."""
    wide = scales.astype(np.float64)
    integers = np.rint(values / wide).clip(low, high)
    return integers, np.square(integers * wide - values).sum(axis=-1, keepdims=True)


def palettize(weight: np.ndarray, bits: int, group_size: int) -> PalettizedWeight:
    """The 2**bits values that serve each group of output channels best, by k-means.

    One palette for the whole weight where `group_size` does not divide its output channels.
    """
    channels = weight.shape[0]
    groups = channels // group_size if channels % group_size == 0 else 1
    rows = weight.reshape(groups, -1).astype(np.float64)
    palettes = np.stack([_centroids(row, 2**bits) for row in rows]).astype(np.float16)
    indices = [
        np.searchsorted(_midpoints(palette.astype(np.float64)), row)
        for palette, row in zip(palettes, rows, strict=True)
    ]
    return PalettizedWeight(bits, np.stack(indices).astype(np.uint8).reshape(weight.shape), palettes)


def _midpoints(centroids: np.ndarray) -> np.ndarray:
    middle: np.ndarray = (centroids[1:] + centroids[:-1]) / 2
    return middle


def _centroids(values: np.ndarray, count: int) -> np.ndarray:
    """k-means of numbers on a line, sorted, float64; the same for the same numbers (no random start).

    Lloyd's rounds (1982) from the best clusters whose ends lie on a few hundred cuts, found by dynamic programming
    (Wang and Song, 2011): near the optimum, where random starts are often far from it.
    """
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    edges = _best_cuts(ordered, sums, count)
    centroids: np.ndarray = ordered[np.minimum(edges[:-1], len(ordered) - 1)]
    for _ in range(KMEANS_ROUNDS):
        sizes = np.diff(edges)
        means = np.where(sizes > 0, np.diff(sums[edges]) / np.maximum(sizes, 1), centroids)
        if np.array_equal(means, centroids):
            break
        centroids = np.sort(means)
        edges = np.concatenate([[0], np.searchsorted(ordered, _midpoints(centroids)), [len(ordered)]])
    return centroids


def _best_cuts(ordered: np.ndarray, sums: np.ndarray, count: int) -> np.ndarray:
    """`count` + 1 positions that cut sorted numbers into the clusters of least squared error (some may be empty)."""
    size = len(ordered)
    spread = np.searchsorted(ordered, np.linspace(ordered[0], ordered[-1], CUTS))
    cuts = np.unique(np.concatenate([spread, np.linspace(0, size, CUTS).astype(np.int64), [0, size]]))
    sizes = cuts[None, :] - cuts[:, None]
    totals = sums[cuts][None, :] - sums[cuts][:, None]
    # The sum of squares is the same for every clustering; what a cluster saves is its total squared over its size.
    saved = np.where(sizes >= 0, np.square(totals) / np.maximum(sizes, 1), -np.inf)
    best = saved[0]
    choices = []
    for _ in range(count - 1):
        reached = best[:, None] + saved
        choices.append(reached.argmax(axis=0))
        best = reached.max(axis=0)
    ends = [len(cuts) - 1]
    for choice in reversed(choices):
        ends.append(int(choice[ends[-1]]))
    return cuts[[0, *reversed(ends)]]
