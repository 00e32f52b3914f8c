"""A classifier with further exits, all of which answer in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from edgeforge.architectures import architecture_of
from edgeforge.core.task import Batch
from edgeforge.models.exits import blocks_of
from edgeforge.models.outputs import run
from edgeforge.training.peers import Learners

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Branches(Learners):
    """A model and last layers after some of its blocks; its learners are the exits by depth, its own end the last.

    Each answers with its logits and, as its only hidden state, what the block before it puts out.
    """

    def __init__(self, model: PreTrainedModel, heads: Mapping[int, PreTrainedModel]) -> None:
        """`heads` are those of `edgeforge.models.exits.new_head`, by the block they stand behind, rising."""
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict({str(block): head for block, head in heads.items()})

    def answers(self, inputs: Batch, outputs: frozenset[str]) -> list[ModelOutput]:
        family = architecture_of(self.model.config)
        assert family is not None
        blocks, states = blocks_of(self.model), dict[int, torch.Tensor]()
        with ExitStack() as hooks:
            for block in (*map(int, self.heads), len(blocks) - 1):
                hooks.callback(blocks[block].register_forward_hook(_noting(states, block)).remove)
            whole = run(self.model, inputs, frozenset())
        found = [(family.answer(head, states[int(block)]), states[int(block)]) for block, head in self.heads.items()]
        found.append((whole.logits, states[len(blocks) - 1]))
        return [ModelOutput(logits=logits, hidden_states=(state,)) for logits, state in found]

    def logits(self, inputs: Batch, learner: int) -> torch.Tensor:
        logits: torch.Tensor = self.answers(inputs, frozenset())[learner].logits
        return logits


def _noting(states: dict[int, torch.Tensor], block: int) -> Callable[[nn.Module, Any, Any], None]:
    def note(_block: nn.Module, _inputs: Any, output: Any) -> None:
        states[block] = output[0] if isinstance(output, tuple) else output

    return note
