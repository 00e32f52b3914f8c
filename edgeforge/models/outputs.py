"""One forward pass that also gives what losses compare inside a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

HIDDEN_STATES = "hidden_states"
ATTENTION_STATES = ("query_states", "key_states", "value_states")

# BERT, RoBERTa and ELECTRA; DistilBERT; ViT in transformers 5.
_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))
_HEAD_COUNTS = ("num_attention_heads", "n_heads", "num_heads")


def run(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], outputs: frozenset[str]) -> ModelOutput:
    """``model(**inputs)`` with more outputs, named by `outputs`; each is a tuple, one tensor per layer.

    - ``hidden_states``: the states between layers as Hugging Face gives them, the first mostly the embedding's:
      (N, length, width), or (N, channels, height, width).
    - ``query_states``, ``key_states``, ``value_states``: what each self-attention block projects its input to,
      (N, heads, length, head size), before any scaling or mask; an empty tuple where a model has no such blocks.

    Attention matrices are left to the reader, ``softmax(query @ key^T / sqrt(head size))``: so the model keeps its
    fast attention (which gives none), dropout does not get in between, and the unnormalised scores are there as well.
    Raises ValueError for an output of another name.
    """
    if unknown := outputs - {HIDDEN_STATES, *ATTENTION_STATES}:
        raise ValueError(f"no model gives {', '.join(sorted(unknown))}; there are {HIDDEN_STATES}, {ATTENTION_STATES}")
    flags = {"output_hidden_states": True} if HIDDEN_STATES in outputs else {}
    asked = [name for name in ATTENTION_STATES if name in outputs]
    recorded: dict[str, list[torch.Tensor]] = {name: [] for name in asked}
    with ExitStack() as hooks:
        for heads, layers in _attention_blocks(model) if asked else ():
            for name in asked:
                handle = layers[name].register_forward_hook(_recorder(recorded[name], heads))
                hooks.callback(handle.remove)
        answer = model(**inputs, **flags, return_dict=True)
    for name, states in recorded.items():
        answer[name] = tuple(states)
    return answer


def _attention_blocks(model: nn.Module) -> Iterator[tuple[int, dict[str, nn.Module]]]:
    """Number of heads and projections (by the state they make) of every self-attention block."""
    from torch import nn

    for module in model.modules():
        heads = next((getattr(module, name) for name in _HEAD_COUNTS if hasattr(module, name)), None)
        for names in _PROJECTIONS:
            layers = [getattr(module, name, None) for name in names]
            if heads is not None and all(isinstance(layer, nn.Linear) for layer in layers):
                yield int(heads), dict(zip(ATTENTION_STATES, layers, strict=True))  # type: ignore[arg-type]


def _recorder(found: list[torch.Tensor], heads: int) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    """A hook that keeps a projection's output, (N, length, width), divided into heads."""

    def record(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        found.append(output.view(*output.shape[:-1], heads, -1).transpose(1, 2))

    return record
