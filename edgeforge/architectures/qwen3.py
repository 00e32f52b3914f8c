"""Qwen3 (Yang et al., 2025, https://arxiv.org/abs/2505.09388): a Llama that normalises each head's queries and keys."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.architectures._decoder import Decoder, HeadSize, Neurons, Theta
from edgeforge.architectures._encoder import Epsilon
from edgeforge.architectures._fields import Depth, Width


class Qwen3(Decoder):
    """A decoder that says what follows each token. The defaults are those of Qwen3-0.6B."""

    kind: Literal["qwen3"] = "qwen3"
    hidden_size: Width = Field(default=1024, description="Width between blocks.")
    num_hidden_layers: Depth = Field(default=28, description="Number of blocks.")
    num_attention_heads: Width = Field(default=16, description="Query heads in each block.")
    num_key_value_heads: Width = Field(
        default=8, description="Key and value heads in each block; each serves a group of queries."
    )
    head_dim: HeadSize | None = Field(
        default=128, description="Width of a head; null: hidden_size / num_attention_heads."
    )
    intermediate_size: Neurons = Field(default=3072, description="Width inside each block's feed-forward part.")
    rope_theta: Theta = Field(default=1000000.0, description="Base of the rotary frequencies.")
    rms_norm_eps: Epsilon = Field(
        default=1e-6, description="What is added to mean squares before dividing by their root."
    )
    tie_word_embeddings: bool = Field(default=True, description="Whether the output layer is the embedding table.")
    attention_bias: bool = Field(default=False, description="Whether the attention's layers have biases.")

    config_class: ClassVar[str] = "Qwen3Config"
