"""The element types of the format: how wide they are in files, and which torch type holds them here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class ElementType:
    """`name` is what operations such as ``cast`` call it; `stored` the numpy type of whole bytes in a file."""

    name: str
    bits: int
    held: torch.dtype
    stored: str | None = None
    blob: int | None = None
    """Its code in weight.bin (MILBlob's BlobDataType)."""

    @property
    def is_float(self) -> bool:
        return self.held.is_floating_point


BOOL, STRING, INT8, INT16, INT32 = 1, 2, 21, 22, 23

ELEMENTS: dict[int, ElementType] = {
    BOOL: ElementType("bool", 8, torch.bool, "<u1"),
    10: ElementType("fp16", 16, torch.float16, "<f2", 1),
    11: ElementType("fp32", 32, torch.float32, "<f4", 2),
    12: ElementType("fp64", 64, torch.float64, "<f8"),
    INT8: ElementType("int8", 8, torch.int8, "<i1", 4),
    INT16: ElementType("int16", 16, torch.int16, "<i2", 6),
    INT32: ElementType("int32", 32, torch.int32, "<i4", 14),
    24: ElementType("int64", 64, torch.int64, "<i8"),
    25: ElementType("int4", 4, torch.int8, None, 8),
    31: ElementType("uint8", 8, torch.uint8, "<u1", 3),
    # torch computes little with these two unsigned types, so the next wider signed one holds them.
    32: ElementType("uint16", 16, torch.int32, "<u2", 7),
    33: ElementType("uint32", 32, torch.int64, "<u4", 15),
    35: ElementType("uint4", 4, torch.uint8, None, 11),
    36: ElementType("uint2", 2, torch.uint8, None, 10),
    37: ElementType("uint1", 1, torch.uint8, None, 9),
    38: ElementType("uint6", 6, torch.uint8, None, 13),
    39: ElementType("uint3", 3, torch.uint8, None, 12),
}
"""By the numbers of MIL.proto's DataType. bfloat16, 8-bit floats and uint64 are left out: no operation takes them."""

BY_NAME: dict[str, ElementType] = {element.name: element for element in ELEMENTS.values()}


def decode(content: np.ndarray, element: ElementType, shape: tuple[int, ...]) -> torch.Tensor:
    """Bytes (uint8, one-dimensional) -> the array they hold; without a copy where torch has the stored type.

    Raises ValueError where the number of bytes is not the shape's.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if element.stored is None:
        return torch.from_numpy(unpack(content, element.bits, count, signed=element.name == "int4")).reshape(shape)
    array = content.view(np.dtype(element.stored))
    if array.size != count:
        raise ValueError(f"{array.size} numbers are there, and {count} should be")
    return held(array, element).reshape(shape)


def held(array: np.ndarray, element: ElementType) -> torch.Tensor:
    """A numpy array as the tensor of the type that holds `element` here."""
    if element.stored in ("<u2", "<u4"):
        array = array.astype(np.int64)
    return torch.from_numpy(array).to(element.held)


def unpack(content: np.ndarray, bits: int, count: int, *, signed: bool = False) -> np.ndarray:
    """`count` numbers of `bits` bits each, packed from the least significant bit on; uint8 or (signed) int8.

    Raises ValueError where there are too few bytes or more than padding needs.
    """
    if content.size != -(-count * bits // 8):
        raise ValueError(f"{content.size} bytes are there, and {count} numbers of {bits} bits should be")
    found: np.ndarray
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        found = ((content[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    else:
        split = np.unpackbits(content, count=count * bits, bitorder="little").reshape(count, bits)
        found = np.packbits(split, axis=1, bitorder="little").reshape(-1)
    top = 1 << (bits - 1)
    return (found ^ top).astype(np.int8) - np.int8(top) if signed else found.astype(np.uint8)
