"""The tensors of a GGUF file against those of the torch model, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edgeforge import gguf_names
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.gguf_file import GgufFile
from edgeforge.models.operations import Trace
from edgeforge.verification import Check
from edgeforge.verification._layer_noise import LayerNoise, decibels, worst_first
from edgeforge.verification._rounded_weights import of_reference

FLOATS = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
"""What rounding to a type may change, as a share of the number."""
SMALLEST_HALF = 2.0**-25
"""Half the smallest number of float16: where it ends, rounding is no longer a share."""

GRIDS = {
    "Q8_0": (8, 32),
    "Q6_K": (6, 16),
    "Q5_K": (5, 32),
    "Q5_1": (5, 32),
    "Q5_0": (5, 32),
    "Q4_K": (4, 32),
    "Q4_1": (4, 32),
    "Q4_0": (4, 32),
    "IQ4_NL": (4, 32),
    "IQ4_XS": (4, 32),
    "Q3_K": (3, 16),
    "IQ3_S": (3, 32),
    "Q2_K": (2, 16),
}
"""Bits, and weights that share a scale. The K and IQ types have finer grids than this says, or coarser scales."""

SCALE_ROUNDING = 2.0**-11
"""Scales are float16, so that weights which lie on a grid already, as those of a model from a GGUF file do, may move by
this share all the same."""

CHUNK_VALUES = 1 << 22
"""Weights that are rounded at a time."""

MOST = 0.8
"""Share of a tensor that its error may be in any type; zeros would be off by 1."""

TENSOR_SLACK, ROW_SLACK = 2.0, 4.0
"""How many times as far from the float weight a tensor, and any row of it, may be than plain rounding to `GRIDS`:
llama.cpp spends precision on columns with large inputs at the expense of the others."""


def weight_checks(file: GgufFile, folder: Path, *, quantizer_rewrote: bool = False) -> list[Check]:
    """Every tensor is the model's: rounded to its float type, on its grid, or the very integers of a quantizer.

    `folder`: the float model where a quantizer rewrote the file, else the model whose numbers it holds.
    """
    exact, near = (
        "every tensor in floats is the model's, rounded",
        "every quantized tensor is as near as its type can be",
    )
    wrong: dict[str, str] = {}
    seen = set()
    for name, expected in expected_tensors(file, folder):
        tensor = file.tensors[name]
        check = exact if tensor.type in FLOATS or not quantizer_rewrote else near
        seen.add(check)
        if check not in wrong and (problem := _problem(file, name, expected, quantizer_rewrote)) is not None:
            wrong[check] = f"{name} ({tensor.type}): {problem}"
    return [Check(check, check not in wrong, wrong.get(check, "")) for check in (exact, near) if check in seen]


def rounding_checks(inputs: Mapping[str, Artifact]) -> list[Check]:
    """Integers that a quantizer of models chose are the nearest to the float weights; nothing where it chose none."""
    found, _ = of_reference(inputs["reference"].path, inputs["model"].path, Trace((), ()))
    return found


def layer_noise(file: GgufFile, inputs: Mapping[str, Artifact]) -> tuple[LayerNoise, ...]:
    """What each quantized tensor lost against the float model, by the model's names, the worst first."""
    found = []
    for name, expected in expected_tensors(file, inputs["model"].path):
        if file.tensors[name].type not in FLOATS:
            module = (gguf_names.to_hugging_face(name) or name).removesuffix(".weight")
            found.append(LayerNoise(module, decibels(expected, file.dequantized(name))))
    return worst_first(found)


def expected_tensors(file: GgufFile, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a torch model's folder by llama.cpp's name, float32, rows in llama.cpp's order."""
    from safetensors import safe_open

    from edgeforge.models.folder import weight_files

    size = int(file.said("attention.key_length"))
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                own = gguf_names.to_gguf(name)
                if own is None or own not in file.tensors:
                    continue  # a tied head; the promises say which tensors there must be
                values = tensors.get_tensor(name).float().numpy()
                if file.architecture in gguf_names.PAIRED and gguf_names.is_turned(name):
                    values = gguf_names.paired(values, size)
                yield own, values


def _problem(file: GgufFile, name: str, expected: np.ndarray, quantizer_rewrote: bool) -> str | None:
    """What is wrong with a tensor, or None."""
    kind = file.tensors[name].type
    try:
        found = file.dequantized(name)
    except ModelError as error:
        return error.what
    if found.shape != expected.shape:
        return f"its shape is {found.shape}, the model's {expected.shape}"
    if not np.isfinite(found).all():
        return "it holds NaN or Infinity"
    apart = np.abs(found - expected)
    if kind in FLOATS or not quantizer_rewrote:
        allowed = FLOATS.get(kind, 1e-6) * np.abs(expected) + (SMALLEST_HALF if kind == "F16" else 0.0)
        if (apart <= allowed).all():
            return None
        return f"{(apart > allowed).sum()} numbers are not the model's; the farthest is off by {apart.max():.3g}"
    return _off_the_grid(found - expected, expected, kind)


def _off_the_grid(error: np.ndarray, expected: np.ndarray, kind: str) -> str | None:
    """Whether a weight, or a row of it, is farther from the float one than rounding to its type explains."""
    if kind not in GRIDS:
        return f"nothing is known of the type {kind}"
    plain = _rounding_by_row(expected, kind)
    norm = max(float(np.linalg.norm(expected)), float(np.finfo(np.float32).tiny))
    by_row, norms = np.linalg.norm(error, axis=1), np.linalg.norm(expected, axis=1)
    # A type never does worse than zeros would; a row of hardly anything may become zeros.
    limits = np.minimum(ROW_SLACK * plain + SCALE_ROUNDING * norms, norms) + 1e-4 * norm / np.sqrt(len(norms))
    if len(worst := np.flatnonzero(by_row > limits)):
        row, share = int(worst[0]), by_row[worst[0]] / max(norms[worst[0]], np.finfo(np.float32).tiny)
        return f"the error of row {row} is {share:.1%} of it, more than rounding explains ({len(worst)} such rows)"
    total = float(np.linalg.norm(error))
    allowed = min(TENSOR_SLACK * float(np.linalg.norm(plain)) + SCALE_ROUNDING * norm, MOST * norm)
    if total > allowed:
        return f"its error is {total / norm:.1%} of it, where rounding explains {allowed / norm:.1%}"
    return None


def _rounding_by_row(weight: np.ndarray, kind: str) -> np.ndarray:
    """How much plain rounding changes each row (L2 norm), (rows,); some rows at a time, for the memory's sake."""
    step = max(1, CHUNK_VALUES // weight.shape[1])
    parts = [weight[start : start + step] for start in range(0, len(weight), step)]
    return np.concatenate([np.linalg.norm(_rounding(part, *GRIDS[kind]), axis=1) for part in parts])


def _rounding(weight: np.ndarray, bits: int, block: int) -> np.ndarray:
    """What plain rounding to a symmetric grid, with a scale for each block, changes; the shape of `weight`."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, -1, block)
    top = max(1, 2 ** (bits - 1) - 1)
    scales = np.abs(groups).max(axis=-1, keepdims=True) / top
    steps = np.round(groups / np.where(scales == 0, 1, scales))
    changed: np.ndarray = (steps * scales - groups).reshape(rows, columns)
    return changed
