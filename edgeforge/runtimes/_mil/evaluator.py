"""Runs a function of a program. Numbers are float32 throughout, and on demand rounded as float16 hardware would."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._mil.checks import check_memory, check_operations, check_result
from edgeforge.runtimes._mil.operations import OPERATIONS
from edgeforge.runtimes._mil.program import Block, Constant, Declared, Function, Operation
from edgeforge.runtimes._mil.state import State

Precision = Literal["float32", "float16"]

SMALLEST_NORMAL = 2.0**-14
"""Of float16."""

_FAILURES = (RuntimeError, IndexError, ValueError, TypeError, KeyError, OverflowError, ZeroDivisionError)


@dataclass(frozen=True)
class _Step:
    operation: Operation
    compute: Callable[..., Any]
    released: tuple[str, ...]
    """Values that nothing after this step reads."""


@dataclass(frozen=True)
class _Body:
    """A block ready to run."""

    inputs: tuple[str, ...]
    known: Mapping[str, Any]
    steps: tuple[_Step, ...]
    outputs: tuple[str, ...]


class Evaluator:
    """One function, its constants computed. `precision` "float16" rounds the result of every operation to float16.

    In a program that declares both float16 and float32 results only the float16 ones are rounded: its author chose
    what stays in float32. A program without any float16 is rounded everywhere, as if it had been converted.
    """

    def __init__(self, function: Function, *, precision: Precision = "float32") -> None:
        """Raises ModelError for an operation that is not known here, EnvironmentProblem where memory is too small."""
        self.function = function
        check_operations(function)
        check_memory(function)
        results = (value for operation in function.body.all_operations() for value in operation.outputs)
        halves = any(value.element is not None and value.element.name == "fp16" for value in results)
        self._rounded = None if precision == "float32" else "fp16" if halves else "fp32"
        with torch.inference_mode():
            arguments = [value.name for value in (*function.inputs, *function.states)]
            self._body = self._prepare(function.body, frozenset(arguments))

    def new_states(self) -> dict[str, State]:
        """Zeros for every state of the function."""
        return {
            declared.name: State(self._number(torch.zeros(_sizes(declared), dtype=_element(declared)), declared))
            for declared in self.function.states
        }

    def run(self, inputs: Mapping[str, Tensor], states: Mapping[str, State]) -> dict[str, Any]:
        """The function's outputs by name: tensors, and for classifiers a label and a dictionary.

        Floats come as float32. `states` are changed. Raises ModelError where an operation does not run.
        """
        with torch.inference_mode():
            given = {value.name: self._number(inputs[value.name], value) for value in self.function.inputs}
            results = self._run(self._body, {**given, **states}, self._body.outputs)
        return dict(zip(self._body.outputs, results, strict=True))

    def values(self, inputs: Mapping[str, Tensor], states: Mapping[str, State]) -> dict[str, Any]:
        """The constants that are read, the inputs, and every value that is computed, except in inner blocks."""
        with torch.inference_mode():
            environment = {**self._body.known, **states}
            environment |= {value.name: self._number(inputs[value.name], value) for value in self.function.inputs}
            for step in self._body.steps:
                environment |= {declared.name: value for declared, value in self._apply(step, environment)}
        return environment

    def nudged(self, kept: Container[str] = ()) -> Evaluator:
        """The same function with every single floating-point number that operations read one step of float16 further,
        but for those named in `kept`, and for those that float16 rounds nothing of: whole numbers, powers of two.

        How far its results move says how much rounding such numbers to float16 matters. Not in inner blocks.
        """
        other = copy.copy(self)
        known = {name: value if name in kept else _nudged(value) for name, value in self._body.known.items()}
        other._body = replace(self._body, known=known)
        return other

    # -- before the first run

    def _prepare(self, block: Block, above: frozenset[str]) -> _Body:
        """Bind what the block's operations read, and compute at once what depends on constants alone.

        `above`: names of values that are there when the block starts, its own inputs not included.
        """
        constants = _Constants(block)
        there = {value.name for value in block.inputs} | above
        later: list[Operation] = []
        for operation in block.operations:
            for name in operation.reads:
                if name not in there and name not in constants:
                    raise ModelError(f"it reads '{name}', which nothing before it makes", where=operation.where)
            if _foldable(operation) and all(name in constants for name in operation.reads):
                constants.add(self._folded(operation, constants))
                constants.release(operation.reads)
            else:
                later.append(operation)
                there |= {value.name for value in operation.outputs}
        needed = {name for operation in later for name in operation.reads} | set(block.outputs)
        for name in block.outputs:
            if name not in there and name not in constants:
                raise ModelError(f"its output '{name}' is made by nothing", where=self.function.where)
        inner = frozenset(there | constants.names())
        needed |= {name for operation in later for block in operation.blocks for name in _read_inside(block)}
        known = {name: self._constant(constants, name) for name in needed if name in constants}
        return _Body(
            inputs=tuple(value.name for value in block.inputs),
            known=known,
            steps=tuple(self._steps(later, block.outputs, inner)),
            outputs=block.outputs,
        )

    def _steps(self, operations: list[Operation], outputs: Iterable[str], above: frozenset[str]) -> Iterator[_Step]:
        last = {name: index for index, operation in enumerate(operations) for name in _read(operation)}
        made = {value.name for operation in operations for value in operation.outputs}
        kept = set(outputs)
        for index, operation in enumerate(operations):
            compute = OPERATIONS[operation.type]
            if operation.blocks:
                compute = partial(compute, [self._prepare(block, above) for block in operation.blocks])
            ended = {name for name in _read(operation) if last[name] == index and name in made and name not in kept}
            yield _Step(operation, compute, tuple(ended))

    def _folded(self, operation: Operation, constants: _Constants) -> dict[str, tuple[Any, Declared]]:
        """What an operation on constants gives, as it will be stored."""
        compressed = operation.type.startswith("constexpr_")
        step = _Step(operation, OPERATIONS[operation.type], ())
        read = {name: constants[name][0] if compressed else self._constant(constants, name) for name in operation.reads}
        results = _compute(step, read)
        if not compressed:
            results = tuple(
                self._number(value, declared) for value, declared in zip(results, operation.outputs, strict=True)
            )
        for value, declared in zip(results, operation.outputs, strict=True):
            check_result(value, declared, operation)
        return {declared.name: (value, declared) for value, declared in zip(results, operation.outputs, strict=True)}

    def _constant(self, constants: _Constants, name: str) -> Any:
        return self._number(*constants[name])

    # -- a run

    def _number(self, value: Any, declared: Declared) -> Any:
        """A value as the evaluator computes with it: floats as float32, rounded where that is asked for."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        rounded = declared.element is not None and declared.element.name == self._rounded
        return (value.half() if rounded else value).float()

    def _run(self, body: _Body, environment: dict[str, Any], outputs: Iterable[str]) -> tuple[Any, ...]:
        environment = {**body.known, **environment}
        for step in body.steps:
            for declared, value in self._apply(step, environment):
                environment[declared.name] = value
            for name in step.released:
                del environment[name]
        return tuple(environment[name] for name in outputs)

    def _apply(self, step: _Step, environment: Mapping[str, Any]) -> list[tuple[Declared, Any]]:
        operation = step.operation
        if operation.blocks:
            bodies: list[_Body] = step.compute.args[0]  # type: ignore[attr-defined]
            run = [partial(self._run_inner, body, environment) for body in bodies]
            step = _Step(operation, partial(OPERATIONS[operation.type], run), ())
        found = []
        for value, declared in zip(_compute(step, environment), operation.outputs, strict=True):
            check_result(value, declared, operation)
            found.append((declared, self._number(value, declared)))
        return found

    def _run_inner(self, body: _Body, environment: Mapping[str, Any], *values: Any) -> tuple[Any, ...]:
        return self._run(body, {**environment, **dict(zip(body.inputs, values, strict=True))}, body.outputs)


class _Constants:
    """The constants of a block: those in the file, read when first asked for, and those computed of them."""

    def __init__(self, block: Block) -> None:
        self._stored: dict[str, Constant] = dict(block.constants)
        self._read: dict[str, tuple[Any, Declared]] = {}
        self._uses = Counter(name for operation in block.operations for name in _read(operation))
        self._uses.update(block.outputs)

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._read

    def __getitem__(self, name: str) -> tuple[Any, Declared]:
        """The value in the type that the file has."""
        if name not in self._read:
            constant = self._stored[name]
            self._read[name] = (constant.read(), constant.declared)
        return self._read[name]

    def names(self) -> set[str]:
        return {*self._stored, *self._read}

    def add(self, values: Mapping[str, tuple[Any, Declared]]) -> None:
        self._read |= values

    def release(self, names: Iterable[str]) -> None:
        """Forget what one more reader is done with and nobody else will read: compressed weights are large."""
        for name in names:
            self._uses[name] -= 1
            if self._uses[name] <= 0:
                self._read.pop(name, None)
                self._stored.pop(name, None)


def _compute(step: _Step, environment: Mapping[str, Any]) -> tuple[Any, ...]:
    operation = step.operation
    arguments = {
        parameter: environment[names] if isinstance(names, str) else [environment[name] for name in names]
        for parameter, names in operation.arguments.items()
    }
    try:
        result = step.compute(**arguments)
    except _FAILURES as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"'{operation.type}' does not run: {reason}", where=operation.where) from error
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(operation.outputs):
        reason = f"'{operation.type}' gives {len(results)} values, and the file names {len(operation.outputs)}"
        raise ModelError(reason, where=operation.where)
    return results


def _nudged(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() != 1:
        return value
    # Whole numbers and powers of two are what their author wrote, unless they are next to nothing.
    mantissa = math.frexp(abs(float(value)))[0]
    if float(value).is_integer() or (mantissa == 0.5 and abs(float(value)) >= SMALLEST_NORMAL):
        return value
    half = value.half()
    above = torch.nextafter(half, torch.full_like(half, torch.inf))
    return above.float() if bool(above.isfinite().all()) else value


def _sizes(declared: Declared) -> list[int]:
    """Raises ModelError where a size is open."""
    if any(size is None for size in declared.shape):
        raise ModelError(f"the state '{declared.name}' has no fixed size")
    return [int(size or 0) for size in declared.shape]


def _element(declared: Declared) -> torch.dtype:
    return declared.element.held if declared.element else torch.float32


def _foldable(operation: Operation) -> bool:
    return not operation.blocks and operation.type not in ("read_state", "write_state")


def _read(operation: Operation) -> Iterator[str]:
    """What an operation reads, itself or in its blocks."""
    yield from operation.reads
    for block in operation.blocks:
        yield from _read_inside(block)


def _read_inside(block: Block) -> Iterator[str]:
    """What the operations of a block read, and what it gives back."""
    for operation in block.operations:
        yield from _read(operation)
    yield from block.outputs
