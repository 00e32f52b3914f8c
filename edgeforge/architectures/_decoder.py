"""What the decoders of the Llama family share: their fields, the sizes that go together, the names of their layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from edgeforge.architectures import Architecture
from edgeforge.architectures._encoder import POSITIONS_DESCRIPTION, Epsilon, text_fields
from edgeforge.architectures._fields import Depth, Width, scale_width
from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    from typing import Self

    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface

Neurons = Annotated[int, Field(ge=1, le=2**17)]
Positions = Annotated[int, Field(ge=1, le=2**21)]
HeadSize = Annotated[int, Field(ge=2, le=512, multiple_of=2)]
Theta = Annotated[float, Field(gt=1, le=1e10)]
RopeScaling = dict[str, str | int | float | bool]

BLOCK = 32
"""Weights that share a scale in most quantized formats; a width that was a multiple of it stays one."""

_AXES: Mapping[str, tuple[str | None, ...]] = {
    "embed_tokens": (None, "hidden"),
    "lm_head": (None, "hidden"),
    "norm": ("hidden",),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
    "q_proj": ("heads", "hidden"),
    "k_proj": ("key_value_heads", "hidden"),
    "v_proj": ("key_value_heads", "hidden"),
    "o_proj": ("hidden", "heads"),
    "q_norm": (None,),
    "k_norm": (None,),
    "gate_proj": ("neurons", "hidden"),
    "up_proj": ("neurons", "hidden"),
    "down_proj": ("hidden", "neurons"),
}


class Decoder(Architecture):
    """Base of the decoders: root-mean-square norms, rotary positions, grouped queries, gated feed-forward parts."""

    hidden_size: Width = Field(description="Width between blocks.")
    num_hidden_layers: Depth = Field(description="Number of blocks.")
    num_attention_heads: Width = Field(description="Query heads in each block.")
    num_key_value_heads: Width = Field(description="Key and value heads in each block; each serves a group of queries.")
    head_dim: HeadSize | None = Field(
        default=None, description="Width of a head; absent: hidden_size / num_attention_heads."
    )
    intermediate_size: Neurons = Field(description="Width inside each block's feed-forward part.")
    max_position_embeddings: Positions | None = Field(default=None, description=POSITIONS_DESCRIPTION)
    rope_theta: Theta = Field(description="Base of the rotary frequencies.")
    rope_scaling: RopeScaling | None = Field(
        default=None, description="How rotary positions are stretched, as a Hugging Face config says it; absent: not."
    )
    rms_norm_eps: Epsilon = Field(description="What is added to mean squares before dividing by their root.")
    tie_word_embeddings: bool = Field(description="Whether the output layer is the embedding table.")

    depths_field: ClassVar[str] = "num_hidden_layers"
    config_class: ClassVar[str]
    """The config of this family in ``transformers``."""
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.architectures._decoder",
        "edgeforge.architectures._encoder",
        "edgeforge.architectures._fields",
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}")
        if self.head_dim is None and self.hidden_size % (2 * heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not make {heads} heads of an even width; say the `head_dim`"
            )
        return self

    def config(self, interface: Interface) -> PretrainedConfig:
        import transformers

        fields = self.model_dump(mode="json", exclude={"kind", "max_position_embeddings"})
        given = text_fields(interface, self.max_position_embeddings)
        for name in ("id2label", "label2id"):
            del given[name]
        # The library's own ids are those of another tokenizer.
        ids = {"bos_token_id": None, "eos_token_id": interface.text.end_id}
        said = {name: value for name, value in fields.items() if value is not None}
        return getattr(transformers, self.config_class)(**said, **given, **ids)

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        theta, scaling = rotary(config)
        values = {name: getattr(config, name, None) for name in cls.model_fields if name != "kind"}
        values |= {"rope_theta": theta, "rope_scaling": scaling}
        try:
            return cls.model_validate({"kind": config.model_type, **values})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in problem["loc"])
            raise ModelError(
                f"{place} is {problem['input']!r}: {problem['msg']}",
                where=f"a {config.model_type} config",
                remedy="use a model within these limits, see `edgeforge explain " + str(config.model_type) + "`",
            ) from error

    def scaled(self, multiple: float) -> Self:
        groups = scale_width(self.num_key_value_heads, multiple)
        return self.model_copy(
            update={
                "hidden_size": _scaled(self.hidden_size, multiple),
                "num_key_value_heads": groups,
                "num_attention_heads": scale_width(self.num_attention_heads, multiple, divisor=groups),
                "head_dim": self.head_dim or self.hidden_size // self.num_attention_heads,
                "intermediate_size": _scaled(self.intermediate_size, multiple),
            }
        )

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        config = copy.deepcopy(model.config)
        layers = model.base_model.layers
        attention = layers[0].self_attn
        config.vocab_size, config.hidden_size = model.get_input_embeddings().weight.shape
        config.num_hidden_layers = len(layers)
        config.head_dim = attention.head_dim
        config.num_attention_heads = attention.q_proj.out_features // attention.head_dim
        config.num_key_value_heads = attention.k_proj.out_features // attention.head_dim
        config.intermediate_size = layers[0].mlp.up_proj.out_features
        if getattr(config, "layer_types", None):  # one entry for each block
            config.layer_types = [getattr(layer, "attention_type", "full_attention") for layer in layers]
        return config

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        return [model.base_model.layers]

    @classmethod
    def axes(cls, config: PretrainedConfig) -> Mapping[str, tuple[str | None, ...]]:
        return _AXES

    @classmethod
    def prepare(cls, model: PreTrainedModel) -> None:
        # Padding is masked anyway, and mostly another use of the token that ends a text, which has to be learnt.
        model.get_input_embeddings().padding_idx = None


def rotary(config: PretrainedConfig) -> tuple[float, RopeScaling | None]:
    """Base of the rotary frequencies, and how positions are stretched, whichever transformers wrote the config."""
    said: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    theta = said.pop("rope_theta", None) or getattr(config, "rope_theta", None) or 10000.0
    kind = said.pop("type", None)
    said.setdefault("rope_type", kind or "default")
    return float(theta), None if said["rope_type"] == "default" else said


def _scaled(width: int, multiple: float) -> int:
    return scale_width(width, multiple, divisor=BLOCK if width % BLOCK == 0 else 2)
