"""Opens a Core ML package off the Mac: the specification, and the program with its weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.core.errors import VerificationError
from edgeforge.models.quantized_weights import LinearWeight, PalettizedWeight, QuantizedWeight
from edgeforge.runtimes import coreml as runtime

# Each blob in weight.bin is described by 64 bytes: sentinel, type, size and place of its data (MILBlob, version 2).
SENTINEL = 0xDEADBEEF
BLOB = struct.Struct("<IIQQ")
WEIGHTS_PATH = "@model_path/weights/weight.bin"

PyMIL = Any  # coremltools has no types: its programs, functions, operations and variables


@dataclass(frozen=True)
class Package:
    """`spec` is the protobuf; `function` its main function as coremltools' PyMIL."""

    spec: Any
    function: PyMIL


def open_package(package: Path) -> Package:
    """Load a package without changing it, which opening it by coremltools does. Raises VerificationError."""
    coremltools = runtime.load_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load as load_program

    try:
        _check_manifest(json.loads((package / runtime.MANIFEST).read_text(encoding="utf-8")))
        spec = coremltools.utils.load_spec(str(package / runtime.MODEL_FILE))
        _check_blobs(spec, package / runtime.WEIGHTS_FILE)
        program = load_program(spec, spec.specificationVersion, str(package / runtime.WEIGHTS_FOLDER))
        return Package(spec, program.functions["main"])
    except VerificationError:
        raise
    except Exception as error:  # a damaged file meets a parser that trusts what it reads: anything may come
        raise VerificationError(f"cannot be read: {type(error).__name__}: {error}", where=str(package)) from error


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """The manifest leads to the model and to its weights."""
    items = manifest["itemInfoEntries"]
    paths = {f"Data/{item['path']}" for item in items.values()}
    root = f"Data/{items[manifest['rootModelIdentifier']]['path']}"
    if root != runtime.MODEL_FILE or paths != {runtime.MODEL_FILE, runtime.WEIGHTS_FOLDER}:
        raise VerificationError(f"{runtime.MANIFEST} does not name the model and its weights")


def _check_blobs(spec: Any, weights: Path) -> None:
    """Every value kept in weight.bin lies inside it and has its type's size; coremltools reads past the end."""
    whole = weights.stat().st_size
    with weights.open("rb") as stream:  # the descriptions alone: there may be gigabytes of weights
        for name, value in _stored_values(spec):
            start = value.blobFileValue.offset
            if value.blobFileValue.fileName != WEIGHTS_PATH or start + BLOB.size > whole:
                raise VerificationError(f"{name} is not in weight.bin", where=str(weights))
            stream.seek(start)
            sentinel, _, size, data = BLOB.unpack(stream.read(BLOB.size))
            if sentinel != SENTINEL or data + size > whole or size != _bytes_of(value.type.tensorType):
                raise VerificationError(f"{name} is not whole in weight.bin", where=str(weights))


def _stored_values(spec: Any) -> Iterator[tuple[str, Any]]:
    main = spec.mlProgram.functions["main"]
    for operation in main.block_specializations[main.opset].operations:
        name = operation.outputs[0].name if operation.outputs else operation.type
        bindings = [binding.value for argument in operation.inputs.values() for binding in argument.arguments]
        for value in [*operation.attributes.values(), *bindings]:
            if value.WhichOneof("value") == "blobFileValue":
                yield name, value


def _bytes_of(tensor: Any) -> int:
    from coremltools.converters.mil.mil import types

    bits = int(types.PROTO_TO_BUILTIN_TYPE[tensor.dataType].get_bitwidth())
    elements = prod(int(dimension.constant.size) for dimension in tensor.dimensions)
    return -(-bits * elements // 8)


def constants(operation: PyMIL) -> Mapping[str, np.ndarray | QuantizedWeight]:
    """The floating-point constants of more than one number that an operation reads, by argument; gamma before beta.

    What coremltools adds to say a factor and a shift as a batch normalization (mean 0, variance 1) is left out.
    Raises VerificationError for a compression that no exporter here writes.
    """
    found: dict[str, np.ndarray | QuantizedWeight] = {}
    for argument in sorted(operation.inputs, key=lambda name: name not in ("gamma", "beta")):
        variables = operation.inputs[argument]
        for variable in variables if isinstance(variables, list | tuple) else [variables]:
            if (value := _constant(variable)) is not None:
                found[argument if variable is variables else f"{argument} {variable.name}"] = value
    neutral = {"mean": 0, "variance": 1} if operation.op_type == "batch_norm" else {}
    if neutral and all(name in found and bool(np.all(found[name] == number)) for name, number in neutral.items()):
        return {name: value for name, value in found.items() if name not in neutral}
    return found


def _constant(variable: PyMIL) -> np.ndarray | QuantizedWeight | None:
    if variable is None:
        return None
    if variable.op is not None and variable.op.op_type.startswith("constexpr"):
        return stored_weight(variable)
    value = variable.val
    return value if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 1 else None


def stored_weight(variable: PyMIL) -> np.ndarray | QuantizedWeight | None:
    """The numbers behind a weight: an array, integers and scales, indices and palettes; None where it is computed.

    Raises VerificationError for a compression that no exporter here writes.
    """
    operation = variable.op
    if operation is None or not operation.op_type.startswith("const"):
        return None
    if operation.op_type == "const":
        return np.asarray(variable.val)
    inputs = {name: value.val for name, value in operation.inputs.items() if value is not None}
    if operation.op_type == "constexpr_blockwise_shift_scale" and inputs.keys() == {"data", "scale"}:
        bits = operation.inputs["data"].dtype.get_bitwidth()
        return LinearWeight(bits, inputs["data"].astype(np.int8), inputs["scale"])
    if operation.op_type == "constexpr_lut_to_dense" and inputs.keys() == {"indices", "lut"}:
        bits = operation.inputs["indices"].dtype.get_bitwidth()
        palettes = inputs["lut"].reshape(-1, inputs["lut"].shape[-2] * inputs["lut"].shape[-1])
        return PalettizedWeight(bits, inputs["indices"].astype(np.uint8), palettes)
    raise VerificationError(f"{variable.name} is compressed by {operation.op_type} with {', '.join(inputs)}")
