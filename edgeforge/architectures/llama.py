"""Llama (Touvron et al., 2023, https://arxiv.org/abs/2302.13971). SmolLM2 and TinyLlama are Llamas of other sizes."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.architectures._decoder import Decoder, Neurons, Theta
from edgeforge.architectures._encoder import Epsilon
from edgeforge.architectures._fields import Depth, Width


class Llama(Decoder):
    """A decoder that says what follows each token. The defaults are those of SmolLM2-135M."""

    kind: Literal["llama"] = "llama"
    hidden_size: Width = Field(default=576, description="Width between blocks.")
    num_hidden_layers: Depth = Field(default=30, description="Number of blocks.")
    num_attention_heads: Width = Field(default=9, description="Query heads in each block.")
    num_key_value_heads: Width = Field(
        default=3, description="Key and value heads in each block; each serves a group of queries."
    )
    intermediate_size: Neurons = Field(default=1536, description="Width inside each block's feed-forward part.")
    rope_theta: Theta = Field(default=100000.0, description="Base of the rotary frequencies.")
    rms_norm_eps: Epsilon = Field(
        default=1e-5, description="What is added to mean squares before dividing by their root."
    )
    tie_word_embeddings: bool = Field(default=True, description="Whether the output layer is the embedding table.")
    attention_bias: bool = Field(default=False, description="Whether the attention's layers have biases.")

    config_class: ClassVar[str] = "LlamaConfig"
