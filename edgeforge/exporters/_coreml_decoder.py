"""A language model as a Core ML program with memory: some tokens in, what may follow each of them out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import ModelError
from edgeforge.core.task import Interface
from edgeforge.exporters._coreml_inputs import MASKED, Front
from edgeforge.runtimes import _coreml_decoder as runtime
from edgeforge.runtimes import coreml

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


CONTEXT = 1024
CHUNK = 64
"""Tokens of a prompt that are read at once."""


def decoder(network: PreTrainedModel, interface: Interface, *, context: int | None) -> Front:
    """``input_ids`` and ``position_ids``, int32, (1, 1) or (1, 64), give ``logits`` (1, tokens, vocabulary).

    Keys and values of up to `context` tokens are states of the model, one pair for each block, float16. An app makes
    one state per conversation and says with each token where it stands; a token that stands where another stood takes
    its place. What fills a chunk up may stand at the positions that follow. Raises ModelError where `context` is more
    than the model has positions for.
    """
    import numpy as np
    import torch

    coremltools = coreml.load_coremltools()
    most = int(network.config.max_position_embeddings)
    context = min(CONTEXT, most) if context is None else context
    if context > most:
        raise ModelError(
            f"the model has positions for {most} tokens, fewer than a context of {context}",
            where="export.context",
            remedy=f"set it to {most} or less",
        )
    chunk = min(CHUNK, context)
    module = _reader(network, context)
    open_length = torch.export.Dim("length", min=2, max=context)
    shape = coremltools.EnumeratedShapes([(1, 1), (1, chunk)], default=(1, chunk))
    states = [
        coremltools.StateType(wrapped_type=coremltools.TensorType(shape=buffer.shape, dtype=np.float16), name=name)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    first = torch.arange(chunk, dtype=torch.int32)[None]
    ends = network.generation_config.eos_token_id
    return Front(
        module=module,
        example=(torch.ones(1, chunk, dtype=torch.int32), first),
        axes=({1: open_length}, {1: open_length}),
        types=[coremltools.TensorType(name=name, shape=shape, dtype=np.int32) for name in runtime.INPUTS],
        outputs=[coremltools.TensorType(name=interface.output_name)],
        states=states,
        summary=f"Continues a text of up to {context} tokens.",
        descriptions={
            "input_ids": f"token ids of the tokenizer beside the model, one or {chunk} at a time",
            "position_ids": "where each of them stands in the text, from 0",
        },
        metadata={
            coreml.TOKENS_KEY: json.dumps(
                {
                    "context": context,
                    "chunk": chunk,
                    "pad_id": interface.text.pad_id,
                    "ends": ends if isinstance(ends, list) else [] if ends is None else [ends],
                }
            )
        },
        lengths=(1, chunk),
    )


def _reader(network: PreTrainedModel, context: int) -> torch.nn.Module:
    """The model on tokens and positions, its keys and values in buffers ``key_<i>`` and ``value_<i>``.

    Hugging Face's own code computes every block; it is given a cache that writes by a product with a 0/1 matrix, which
    every Core ML device has, and a mask made of the positions.
    """
    import torch

    from edgeforge.models.loading import quiet

    config = network.config
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (1, config.num_key_value_heads, context, head_size)

    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            for block in range(config.num_hidden_layers):
                self.register_buffer(f"key_{block}", torch.zeros(shape))
                self.register_buffer(f"value_{block}", torch.zeros(shape))

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            places = torch.arange(context, dtype=torch.int32)
            places_of_tokens = (places[:, None] == position_ids).float()
            later = (places[None, :] > position_ids[0][:, None]).float()
            logits: torch.Tensor = self.network(
                input_ids=input_ids,
                position_ids=position_ids,
                cache_position=position_ids[0],
                attention_mask=(later * MASKED)[None, None],
                past_key_values=_Cache(self, places_of_tokens),
                use_cache=True,
            ).logits
            return logits

    with quiet():
        network.set_attn_implementation("eager")  # Core ML's own attention crashes some devices' CPUs
    network.config.use_cache = True
    return Reader().eval()


class _Cache:
    """As much of ``transformers.Cache`` as its decoders ask for: `owner`'s buffers, written where the tokens stand."""

    is_compileable = False

    def __init__(self, owner: torch.nn.Module, places_of_tokens: torch.Tensor) -> None:
        """`places_of_tokens`: (context, tokens), 1 where a token stands."""
        self._owner, self._places = owner, places_of_tokens
        self._untouched = 1 - places_of_tokens.sum(dim=1)[None, None, :, None]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing asks for it where positions and mask are given."""
        return 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a block, those of the new tokens among them."""
        return (
            self._written(f"key_{layer_idx}", key_states),
            self._written(f"value_{layer_idx}", value_states),
        )

    def _written(self, name: str, new: torch.Tensor) -> torch.Tensor:
        buffer: torch.Tensor = getattr(self._owner, name)
        updated: torch.Tensor = buffer * self._untouched + self._places @ new
        buffer[:] = updated
        return updated
