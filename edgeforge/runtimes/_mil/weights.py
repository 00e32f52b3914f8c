"""Arrays in weight.bin (MILBlob storage, version 2), mapped into memory and checked before they are used."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._mil.package import Package
from edgeforge.runtimes._mil.types import ElementType, decode

HEADER = struct.Struct("<II")
VERSION = 2
BLOB = struct.Struct("<IIQQQ")
"""In front of each array: sentinel, code of the type, size in bytes, place of the first byte, bits of padding."""

SENTINEL = 0xDEADBEEF
ALIGNMENT = 64


class Weights:
    """The files of weights of one package."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._files: dict[str, np.ndarray] = {}

    def read(self, stored: Any, element: ElementType, shape: tuple[int, ...]) -> torch.Tensor:
        """The array that a BlobFileValue points to. It shares its memory with the file where torch has its type.

        Raises ModelError where it is not whole or not of the type and size that the program says.
        """
        content = self._file(stored.fileName)
        try:
            return decode(self._bytes(content, stored.offset, element), element, shape)
        except ValueError as error:
            where = f"{self._package.path}: {stored.fileName}, byte {stored.offset}"
            raise ModelError(f"an array of weights is not whole: {error}", where=where) from error

    def _bytes(self, content: np.ndarray, offset: int, element: ElementType) -> np.ndarray:
        if offset + BLOB.size > content.size:
            raise ValueError("its description is behind the end of the file")
        sentinel, code, size, start, _ = BLOB.unpack(content[offset : offset + BLOB.size].tobytes())
        if sentinel != SENTINEL:
            raise ValueError("there is no description of an array")
        if code != element.blob:
            raise ValueError(f"its type has the code {code}, and {element.name} has {element.blob}")
        if start % ALIGNMENT:
            raise ValueError(f"it starts at byte {start}, which is no multiple of {ALIGNMENT}")
        if start + size > content.size:
            raise ValueError("it ends behind the end of the file")
        return content[start : start + size]

    def _file(self, name: str) -> np.ndarray:
        if name not in self._files:
            path = self._package.file(name)
            where = str(self._package.path)
            if path.stat().st_size < HEADER.size:
                raise ModelError(f"{name} is truncated", where=where)
            # Private pages: torch wants memory that may be written, and nothing written there reaches the file.
            content = np.memmap(path, np.uint8, mode="c")
            _, version = HEADER.unpack(content[: HEADER.size].tobytes())
            if version != VERSION:
                raise ModelError(f"{name} has version {version}, and only {VERSION} is known", where=where)
            self._files[name] = content
        return self._files[name]
