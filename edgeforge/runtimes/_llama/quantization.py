"""llama.cpp's quantization of a GGUF file into another, tensor by tensor."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge import gguf_file
from edgeforge.core.errors import EdgeForgeError, EnvironmentProblem, ModelError
from edgeforge.core.extras import require
from edgeforge.gguf_file import GgufFile
from edgeforge.runtimes._llama.library import library, listening
from edgeforge.runtimes._llama.model import usable_cores

if TYPE_CHECKING:
    import numpy as np

_PLANNED = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*size = [^(]*(?:\((\w+)\))?$")
"""``[   8/ 272] blk.0.ffn_down.weight - [1536, 576, 1, 1], type = f16, size = 1.69 MiB -> 0.53 MiB (q4_1)``"""

_FALLEN_BACK = re.compile(r"warning: (\S+) +- ncols +\d+ not divisible by .*-> falling back to")
"""``warning: token_embd.weight - ncols 576 not divisible by 256 (required for type q6_K) -> falling back to q8_0``"""


@dataclass(frozen=True)
class Recipe:
    """What to make of a file.

    `mix` is llama.cpp's word for a whole file (``q4_k_m``), which decides every tensor that is not in `tensors`
    (name -> type, ``q5_0``). `importance`: tensor name -> float32, shape (columns,), what an error there weighs.
    `again`: take quantized tensors too, and round them once more.
    """

    mix: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    importance: Mapping[str, np.ndarray] = field(default_factory=dict)
    again: bool = False


def quantize(source: Path, target: Path, recipe: Recipe) -> GgufFile:
    """Write `target`, whole or not at all, and say what is in it.

    Tensors whose rows the chosen type does not divide get another one, as llama.cpp decides. Raises ModelError with
    llama.cpp's own words, EnvironmentProblem where the disk refuses.
    """
    partial = target.with_name(f"{target.name}.partial")
    try:
        _run(source, partial, recipe)
        expected = gguf_file.read(source)
        found = _whole(partial, expected)
        partial.replace(target)
    except OSError as error:
        raise _refused(partial, str(error.strerror)) from error
    finally:
        partial.unlink(missing_ok=True)
    return GgufFile(target, found.metadata, found.tensors)


def planned_types(source: GgufFile, recipe: Recipe) -> dict[str, str]:
    """Tensor -> the type (``q5_0``) it would get, for every tensor; nothing is quantized. Raises ModelError.

    llama.cpp counts the layers it gives more bits only among tensors without a type of their own, so that such a type
    moves the others': whoever wants its mix but for some tensors names them all.
    """
    said = _run(source.path, source.path, recipe, dry=True)
    planned = {match[1]: match[2] for line in said.splitlines() if (match := _PLANNED.search(line))}
    if planned.keys() != source.tensors.keys():
        raise ModelError("llama.cpp does not say which types it would choose", where=str(source.path))
    return {name: (word or source.tensors[name].type).lower() for name, word in planned.items()}


def fallen_back(source: GgufFile, recipe: Recipe) -> frozenset[str]:
    """The tensors whose rows the type that llama.cpp wants does not divide; nothing is quantized. Raises ModelError.

    A mix of types in blocks of 32 has them as well: a table of embeddings that is the output's too is to be q6_k in all
    of them but q8_0.
    """
    said = _run(source.path, source.path, recipe, dry=True)
    return frozenset(match[1] for line in said.splitlines() if (match := _FALLEN_BACK.search(line)))


def _run(source: Path, target: Path, recipe: Recipe, *, dry: bool = False) -> str:
    """Quantize, or with `dry` only plan it; what llama.cpp says meanwhile."""
    llama = library()
    settings = llama.llama_model_quantize_default_params()
    settings.nthread = usable_cores()
    settings.dry_run = dry
    settings.allow_requantize = recipe.again
    settings.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{recipe.mix.upper()}")
    kept: list[Any] = []  # the library reads these while it works
    if recipe.importance:
        settings.imatrix = _importance(llama, recipe.importance, kept)
    if recipe.tensors:
        settings.tt_overrides = _overrides(llama, recipe.tensors)
    with listening() as log:
        status = llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if status == 0:
        return log.text
    reason = log.problem()
    if "iostream" in reason or "ios_base" in reason or "basic_ios" in reason:
        raise _refused(target, reason)
    raise ModelError(
        f"llama.cpp cannot quantize it to {recipe.mix}: {reason}", where=str(source), remedy="choose another type"
    )


def _importance(llama: Any, importance: Mapping[str, np.ndarray], kept: list[Any]) -> Any:
    import numpy as np

    entries = (llama.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        values = np.ascontiguousarray(values, dtype=np.float32)
        kept.append(values)
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def _overrides(llama: Any, tensors: Mapping[str, str]) -> Any:
    """Regular expressions that match one name each."""
    gguf = require("gguf", gguf_file.EXTRA)
    entries = (llama.llama_model_tensor_override * (len(tensors) + 1))()
    for entry, (name, word) in zip(entries, tensors.items(), strict=False):
        entry.pattern = f"^{re.escape(name)}$".encode()
        entry.type = int(gguf.GGMLQuantizationType[word.upper()])
    return entries


def _whole(partial: Path, expected: GgufFile) -> GgufFile:
    """What was written. llama.cpp overlooks some failures of the disk: a file of zeros, or one cut short."""
    try:
        found = gguf_file.read(partial)
    except EdgeForgeError as error:
        raise _refused(partial, error.what) from error
    shapes = {name: tensor.shape for name, tensor in expected.tensors.items()}
    if {name: tensor.shape for name, tensor in found.tensors.items()} != shapes:
        raise _refused(partial, "tensors are missing")
    return found


def _refused(partial: Path, reason: str) -> EnvironmentProblem:
    free = shutil.disk_usage(partial.parent).free
    return EnvironmentProblem(
        f"the quantized file cannot be written: {reason}",
        where=str(partial.parent),
        remedy=f"make room on the disk ({free / 1e6:,.0f} MB are free), and run again",
    )
