"""The blocks of a transformer: where heads, feed-forward neurons and blocks begin and end, and taking some out.

ViT, BERT, RoBERTa, ELECTRA and DistilBERT by the names that transformers 4 and 5 give their layers, and the decoders
that are wired as Llama is (Mistral, Qwen2, Qwen3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import ModelError
from edgeforge.criteria import Units
from edgeforge.models.surgery import keep_channels

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_LISTS = ("encoder.layer", "transformer.layer", "layers")


@dataclass(frozen=True)
class _Names:
    """Paths inside a block: what divides its widths into heads, and the linear layers."""

    attention: str
    query: str
    key: str
    value: str
    output: str
    up: str = "intermediate.dense"
    down: str = "output.dense"
    gate: str | None = None


_LAYOUTS = (
    # BERT, RoBERTa, ELECTRA
    _Names(
        "attention.self", "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"
    ),
    # ViT of transformers 4
    _Names(
        "attention.attention",
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "attention.output.dense",
    ),
    # ViT of transformers 5
    _Names(
        "attention",
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        "mlp.fc1",
        "mlp.fc2",
    ),
    # DistilBERT
    _Names(
        "attention",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
    ),
    # Llama, Mistral, Qwen2, Qwen3
    _Names(
        "self_attn",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "mlp.gate_proj",
    ),
)


@dataclass(frozen=True)
class Block:
    """One block. `attention` holds the head counts that its forward pass reads; `gate`, where there is one, scales what
    `up` puts out, neuron by neuron.

    Query heads come in groups of equally many, each of which shares one key/value head; in most encoders a group is a
    single head.
    """

    name: str
    module: nn.Module
    attention: Any
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    up: nn.Linear
    down: nn.Linear
    gate: nn.Linear | None = None

    @property
    def heads(self) -> int:
        """Query heads it has now."""
        for name in ("num_attention_heads", "n_heads"):
            if hasattr(self.attention, name):
                return int(getattr(self.attention, name))
        return self.query.out_features // int(self.attention.head_dim)

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.query.out_features // self.heads

    @property
    def groups(self) -> int:
        """Key/value heads it has now."""
        return self.key.out_features // self.head_size

    @property
    def neurons(self) -> int:
        """Its feed-forward width."""
        return self.up.out_features

    def group_units(self) -> Units:
        """Its groups of heads: rows of query, key and value, columns of the output projection."""
        sides = ((self.query, True), (self.key, True), (self.value, True), (self.output, False))
        return Units(f"{self.name}.heads", "heads", self.groups, sides, self.output, self.module)

    def query_units(self) -> Units:
        """Its query heads, without the keys and values: rows of query, columns of the output projection."""
        sides = ((self.query, True), (self.output, False))
        return Units(f"{self.name}.queries", "heads", self.heads, sides, self.output, self.module)

    def neuron_units(self) -> Units:
        """Its neurons: rows of the first feed-forward layer and its gate, columns of the second."""
        sides = tuple((layer, True) for layer in self._widening())
        return Units(
            f"{self.name}.neurons", "neurons", self.neurons, (*sides, (self.down, False)), self.down, self.module
        )

    def as_unit(self) -> Units:
        """All of it."""
        sides = tuple((layer, True) for layer in self.module.modules())
        return Units(self.name, "blocks", 1, sides, self.module, self.module)

    def keep_groups(self, kept: Sequence[int]) -> None:
        """Leave only these key/value heads and their query heads, in place; each keeps its size."""
        groups, heads = self.groups, self.heads
        for layer in (self.query, self.key, self.value):
            keep_channels(layer, _runs(kept, layer.out_features // groups), outputs=True)
        keep_channels(self.output, _runs(kept, self.output.in_features // groups), outputs=False)
        self._count_heads(len(kept) * (heads // groups))

    def keep_queries(self, kept: Sequence[int]) -> None:
        """Leave only these query heads, equally many of each group, in place; each keeps its size."""
        channels = _runs(kept, self.head_size)
        keep_channels(self.query, channels, outputs=True)
        keep_channels(self.output, channels, outputs=False)
        self._count_heads(len(kept))

    def keep_neurons(self, kept: Sequence[int]) -> None:
        """Leave only these neurons, in place."""
        for layer in self._widening():
            keep_channels(layer, kept, outputs=True)
        keep_channels(self.down, kept, outputs=False)
        for module in self.module.modules():
            if hasattr(module, "intermediate_size"):
                module.intermediate_size = len(kept)  # type: ignore[assignment]

    def _widening(self) -> tuple[nn.Linear, ...]:
        """The layers whose outputs are its neurons."""
        return (self.up,) if self.gate is None else (self.gate, self.up)

    def _count_heads(self, heads: int) -> None:
        """Set every number by which the attention counts its heads."""
        channels = self.query.out_features
        groups = self.key.out_features // (channels // heads)
        for names, value in (
            (("num_attention_heads", "num_heads", "n_heads"), heads),
            (("all_head_size", "dim"), channels),
            (("num_key_value_groups",), heads // groups),
        ):
            for name in names:
                if hasattr(self.attention, name):
                    setattr(self.attention, name, value)


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    """The module that holds the blocks. Raises ModelError where the model is of no family above."""
    from torch import nn

    for path in _LISTS:
        found = _at(model.base_model, path)
        if isinstance(found, nn.ModuleList) and len(found) > 0 and _names_of(found[0]) is not None:
            return found
    raise ModelError(
        f"heads, neurons and blocks of a {type(model).__name__} are not known",
        remedy="use {kind: channels} here; these structures are for BERT, DistilBERT, RoBERTa, ELECTRA and ViT, and "
        "for Llama, Mistral, Qwen2 and Qwen3",
    )


def blocks(model: PreTrainedModel) -> list[Block]:
    """The model's blocks in order. Raises ModelError as `block_list` does."""
    paths = {module: name for name, module in model.named_modules()}
    return [_block(paths[module], module) for module in block_list(model)]


def _block(name: str, module: nn.Module) -> Block:
    names = _names_of(module)
    if names is None:
        raise ModelError(f"{name} is not wired like the blocks before it", remedy="use {kind: channels} here")
    fields = {role: _at(module, path) for role, path in vars(names).items() if path is not None}
    return Block(name=name, module=module, **fields)


def _names_of(block: nn.Module) -> _Names | None:
    from torch import nn

    for names in _LAYOUTS:
        found = {role: _at(block, path) for role, path in vars(names).items() if path is not None}
        if found.pop("attention") is not None and all(isinstance(layer, nn.Linear) for layer in found.values()):
            return names
    return None


def _runs(kept: Sequence[int], size: int) -> list[int]:
    """The channels of these units, each of which is a run of `size`."""
    return [unit * size + offset for unit in kept for offset in range(size)]


def _at(module: nn.Module, path: str) -> Any:
    """The module at a dotted path, or None."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
