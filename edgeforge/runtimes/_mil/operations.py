"""Every operation that is known here, by the name it has in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from edgeforge.runtimes._mil import (
    constexpr,
    control,
    elementwise,
    gathering,
    linear,
    quantization,
    reduction,
    shape,
    state,
)


def classify(probabilities: Tensor, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    """(the most probable label, every label's probability)."""
    flat = probabilities.reshape(-1)
    if flat.numel() != len(classes):
        raise ValueError(f"there are {flat.numel()} probabilities for {len(classes)} labels")
    return classes[int(flat.argmax())], dict(zip(classes, flat.tolist(), strict=True))


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    **elementwise.OPERATIONS,
    **shape.OPERATIONS,
    **gathering.OPERATIONS,
    **reduction.OPERATIONS,
    **linear.OPERATIONS,
    **constexpr.OPERATIONS,
    **quantization.OPERATIONS,
    **state.OPERATIONS,
    **control.OPERATIONS,
    "classify": classify,
}
