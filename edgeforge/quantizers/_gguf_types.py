"""llama.cpp's types by the words users write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeforge.core.extras import require
from edgeforge.gguf_file import EXTRA, GgufFile, Tensor
from edgeforge.runtimes._llama.quantization import Recipe, planned_types

MIXES: Mapping[str, str] = {
    "q8_0": "q8_0",
    "q6_k": "q6_k",
    "q5_k_m": "q5_k",
    "q5_k_s": "q5_k",
    "q5_0": "q5_0",
    "q4_k_m": "q4_k",
    "q4_k_s": "q4_k",
    "q4_0": "q4_0",
    "iq4_nl": "iq4_nl",
    "iq4_xs": "iq4_xs",
    "q3_k_l": "q3_k",
    "q3_k_m": "q3_k",
    "q3_k_s": "q3_k",
    "iq3_m": "iq3_s",
    "iq3_s": "iq3_s",
    "q2_k": "q2_k",
}
"""A mix of llama.cpp -> the type that most of its tensors are of."""

BARRED = frozenset({"q4_1", "q5_1"})
"""Types that only llama.cpp's own mixes bring: they are never chosen here, for many published files lie on their grid,
on which a second rounding looks free."""


def block_of(word: str) -> tuple[int, int]:
    """How many weights of a row share a block of this type, and its bytes."""
    gguf = require("gguf", EXTRA)
    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[word.upper()]]
    return int(weights), int(size)


def mixed_with(floats: GgufFile, own: Mapping[str, str], recipe: Recipe) -> Recipe:
    """llama.cpp's mix, but for the tensors that have a type of their `own`."""
    if not own:
        return recipe
    planned = planned_types(floats, recipe)
    mixed = {name: word for name, word in planned.items() if is_quantizable(floats.tensors[name])}
    return replace(recipe, tensors={**mixed, **own})


def is_quantizable(tensor: Tensor) -> bool:
    """Whether llama.cpp quantizes such a tensor of a decoder: matrices, not norms and biases."""
    return len(tensor.shape) == 2 and tensor.name.endswith(".weight") and not tensor.name.endswith("_norm.weight")
