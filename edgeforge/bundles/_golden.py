"""Recorded answers in a form that every app can read: one file of plain arrays, with offsets in edgeforge.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeforge.bundles._contract import Array, Golden, ImageInput, Output, TextInput
from edgeforge.bundles._source import AGAIN, Source
from edgeforge.bundles._tokenizer import golden_texts
from edgeforge.core.errors import ConfigurationError, ModelError
from edgeforge.verification._recheck import AGREEMENT, FLOAT_MOVES, QUANTIZED_MOVES

FILE = "golden.bin"
PIXELS = "pixels"
"""8-bit values, (samples, height, width, channels): what an image is after it was resized."""

EXACT = 1e-4
"""Of what normalised pixels may differ from recorded inputs: far less than one step of 8 bits."""

PROBABILITIES_MOVE = 0.05
"""What float16 on another unit may move a probability; `edgeforge verify` on a Mac allows as much."""


def write_golden(source: Source, taken: ImageInput | TextInput, given: Output, path: Path) -> Golden:
    """Write what `source` recorded and describe it.

    Raises ConfigurationError where nothing is recorded, ModelError where images are not of 8 bits.
    """
    golden = source.golden
    if golden is None:
        raise ConfigurationError(
            f"no answers of '{source.row.name}' are recorded, so the app could not test itself",
            where=str(source.run / "report.json"),
            remedy=AGAIN,
        )
    if given.meaning == "probabilities":
        outputs, limit, why = np.exp(golden.outputs), PROBABILITIES_MOVE, "probabilities, computed in float16"
    else:
        outputs = golden.outputs
        limit, why = _tolerance(source, golden.outputs, golden.float_outputs)
    arrays = _inputs(taken, golden.inputs, source) | {"outputs": outputs.astype(np.float32)}
    described = _write(arrays, path)
    is_text = isinstance(taken, TextInput) and taken.tokenizer is not None
    return Golden(
        file=path.name,
        samples=len(outputs),
        outputs=described.pop("outputs"),
        inputs=described,
        max_abs_error=limit,
        agreement=AGREEMENT,
        why=why,
        texts=golden_texts(source.folder, taken.max_length) if is_text and isinstance(taken, TextInput) else (),
    )


def _tolerance(source: Source, outputs: np.ndarray, floats: np.ndarray) -> tuple[float, str]:
    """As `edgeforge verify` allows on another machine."""
    limit = max(source.row.parity.tolerance or 0.0, FLOAT_MOVES * float(np.abs(outputs).max()))
    if not source.row.quantization:
        return limit, f"logits; another processor's float32 may move them by {FLOAT_MOVES:g} of the largest"
    limit += QUANTIZED_MOVES * float(np.abs(outputs - floats).max())
    return limit, "logits; integer kernels differ, and may move them as far as quantization did"


def _inputs(taken: ImageInput | TextInput, inputs: Mapping[str, np.ndarray], source: Source) -> dict[str, np.ndarray]:
    if isinstance(taken, TextInput):
        names = [name for name in (taken.ids, taken.mask) if name]
        return {name: inputs[name].astype(np.int32) for name in names}
    (values,) = inputs.values()
    return {PIXELS: pixels_of(values, taken, where=str(source.folder))}


def pixels_of(values: np.ndarray, taken: ImageInput, *, where: str) -> np.ndarray:
    """Normalised (N, C, H, W) -> uint8 (N, H, W, C). Raises ModelError where that loses anything."""
    mean, std = (np.asarray(one, dtype=np.float64)[:, None, None] for one in (taken.mean, taken.std))
    pixels = np.rint((values * std + mean) * 255).clip(0, 255).astype(np.uint8)
    pixels = pixels.transpose(0, 2, 3, 1)
    if np.abs(normalised(pixels, taken) - values).max() > EXACT:
        raise ModelError("the recorded inputs are no normalised 8-bit images", where=where)
    return pixels


def normalised(pixels: np.ndarray, taken: ImageInput) -> np.ndarray:
    """uint8 (N, H, W, C) -> float32 (N, C, H, W), to the bit as in training: value * 1/(255 std) + -mean/std."""
    mean, std = (np.asarray(one, dtype=np.float64)[:, None, None] for one in (taken.mean, taken.std))
    scale, shift = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    found: np.ndarray = pixels.transpose(0, 3, 1, 2).astype(np.float32) * scale + shift
    return found


def read_array(content: bytes, array: Array) -> np.ndarray:
    """One array of a golden file. Raises ValueError where the file ends before it does."""
    dtype = np.dtype(array.dtype).newbyteorder("<")
    return np.frombuffer(content, dtype, count=int(np.prod(array.shape)), offset=array.offset).reshape(array.shape)


def _write(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, Array]:
    described, content = {}, bytearray()
    for name, values in arrays.items():
        content += bytes(-len(content) % 4)  # some readers want numbers at multiples of their size
        described[name] = Array(offset=len(content), dtype=values.dtype.name, shape=values.shape)
        content += np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    path.write_bytes(content)
    return described
