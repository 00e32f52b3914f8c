"""What llama.cpp and Hugging Face call the same things in decoders, and the order of rows that differs between them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ARCHITECTURES: Mapping[str, str] = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Hugging Face's `model_type` -> llama.cpp's architecture, for models whose layers are all alike."""

NON_UNIFORM = "deci"
"""The architecture of `llama` models whose widths differ from layer to layer."""

MODEL_TYPES: Mapping[str, str] = {"llama": "llama", NON_UNIFORM: "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture -> Hugging Face's `model_type`."""

PAIRED = frozenset({"llama", NON_UNIFORM})
"""Architectures whose rotary embedding turns neighbours (0, 1), (2, 3), ... of a head; Hugging Face's turns element i
with i + half, so that the rows of queries and keys stand in another order."""

ROPE_FACTORS = "rope_freqs.weight"
"""What divides the rotary frequencies of Llama 3.1 and later: computed from the config, and in no Hugging Face file."""

EMBEDDING, OUTPUT = "token_embd", "output"

_WHOLE = {"model.embed_tokens": EMBEDDING, "model.norm": "output_norm", "lm_head": OUTPUT}
_IN_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE_BACK = {there: here for here, there in _WHOLE.items()}
_IN_BLOCK_BACK = {there: here for here, there in _IN_BLOCK.items()}


def to_gguf(name: str) -> str | None:
    """``model.layers.3.mlp.up_proj.weight`` -> ``blk.3.ffn_up.weight``; None for a name that no decoder here has."""
    module, _, part = name.rpartition(".")
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module):
        own = _IN_BLOCK.get(match[2])
        return own and f"blk.{match[1]}.{own}.{part}"
    whole = _WHOLE.get(module)
    return whole and f"{whole}.{part}"


def to_hugging_face(name: str) -> str | None:
    """The way back."""
    module, _, part = name.rpartition(".")
    if match := re.fullmatch(r"blk\.(\d+)\.(.+)", module):
        own = _IN_BLOCK_BACK.get(match[2])
        return own and f"model.layers.{match[1]}.{own}.{part}"
    whole = _WHOLE_BACK.get(module)
    return whole and f"{whole}.{part}"


def is_turned(name: str) -> bool:
    """Whether a tensor, by its Hugging Face name, holds rows that the rotary embedding turns."""
    return name.rpartition(".")[0].endswith((".q_proj", ".k_proj"))


def paired(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Rows (heads * head_size, ...) of queries or keys from Hugging Face's order into that of `PAIRED`."""
    heads = rows.reshape(-1, 2, head_size // 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)


def unpaired(rows: np.ndarray, head_size: int) -> np.ndarray:
    """The way back."""
    heads = rows.reshape(-1, head_size // 2, 2, *rows.shape[1:])
    return heads.swapaxes(1, 2).reshape(rows.shape)
