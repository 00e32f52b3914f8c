"""Attention layers: which projections share heads, and the numbers that must follow when heads get narrower."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# BERT's family and ViT of transformers 4; ViT of transformers 5; DistilBERT.
_PROJECTIONS = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"), ("q_lin", "k_lin", "v_lin"))


def projections(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[nn.Linear, ...]]]:
    """Every attention module of `model` with its query, key and value projections."""
    from torch import nn

    for module in model.modules():
        for names in _PROJECTIONS:
            layers = tuple(getattr(module, name, None) for name in names)
            if all(isinstance(layer, nn.Linear) for layer in layers) and _head_count(module) is not None:
                yield module, layers  # type: ignore[misc]


def heads(model: nn.Module) -> dict[nn.Module, int]:
    """Projection layer -> number of heads its outputs are divided among."""
    return {layer: int(_head_count(attention)) for attention, layers in projections(model) for layer in layers}


def follow_widths(model: nn.Module) -> None:
    """Set head size and scaling from the projections' present widths; the number of heads stays.

    The scaling must not keep its old value: a model built anew would get ``head_size ** -0.5``, and drift.
    """
    for attention, (query, *_) in projections(model):
        size = query.out_features // int(_head_count(attention))
        old = int(getattr(attention, "head_dim", getattr(attention, "attention_head_size", size)))
        if size == old:
            continue
        whole = query.out_features
        for name, value in (
            ("head_dim", size),
            ("attention_head_size", size),
            ("all_head_size", whole),
            ("dim", whole),
        ):
            if hasattr(attention, name):
                setattr(attention, name, value)
        if getattr(attention, "scaling", None) == old**-0.5:
            attention.scaling = size**-0.5


def _head_count(attention: nn.Module) -> Any:
    return getattr(attention, "num_attention_heads", getattr(attention, "n_heads", None))
