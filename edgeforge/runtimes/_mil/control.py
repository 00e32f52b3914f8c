"""Operations that run blocks of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

RunBlock = Callable[..., tuple[Any, ...]]
"""Runs one block of the operation on values for its inputs, and gives its outputs."""


def cond(blocks: Sequence[RunBlock], pred: Tensor) -> tuple[Any, ...]:
    """The first block where `pred` holds, else the second."""
    return blocks[0 if bool(pred) else 1]()


def while_loop(blocks: Sequence[RunBlock], loop_vars: Sequence[Any]) -> tuple[Any, ...]:
    """The second block again and again, as long as the first one holds for its values."""
    condition, body = blocks
    values = tuple(loop_vars)
    while bool(condition(*values)[0]):
        values = body(*values)
    return values


OPERATIONS: Mapping[str, Callable[..., Any]] = {"cond": cond, "while_loop": while_loop}
