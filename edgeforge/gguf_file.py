"""GGUF files: what stands in them, read without llama.cpp; tensors one at a time.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Versions 2 and 3, little-endian, are read.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require

if TYPE_CHECKING:
    import numpy as np

MODEL = "model.gguf"
EXTRA = "gguf"

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_AXES = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_AGAIN = "download or export the file again"


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies. `shape` is torch's, outermost axis first; `type` is ggml's word: ``F16``, ``Q4_0``."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int

    @property
    def count(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """A file's metadata and its tensors by name, in the file's order. Weights are read when asked for."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's word for the model family: ``llama``, ``qwen2``, ..."""
        return str(self.metadata.get("general.architecture", ""))

    def said(self, name: str, default: Any = None) -> Any:
        """An entry of the model family's own: ``block_count`` -> the value of ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def stored(self, name: str) -> np.ndarray:
        """A tensor's bytes as they are, uint8, shape (..., bytes of a row). Raises ModelError."""
        import numpy as np

        tensor = self._tensor(name)
        try:
            with self.path.open("rb") as stream:
                stream.seek(tensor.offset)
                # From the stream, not mapped: the pages of a mapped file count as memory of this process.
                content = np.fromfile(stream, dtype=np.uint8, count=tensor.size_bytes)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if content.size != tensor.size_bytes:
            raise _cut_short(self.path)
        return content.reshape(*tensor.shape[:-1], -1)

    def dequantized(self, name: str) -> np.ndarray:
        """A tensor multiplied out: float32, in torch's shape. Raises ModelError."""
        import numpy as np

        tensor = self._tensor(name)
        gguf = require("gguf", EXTRA)
        stored = self.stored(name)
        try:
            found = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[tensor.type])
        except NotImplementedError as error:
            raise ModelError(
                f"{name} is of type {tensor.type}, which cannot be multiplied out",
                where=str(self.path),
                remedy="use a file of another quantization",
            ) from error
        return np.ascontiguousarray(found, dtype=np.float32).reshape(tensor.shape)

    def types(self) -> Mapping[str, int]:
        """How many tensors there are of each type."""
        return dict(sorted(Counter(tensor.type for tensor in self.tensors.values()).items()))

    def bits_per_weight(self) -> float:
        """Bits that a weight takes on average, scales and all; metadata is not counted."""
        stored = sum(tensor.size_bytes for tensor in self.tensors.values())
        return 8 * stored / max(1, sum(tensor.count for tensor in self.tensors.values()))

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ModelError(f"the tensor {name} is missing", where=str(self.path), remedy=_AGAIN)
        return self.tensors[name]


def read(path: Path) -> GgufFile:
    """What a file says of itself. Raises ModelError where it is no GGUF, cut short, or of a kind that is not read."""
    if path.is_dir():
        raise ModelError("this is a folder", where=str(path), remedy="give the .gguf file")
    try:
        with path.open("rb") as stream:
            return _Header(stream, path).file()
    except FileNotFoundError as error:
        raise ModelError("there is no such file", where=str(path), remedy="give a .gguf file") from error
    except OSError as error:
        raise _unreadable(path, error) from error


class _Header:
    """Reads from the start of a file on, never more than is left of it."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.size = path.stat().st_size
        self.position = 0

    def file(self) -> GgufFile:
        if self.take(min(4, self.size)) != _MAGIC:
            raise self.problem("not a GGUF file", remedy="give a .gguf file")
        version = self.scalar("I")
        if version not in _VERSIONS:
            swapped = version & 0xFFFF == 0
            what = "big-endian" if swapped else f"of GGUF version {version}, which is not read"
            raise self.problem(f"it is {what}", remedy="convert it with llama.cpp of this year")
        tensor_count, entry_count = self.scalar("Q"), self.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            name = self.string()
            if name in metadata:
                raise self.problem(f"{name} is there twice")
            metadata[name] = self.value(self.scalar("I"))
        infos = [self.info() for _ in range(self.plausible(tensor_count, 24))]
        return GgufFile(self.path, metadata, self.located(infos, metadata.get("general.alignment", _ALIGNMENT)))

    # -- values

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise _cut_short(self.path)
        content = self.stream.read(count)
        if len(content) != count:
            raise _cut_short(self.path)
        self.position += count
        return content

    def scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        # A token may be a part of a character.
        return self.take(self.scalar("Q")).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY:
            raise self.problem(f"it holds a value of the unknown type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner == _STRING:
            return [self.string() for _ in range(self.plausible(count, 8))]
        if inner not in _SCALARS:
            raise self.problem(f"it holds an array of the type {inner}")
        width = struct.calcsize(f"<{_SCALARS[inner]}")
        return list(struct.unpack(f"<{count}{_SCALARS[inner]}", self.take(self.plausible(count, width) * width)))

    def plausible(self, count: int, least_bytes: int) -> int:
        """`count`, if so many things of at least so many bytes can still follow."""
        if count * least_bytes > self.size - self.position:
            raise _cut_short(self.path)
        return count

    # -- tensors

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self.string(), self.scalar("I")
        if not 1 <= axes <= _MAX_AXES:
            raise self.problem(f"the tensor {name} has {axes} axes")
        shape = tuple(self.scalar("Q") for _ in range(axes))[::-1]
        return name, shape, self.scalar("I"), self.scalar("Q")

    def located(self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: Any) -> dict[str, Tensor]:
        gguf = require("gguf", EXTRA)
        if not (isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0):
            raise self.problem(f"its alignment is {alignment!r}")
        start = -(-self.position // alignment) * alignment
        found: dict[str, Tensor] = {}
        for name, shape, number, offset in infos:
            try:
                kind = gguf.GGMLQuantizationType(number)
            except ValueError as error:
                raise self.problem(f"{name} is of the unknown type {number}") from error
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            if name in found or 0 in shape or shape[-1] % block:
                raise self.problem(f"{name} is there twice, or cannot have the shape {shape} in {kind.name}")
            size = math.prod(shape) // block * block_bytes
            if start + offset + size > self.size:
                raise _cut_short(self.path)
            found[name] = Tensor(name, shape, kind.name, start + offset, size)
        return found

    def problem(self, what: str, *, remedy: str = _AGAIN) -> ModelError:
        return ModelError(what, where=str(self.path), remedy=remedy)


def _cut_short(path: Path) -> ModelError:
    return ModelError("the file is cut short", where=str(path), remedy=_AGAIN)


def _unreadable(path: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the file cannot be read: {error.strerror}", where=str(path), remedy="check its permissions and the disk"
    )
