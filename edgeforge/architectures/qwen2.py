"""Qwen2 and Qwen2.5 (Yang et al., 2024, https://arxiv.org/abs/2407.10671): a Llama with biases on queries, keys and
values.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.architectures._decoder import Decoder, Neurons, Theta
from edgeforge.architectures._encoder import Epsilon
from edgeforge.architectures._fields import Depth, Width


class Qwen2(Decoder):
    """A decoder that says what follows each token. The defaults are those of Qwen2.5-0.5B."""

    kind: Literal["qwen2"] = "qwen2"
    hidden_size: Width = Field(default=896, description="Width between blocks.")
    num_hidden_layers: Depth = Field(default=24, description="Number of blocks.")
    num_attention_heads: Width = Field(default=14, description="Query heads in each block.")
    num_key_value_heads: Width = Field(
        default=2, description="Key and value heads in each block; each serves a group of queries."
    )
    intermediate_size: Neurons = Field(default=4864, description="Width inside each block's feed-forward part.")
    rope_theta: Theta = Field(default=1000000.0, description="Base of the rotary frequencies.")
    rms_norm_eps: Epsilon = Field(
        default=1e-6, description="What is added to mean squares before dividing by their root."
    )
    tie_word_embeddings: bool = Field(default=True, description="Whether the output layer is the embedding table.")

    config_class: ClassVar[str] = "Qwen2Config"
