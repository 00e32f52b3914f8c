"""Writing a GGUF file tensor by tensor, and the numbers in it: floats, and blocks of a quantizer's own integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge import gguf_file
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require
from edgeforge.models.quantized_weights import LinearWeight, QuantizedWeight

if TYPE_CHECKING:
    import numpy as np

BLOCK = 32
BLOCK_TYPES = {4: "Q4_0", 8: "Q8_0"}
"""Bits of a symmetric weight -> the type with the same integers: `BLOCK` of them share a float16 scale."""

LARGEST_F16 = 65504.0

_ANOTHER_FORMAT = "export to onnx or coreml, or quantize in symmetric blocks of 32"


@dataclass(frozen=True)
class Stored:
    """A tensor to be written: `type` is ggml's word, `shape` torch's, `values` gives its numbers when it is due."""

    type: str
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]


def write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> int:
    """Write a file; returns its size in bytes. Its name appears once it is whole; one tensor is in memory at a time.

    Raises EnvironmentProblem where the disk refuses, and whatever `Stored.values` raises.
    """
    gguf = require("gguf", gguf_file.EXTRA)
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    for key, value in metadata.items():
        _add(gguf, writer, key, value)
    sizes = {name: _size(gguf, tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(name, tensor.shape, _float32(), sizes[name], raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            values = tensor.values()
            assert values.nbytes == sizes[name], (name, values.nbytes, sizes[name])
            writer.write_tensor_data(values)
        writer.flush()
        writer.close()
        partial.replace(path)
    except OSError as error:
        raise EnvironmentProblem(
            f"the file cannot be written: {error.strerror}", where=str(path), remedy="is there room on the disk?"
        ) from error
    finally:
        _close(writer)
        partial.unlink(missing_ok=True)
    return path.stat().st_size


def _close(writer: Any) -> None:
    """Let go of the file, whole or not."""
    for stream in writer.fout or ():
        stream.close()


def _float32() -> np.dtype[Any]:
    import numpy as np

    return np.dtype(np.float32)


def _size(gguf: Any, tensor: Stored) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    count = 1
    for width in tensor.shape:
        count *= width
    return int(count // block * block_bytes)


def _add(gguf: Any, writer: Any, key: str, value: Any) -> None:
    """One entry, in the types that llama.cpp's own converter uses."""
    kinds = gguf.GGUFValueType
    of = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
    if isinstance(value, list):
        writer.add_key_value(key, value, kinds.ARRAY, sub_type={**of, int: kinds.INT32}[type(value[0])])
    else:
        writer.add_key_value(key, value, of[type(value)])


# -- numbers


def floats(values: np.ndarray, kind: str, *, name: str) -> np.ndarray:
    """float32 numbers as ``F32``, ``F16`` or ``BF16``. Raises ModelError for one that the type has not."""
    import numpy as np

    gguf = require("gguf", gguf_file.EXTRA)
    if not np.isfinite(values).all():
        raise ModelError(f"{name} holds values that are not numbers", remedy="train it again from a sound checkpoint")
    if kind == "F16" and np.abs(values).max(initial=0.0) > LARGEST_F16:
        raise ModelError(
            f"{name} holds {np.abs(values).max():.6g}, and float16 ends at {LARGEST_F16:.0f}",
            remedy="set the exporter's `type: bf16`, or f32",
        )
    return gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])  # type: ignore[no-any-return]


def block_type(weight: QuantizedWeight, *, name: str) -> str:
    """The type that says a quantizer's integers as they are. Raises ModelError where none does."""
    size = weight.block_size if isinstance(weight, LinearWeight) else None
    whole = isinstance(weight, LinearWeight) and len(weight.shape) == 2 and weight.shape[1] % BLOCK == 0
    if not whole or (size is not None and size % BLOCK) or weight.bits not in BLOCK_TYPES:
        raise ModelError(f"GGUF has no type for how {name} was quantized", remedy=_ANOTHER_FORMAT)
    return BLOCK_TYPES[weight.bits]


def blocks(weight: LinearWeight) -> np.ndarray:
    """The same integers and scales in ggml's blocks: uint8, (rows, bytes of a row).

    Q8_0: a float16 scale and 32 int8. Q4_0: a scale and 16 bytes, each with element i in its low half and element
    i + 16 in its high one, 8 added so that they are not negative.
    """
    import numpy as np

    rows, columns = weight.shape
    integers = weight.integers.reshape(rows, columns // BLOCK, BLOCK)
    scales = np.repeat(weight.scales, columns // BLOCK // weight.scales.shape[1], axis=1)
    head = np.ascontiguousarray(scales.astype("<f2")).reshape(rows, -1, 1).view(np.uint8)
    body: np.ndarray
    if weight.bits == 8:
        body = integers.view(np.uint8)
    else:
        shifted = (integers + np.int8(8)).astype(np.uint8)
        body = shifted[..., : BLOCK // 2] | (shifted[..., BLOCK // 2 :] << 4)
    packed: np.ndarray = np.concatenate([head, body], axis=-1).reshape(rows, -1)
    return packed
