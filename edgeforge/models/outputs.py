"""One forward pass that also gives what losses compare inside a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

HIDDEN_STATES = "hidden_states"
ATTENTION_STATES = ("query_states", "key_states", "value_states")

# BERT, RoBERTa and ELECTRA; DistilBERT; decoders, and ViT in transformers 5.
_PROJECTIONS = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"), ("q_proj", "k_proj", "v_proj"))
_HEAD_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
_NORMS = dict(zip(ATTENTION_STATES, ("q_norm", "k_norm", None), strict=True))


def run(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], outputs: frozenset[str]) -> ModelOutput:
    """``model(**inputs)`` with more outputs, named by `outputs`; each is a tuple, one tensor per layer.

    - ``hidden_states``: the states between layers as Hugging Face gives them, the first mostly the embedding's:
      (N, length, width), or (N, channels, height, width).
    - ``query_states``, ``key_states``, ``value_states``: what each self-attention block projects its input to,
      (N, heads, length, head size), before any scaling or mask; an empty tuple where a model has no such blocks. Of
      decoders they are what is compared with each other: normed and rotated by position. Where several query heads
      share a key and a value head, there are so many fewer of those.

    Attention matrices are left to the reader, ``softmax(query @ key^T / sqrt(head size))``: so the model keeps its
    fast attention (which gives none), dropout does not get in between, and the unnormalised scores are there as well.
    Raises ValueError for an output of another name.
    """
    if unknown := outputs - {HIDDEN_STATES, *ATTENTION_STATES}:
        raise ValueError(f"no model gives {', '.join(sorted(unknown))}; there are {HIDDEN_STATES}, {ATTENTION_STATES}")
    flags = {"output_hidden_states": True} if HIDDEN_STATES in outputs else {}
    if model.can_generate():
        flags["use_cache"] = False  # the keys and values of every block, kept for a next token that nobody asks for
    asked = [name for name in ATTENTION_STATES if name in outputs]
    blocks = list(_attention_blocks(model)) if asked else []
    with ExitStack() as hooks:
        for block in blocks:
            for handle in block.record(asked):
                hooks.callback(handle.remove)
        answer = model(**inputs, **flags, return_dict=True)
    for name in asked:
        answer[name] = tuple(block.state(name) for block in blocks)
    return answer


class _Block:
    """One self-attention block: its projections by the state they make, and what they made."""

    def __init__(self, module: nn.Module, layers: Mapping[str, nn.Module], head_size: int) -> None:
        self._module, self._layers, self._head_size = module, layers, head_size
        self._made: dict[str, torch.Tensor] = {}
        self._positions: tuple[torch.Tensor, torch.Tensor] | None = None

    def record(self, names: Sequence[str]) -> Iterator[RemovableHandle]:
        """Hooks that note what the next forward pass makes."""
        yield self._module.register_forward_pre_hook(self._note_positions, with_kwargs=True)
        for name in names:
            norm = getattr(self._module, _NORMS[name] or "", None)  # Qwen3 norms each head's queries and keys
            yield (norm or self._layers[name]).register_forward_hook(self._noting(name))

    def state(self, name: str) -> torch.Tensor:
        """(N, heads, length, head size)."""
        import torch

        made = self._made[name]
        state = made.reshape(*made.shape[:2], -1, self._head_size).transpose(1, 2)
        if self._positions is None or name == "value_states":
            return state
        cosines, sines = (one[:, None] for one in self._positions)
        first, second = state.chunk(2, dim=-1)
        return state * cosines + torch.cat((-second, first), dim=-1) * sines

    def _note_positions(self, _module: nn.Module, _inputs: Any, named: Mapping[str, Any]) -> None:
        self._positions = named.get("position_embeddings")

    def _noting(self, name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def note(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            self._made[name] = output

        return note


def _attention_blocks(model: nn.Module) -> Iterator[_Block]:
    for module in model.modules():
        heads = next((getattr(module, name) for name in _HEAD_COUNTS if hasattr(module, name)), None)
        for names in _PROJECTIONS:
            layers = [getattr(module, name, None) for name in names]
            sizes = [getattr(layer, "out_features", None) for layer in layers]  # an adapter around a layer has it too
            head_size = sizes[0] // heads if heads and sizes[0] else getattr(module, "head_dim", None)
            if head_size and all(isinstance(size, int) for size in sizes):
                yield _Block(module, dict(zip(ATTENTION_STATES, layers, strict=True)), int(head_size))  # type: ignore[arg-type]
