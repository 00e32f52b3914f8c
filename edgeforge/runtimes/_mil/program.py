"""A program as plain objects: functions, blocks, operations, constants. What the file says, checked for sense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._mil.package import Package
from edgeforge.runtimes._mil.types import ELEMENTS, STRING, ElementType, decode, held
from edgeforge.runtimes._mil.weights import Weights

Proto = Any  # a message of coremltools' protobuf classes


@dataclass(frozen=True)
class Declared:
    """What the file says of a value. `element` is None for lists, dictionaries and texts; None in a shape: any size."""

    name: str
    element: ElementType | None
    shape: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A value in the file; `read` gives a tensor, a text, or a list of texts or integers."""

    declared: Declared
    read: Callable[[], Any]


@dataclass(frozen=True)
class Block:
    """Operations in order. `constants` are the values written in the file that they read by name."""

    inputs: tuple[Declared, ...]
    constants: Mapping[str, Constant]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]

    def all_operations(self) -> Iterator[Operation]:
        """The operations of this block and of the blocks inside it."""
        for operation in self.operations:
            yield operation
            for inner in operation.blocks:
                yield from inner.all_operations()


@dataclass(frozen=True)
class Operation:
    """`arguments` are names of values by parameter: one name, or several where the parameter takes a tuple."""

    type: str
    arguments: Mapping[str, str | tuple[str, ...]]
    outputs: tuple[Declared, ...]
    blocks: tuple[Block, ...]
    where: str

    @property
    def reads(self) -> Iterator[str]:
        """The names of the values it reads, those of its blocks not included."""
        for names in self.arguments.values():
            yield from (names,) if isinstance(names, str) else names


@dataclass(frozen=True)
class Function:
    """`states` are kept between calls; `inputs` are given anew for each."""

    inputs: tuple[Declared, ...]
    states: tuple[Declared, ...]
    body: Block
    where: str = field(default="")


TUPLES = frozenset({"values", "loop_vars"})
"""Parameters that take several values, even where the file names only one."""


def read_function(package: Package, name: str) -> Function:
    """Read one function of a package's program. Raises ModelError where the file makes no sense."""
    program = package.spec.mlProgram
    if name not in program.functions:
        raise ModelError(f"it has no function '{name}'", where=str(package.path))
    function = program.functions[name]
    if function.opset not in function.block_specializations:
        raise ModelError(f"function '{name}' has no block for its {function.opset}", where=str(package.path))
    reader = _Reader(package)
    values = [(value, value.type.WhichOneof("type") == "stateType") for value in function.inputs]
    where = f"{package.path}: {name}"
    return Function(
        inputs=tuple(reader.declared(value.name, value.type, where) for value, state in values if not state),
        states=tuple(
            reader.declared(value.name, value.type.stateType.wrappedType, where) for value, state in values if state
        ),
        body=reader.block(function.block_specializations[function.opset], where),
        where=where,
    )


class _Reader:
    def __init__(self, package: Package) -> None:
        self._weights = Weights(package)

    def block(self, block: Proto, where: str) -> Block:
        constants: dict[str, Constant] = {}
        operations = []
        for index, operation in enumerate(block.operations, 1):
            place = _place(operation, where, f"operation {index} of {len(block.operations)}")
            if operation.type == "const":
                constant = self._const(operation, place)
                constants[constant.declared.name] = constant
            else:
                operations.append(self._operation(operation, place, constants))
        inputs = tuple(self.declared(value.name, value.type, where) for value in block.inputs)
        return Block(inputs, constants, tuple(operations), tuple(block.outputs))

    def declared(self, name: str, type_: Proto, where: str) -> Declared:
        if type_.WhichOneof("type") != "tensorType" or type_.tensorType.dataType == STRING:
            return Declared(name, None)
        tensor = type_.tensorType
        if tensor.dataType not in ELEMENTS:
            raise ModelError(f"'{name}' has an element type that is not known here ({tensor.dataType})", where=where)
        sizes = (
            int(dimension.constant.size) if dimension.WhichOneof("dimension") == "constant" else None
            for dimension in tensor.dimensions
        )
        return Declared(name, ELEMENTS[tensor.dataType], tuple(sizes))

    def _operation(self, operation: Proto, where: str, constants: dict[str, Constant]) -> Operation:
        arguments: dict[str, str | tuple[str, ...]] = {}
        for parameter, argument in operation.inputs.items():
            names = tuple(
                self._name(binding, f"{where}, {parameter} {index}", constants)
                for index, binding in enumerate(argument.arguments)
            )
            if parameter not in TUPLES and len(names) != 1:
                raise ModelError(f"{parameter} has {len(names)} values", where=where)
            arguments[parameter] = names if parameter in TUPLES else names[0]
        for parameter, value in operation.attributes.items():
            if parameter != "name":  # operations before iOS 18 keep compressed weights here
                constant = self._constant(f"{where}, {parameter}", value, where)
                constants[constant.declared.name] = constant
                arguments[parameter] = constant.declared.name
        return Operation(
            type=operation.type,
            arguments=arguments,
            outputs=tuple(self.declared(value.name, value.type, where) for value in operation.outputs),
            blocks=tuple(self.block(block, f"{where}, block {i}") for i, block in enumerate(operation.blocks, 1)),
            where=where,
        )

    def _name(self, binding: Proto, unnamed: str, constants: dict[str, Constant]) -> str:
        """The name of a bound value; one written in place gets `unnamed`."""
        if binding.WhichOneof("binding") == "name":
            return str(binding.name)
        constants[unnamed] = self._constant(unnamed, binding.value, unnamed)
        return unnamed

    def _const(self, operation: Proto, where: str) -> Constant:
        if len(operation.outputs) != 1 or "val" not in operation.attributes:
            raise ModelError("a constant without a value", where=where)
        return self._constant(operation.outputs[0].name, operation.attributes["val"], where)

    def _constant(self, name: str, value: Proto, where: str) -> Constant:
        declared = self.declared(name, value.type, where)
        return Constant(declared, lambda: self._value(value, declared, where))

    def _value(self, value: Proto, declared: Declared, where: str) -> Any:
        """Raises ModelError where what is stored is not what is declared."""
        sizes = tuple(size for size in declared.shape if size is not None)
        if len(sizes) != len(declared.shape):
            raise ModelError(f"the constant '{declared.name}' has no fixed size", where=where)
        try:
            if value.WhichOneof("value") == "blobFileValue":
                if declared.element is None or declared.element.blob is None:
                    raise ValueError("its type is never kept in a file of weights")
                return self._weights.read(value.blobFileValue, declared.element, sizes)
            immediate = value.immediateValue
            if immediate.WhichOneof("value") == "list":
                return [_scalar(one) for one in immediate.list.values]
            return _immediate(immediate.tensor, declared.element, sizes)
        except (ValueError, TypeError, IndexError) as error:
            raise ModelError(f"the constant '{declared.name}' cannot be read: {error}", where=where) from error


def _place(operation: Proto, where: str, position: str) -> str:
    """Where an operation stands, for error messages."""
    output = f" ({operation.outputs[0].name})" if operation.outputs else ""
    return f"{where}, {position}{output}"


def _scalar(value: Proto) -> str | int:
    kind = value.immediateValue.tensor.WhichOneof("value")
    (found,) = getattr(value.immediateValue.tensor, str(kind)).values
    return str(found) if kind == "strings" else int(found)


def _immediate(tensor: Proto, element: ElementType | None, shape: tuple[int, ...]) -> Any:
    kind = tensor.WhichOneof("value")
    if kind == "strings":
        texts = [str(text) for text in tensor.strings.values]
        return texts if shape else texts[0]
    if element is None or kind is None:
        raise ValueError("it holds nothing that is known here")
    values = getattr(tensor, kind).values
    if kind == "bytes":
        return decode(np.frombuffer(bytearray(values), np.uint8), element, shape)
    array = np.asarray(values, dtype=bool if element.held == torch.bool else element.stored)
    return held(array, element).reshape(shape)
