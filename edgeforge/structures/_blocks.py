"""The blocks of a transformer encoder: where heads, feed-forward neurons and blocks begin and end, and taking some out.

ViT, BERT, RoBERTa, ELECTRA and DistilBERT, by the names that transformers 4 and 5 give their layers.
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
)


@dataclass(frozen=True)
class Block:
    """One block. `attention` holds the head counts that its forward pass reads."""

    name: str
    module: nn.Module
    attention: Any
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    up: nn.Linear
    down: nn.Linear

    @property
    def heads(self) -> int:
        """Attention heads it has now."""
        return int(getattr(self.attention, "num_attention_heads", None) or self.attention.n_heads)

    @property
    def neurons(self) -> int:
        """Its feed-forward width."""
        return self.up.out_features

    def head_units(self) -> Units:
        """Its heads: rows of query, key and value, columns of the output projection."""
        sides = ((self.query, True), (self.key, True), (self.value, True), (self.output, False))
        return Units(f"{self.name}.heads", "heads", self.heads, sides, self.output)

    def neuron_units(self) -> Units:
        """Its neurons: rows of the first feed-forward layer, columns of the second."""
        return Units(f"{self.name}.neurons", "neurons", self.neurons, ((self.up, True), (self.down, False)), self.down)

    def as_unit(self) -> Units:
        """All of it."""
        sides = tuple((layer, True) for layer in self.module.modules())
        return Units(self.name, "blocks", 1, sides, self.module)

    def keep_heads(self, kept: Sequence[int]) -> None:
        """Leave only these heads, in place; each keeps its size."""
        size = self.query.out_features // self.heads
        channels = [head * size + offset for head in kept for offset in range(size)]
        for layer in (self.query, self.key, self.value):
            keep_channels(layer, channels, outputs=True)
        keep_channels(self.output, channels, outputs=False)
        for names, value in (
            (("num_attention_heads", "num_heads", "n_heads"), len(kept)),
            (("all_head_size", "dim"), len(channels)),
        ):
            for name in names:
                if hasattr(self.attention, name):
                    setattr(self.attention, name, value)

    def keep_neurons(self, kept: Sequence[int]) -> None:
        """Leave only these neurons, in place."""
        keep_channels(self.up, kept, outputs=True)
        keep_channels(self.down, kept, outputs=False)


def block_list(model: PreTrainedModel) -> nn.ModuleList:
    """The module that holds the blocks. Raises ModelError where the model is no encoder of a family above."""
    from torch import nn

    for path in _LISTS:
        found = _at(model.base_model, path)
        if isinstance(found, nn.ModuleList) and len(found) > 0 and _names_of(found[0]) is not None:
            return found
    raise ModelError(
        f"heads, neurons and blocks of a {type(model).__name__} are not known",
        remedy="use {kind: channels} here; these structures are for BERT, DistilBERT, RoBERTa, ELECTRA and ViT",
    )


def blocks(model: PreTrainedModel) -> list[Block]:
    """The model's blocks in order. Raises ModelError as `block_list` does."""
    paths = {module: name for name, module in model.named_modules()}
    return [_block(paths[module], module) for module in block_list(model)]


def _block(name: str, module: nn.Module) -> Block:
    names = _names_of(module)
    if names is None:
        raise ModelError(f"{name} is not wired like the blocks before it", remedy="use {kind: channels} here")
    fields = {role: _at(module, path) for role, path in vars(names).items()}
    return Block(name=name, module=module, **fields)


def _names_of(block: nn.Module) -> _Names | None:
    from torch import nn

    for names in _LAYOUTS:
        found = {role: _at(block, path) for role, path in vars(names).items()}
        if found.pop("attention") is not None and all(isinstance(layer, nn.Linear) for layer in found.values()):
            return names
    return None


def _at(module: nn.Module, path: str) -> Any:
    """The module at a dotted path, or None."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found
