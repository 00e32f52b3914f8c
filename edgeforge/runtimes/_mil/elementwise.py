"""Operations on each number by itself: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgeforge.runtimes._mil.types import BY_NAME


def real_div(x: Tensor, y: Tensor) -> Tensor:
    """Integers must divide evenly, as sizes do: what else they give is not documented."""
    if x.is_floating_point():
        return x / y
    quotient = torch.div(x, y, rounding_mode="floor")
    if not torch.equal(quotient * y, x.expand_as(quotient)):
        raise ValueError("it divides integers that do not divide evenly, and what that gives is not documented")
    return quotient


def cast(x: Tensor, dtype: str) -> Tensor:
    """Floats stay in the type that the evaluator computes with; how they are rounded is its own affair."""
    if dtype not in BY_NAME:
        raise ValueError(f"the type '{dtype}' is not known")
    target = BY_NAME[dtype]
    if target.is_float:
        return x if x.is_floating_point() else x.float()
    if dtype in ("uint16", "uint32"):  # held in a wider type, and wrapping as the narrow one would
        return x.to(torch.int64).bitwise_and((1 << target.bits) - 1).to(target.held)
    return (
        x.to(torch.int64).to(target.held) if x.is_floating_point() and target.held != torch.bool else x.to(target.held)
    )


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


def clamped_relu(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return torch.minimum(torch.where(x >= 0, x, alpha * x), beta)


def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    slope = alpha.reshape(-1, *[1] * (x.dim() - 2)) if x.dim() > 1 else alpha
    return torch.where(x >= 0, x, slope * x)


def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    shape = (-1, *[1] * (x.dim() - 2))
    return alpha.reshape(shape) * functional.softplus(beta.reshape(shape) * x)


def rsqrt(x: Tensor, epsilon: Tensor | float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


def log(x: Tensor, epsilon: Tensor | float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


def inverse(x: Tensor, epsilon: Tensor | float = 1e-4) -> Tensor:
    return torch.reciprocal(x + epsilon)


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    # two values
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": real_div,
    "floor_div": lambda x, y: torch.floor_divide(x, y),
    "mod": lambda x, y: torch.remainder(x, y),
    "pow": lambda x, y: torch.pow(x, y),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    "equal": lambda x, y: x == y,
    "not_equal": lambda x, y: x != y,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "logical_and": lambda x, y: x.logical_and(y),
    "logical_or": lambda x, y: x.logical_or(y),
    "logical_xor": lambda x, y: x.logical_xor(y),
    "select": select,
    # one value
    "abs": lambda x: x.abs(),
    "acos": lambda x: x.acos(),
    "asin": lambda x: x.asin(),
    "atan": lambda x: x.atan(),
    "atanh": lambda x: x.atanh(),
    "ceil": lambda x: x.ceil(),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "cos": lambda x: x.cos(),
    "cosh": lambda x: x.cosh(),
    "erf": lambda x: x.erf(),
    "exp": lambda x: x.exp(),
    "exp2": lambda x: x.exp2(),
    "floor": lambda x: x.floor(),
    "identity": lambda x: x,
    "inverse": inverse,
    "log": log,
    "logical_not": lambda x: x.logical_not(),
    "round": lambda x: x.round(),
    "rsqrt": rsqrt,
    "sign": lambda x: x.sign(),
    "sin": lambda x: x.sin(),
    "sinh": lambda x: x.sinh(),
    "sqrt": lambda x: x.sqrt(),
    "square": lambda x: x.square(),
    "tan": lambda x: x.tan(),
    "tanh": lambda x: x.tanh(),
    "threshold": lambda x, alpha: torch.maximum(x, alpha),
    "cast": cast,
    # activations
    "clamped_relu": clamped_relu,
    "elu": lambda x, alpha: torch.where(x > 0, x, alpha * torch.expm1(x)),
    "gelu": gelu,
    "leaky_relu": lambda x, alpha: torch.where(x >= 0, x, alpha * x),
    "linear_activation": lambda x, alpha, beta: alpha * x + beta,
    "prelu": prelu,
    "relu": lambda x: x.relu(),
    "relu6": lambda x: x.clamp(0, 6),
    "scaled_tanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid": lambda x: x.sigmoid(),
    "sigmoid_hard": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "silu": lambda x: functional.silu(x),
    "softplus": lambda x: functional.softplus(x),
    "softplus_parametric": softplus_parametric,
    "softsign": lambda x: functional.softsign(x),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, torch.zeros_like(x)),
}
