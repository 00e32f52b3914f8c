"""How the teacher's tokens attend to each other (Jiao et al., 2020, "TinyBERT")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import ModelError
from edgeforge.losses import Loss
from edgeforge.losses._attention import attention_states, scores
from edgeforge.losses._layers import Layers, check_tokens, layer_indices
from edgeforge.losses._tokens import mean_per_sample, real_tokens, visible_tokens

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class AttentionMaps(Loss):
    """Mean squared error between attention matrices, averaged over heads and pairs of layers (arXiv:1909.10351, eq. 7).

    The matrices are the scores ``Q K^T / sqrt(d)`` before softmax, mask and dropout, as in the paper, which found
    that they converge faster and better than probabilities. Only pairs of real tokens count; of decoders, only those
    in which the first may look at the second, and scores are those after rotation by position. There, keys that several
    heads share are compared with each of them. Student and teacher need equal numbers of (query) heads: averaged over
    heads, as some do, the maps would say nothing about any one of them.
    """

    kind: Literal["attention_maps"] = "attention_maps"
    layers: Layers = Field(
        default="evenly_spaced",
        description=(
            "`last`: the last block of each. `evenly_spaced`: every block of the student, with the teacher's at the "
            "same relative depth. Or pairs [student layer, teacher layer], numbered as in `hidden_states`: 1 is the "
            "first block, -1 the last."
        ),
    )

    outputs: ClassVar[frozenset[str]] = frozenset({"query_states", "key_states"})
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.losses._attention",
        "edgeforge.losses._layers",
        "edgeforge.losses._tokens",
        "edgeforge.models.outputs",
    )

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        import torch

        ours, theirs = _Blocks(student, "student"), _Blocks(teacher, "teacher")
        real, visible = real_tokens(batch), visible_tokens(batch)
        pairs = None if real is None or visible is None else (real[:, :, None] & visible)[:, None]
        errors = []
        for mine, other in layer_indices(self.layers, ours.layers, theirs.layers, self.kind):
            map_, wanted = ours.scores(mine), theirs.scores(other).detach()
            _check_heads(map_.shape[1], wanted.shape[1])
            check_tokens(map_.shape[-1], wanted.shape[-1], self.kind)
            errors.append(mean_per_sample((map_ - wanted).square(), pairs))
        return torch.stack(errors).mean()


class _Blocks:
    """One model's attention blocks, numbered as the hidden states that they make."""

    def __init__(self, outputs: ModelOutput | None, who: str) -> None:
        self._who = who
        self._queries = attention_states(outputs, "query_states", who, "attention_maps")
        self._keys = attention_states(outputs, "key_states", who, "attention_maps")
        self.layers = len(self._queries) + 1

    def scores(self, layer: int) -> torch.Tensor:
        if layer == 0:
            raise ModelError(
                f"attention_maps: layer 0 of the {self._who} is the embedding, which has no attention",
                remedy="name layers from 1 on",
            )
        return scores(self._queries[layer - 1], self._keys[layer - 1])


def _check_heads(ours: int, theirs: int) -> None:
    if ours != theirs:
        raise ModelError(
            f"attention_maps: the student has {ours} attention heads and the teacher {theirs}",
            remedy="give the student as many heads, or use value_relations with relation_heads",
        )
