"""Does a program fit together, and does it fit this machine? Asked when it is opened, and of every result."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from math import prod
from typing import Any

from torch import Tensor

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.runtimes._mil.operations import OPERATIONS
from edgeforge.runtimes._mil.program import Declared, Function, Operation


def check_result(value: Any, declared: Declared, operation: Operation) -> None:
    """What came out is of the kind and size that the file says: a file that is wired wrongly often shows here."""
    if not isinstance(value, Tensor):
        return
    fits = len(value.shape) == len(declared.shape) and all(
        wanted is None or size == wanted for size, wanted in zip(value.shape, declared.shape, strict=True)
    )
    kind = declared.element is not None and value.is_floating_point() == declared.element.is_float
    if not fits or not kind:
        raise ModelError(
            f"'{operation.type}' gives {_said(value.dtype, value.shape)}, and the file declares "
            f"{_said(declared.element and declared.element.held, declared.shape)}",
            where=operation.where,
        )


def _said(kind: Any, sizes: Iterable[int | None]) -> str:
    return f"{str(kind).removeprefix('torch.')} ({', '.join('?' if size is None else str(size) for size in sizes)})"


def check_operations(function: Function) -> None:
    operations = list(function.body.all_operations())
    unknown = [operation for operation in operations if operation.type not in OPERATIONS]
    if unknown:
        first, types = unknown[0], sorted({operation.type for operation in unknown})
        more = f"; unknown in all: {', '.join(types)}" if len(types) > 1 else ""
        output = first.outputs[0].name if first.outputs else "none"
        raise ModelError(
            f"the operation '{first.type}' (output '{output}') is not known here{more}",
            where=first.where,
            remedy="check this package on a Mac",
        )
    for operation in operations:
        parameters = inspect.signature(OPERATIONS[operation.type])
        try:
            parameters.bind(*([None] if operation.blocks else []), **operation.arguments)
        except TypeError as error:
            raise ModelError(f"'{operation.type}' has other arguments: {error}", where=operation.where) from error


def check_memory(function: Function) -> None:
    """Weights are held as float32, except those that are so in the file, which stay there."""
    import psutil

    stored = sum(_bytes(c.declared) for c in function.body.constants.values() if _name(c.declared) == "fp16")
    made = [op for op in function.body.operations if op.type.startswith("constexpr_")]
    needed = stored + sum(_bytes(value) for operation in made for value in operation.outputs)
    needed += sum(_bytes(value) for value in function.states)
    free = psutil.virtual_memory().available
    if needed > free:
        raise EnvironmentProblem(
            f"its weights take {needed / 1e9:.1f} GB of memory here, and {free / 1e9:.1f} GB are free",
            where=function.where,
            remedy="evaluate it on a machine with more memory",
        )


def _name(declared: Declared) -> str | None:
    return declared.element.name if declared.element else None


def _bytes(declared: Declared) -> int:
    """Of the array as float32."""
    return 4 * prod(size or 1 for size in declared.shape)
