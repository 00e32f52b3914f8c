"""Mistral (Jiang et al., 2023, https://arxiv.org/abs/2310.06825): a Llama whose attention may see a window only."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.architectures._decoder import Decoder, Neurons, Positions, Theta
from edgeforge.architectures._encoder import Epsilon
from edgeforge.architectures._fields import Depth, Width

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from edgeforge.core.task import Interface


class Mistral(Decoder):
    """A decoder that says what follows each token. The defaults are those of Mistral 7B v0.3: give smaller ones."""

    kind: Literal["mistral"] = "mistral"
    hidden_size: Width = Field(default=4096, description="Width between blocks.")
    num_hidden_layers: Depth = Field(default=32, description="Number of blocks.")
    num_attention_heads: Width = Field(default=32, description="Query heads in each block.")
    num_key_value_heads: Width = Field(
        default=8, description="Key and value heads in each block; each serves a group of queries."
    )
    intermediate_size: Neurons = Field(default=14336, description="Width inside each block's feed-forward part.")
    rope_theta: Theta = Field(default=1000000.0, description="Base of the rotary frequencies.")
    rms_norm_eps: Epsilon = Field(
        default=1e-5, description="What is added to mean squares before dividing by their root."
    )
    tie_word_embeddings: bool = Field(default=False, description="Whether the output layer is the embedding table.")
    sliding_window: Positions | None = Field(
        default=None, description="How many tokens back each token sees; absent: all of them."
    )

    config_class: ClassVar[str] = "MistralConfig"

    def config(self, interface: Interface) -> PretrainedConfig:
        config = super().config(interface)
        config.sliding_window = self.sliding_window  # the library's own default is a window
        return config
