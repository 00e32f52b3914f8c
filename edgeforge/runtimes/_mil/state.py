"""Memory that a program keeps between calls, such as a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass
class State:
    """What one state holds now. Tensors are never changed in place, so whoever read the old one keeps it."""

    value: Tensor


def write_state(input: State, data: Tensor) -> tuple[()]:
    if data.shape != input.value.shape:
        raise ValueError(f"a state of shape {tuple(input.value.shape)} is to become {tuple(data.shape)}")
    input.value = data
    return ()


OPERATIONS: Mapping[str, Callable[..., Any]] = {"read_state": lambda input: input.value, "write_state": write_state}
