"""How the teacher's last layer relates tokens (Wang et al., 2020, "MiniLM")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import ModelError
from edgeforge.losses import Loss
from edgeforge.losses._attention import attention_states, log_relations, scores
from edgeforge.losses._distributions import divergence
from edgeforge.losses._layers import check_tokens
from edgeforge.losses._tokens import mean_per_sample, real_tokens, visible_tokens

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

_MINILM = (("query_states", "key_states"), ("value_states", "value_states"))
_MINILM_V2 = (("query_states", "query_states"), ("key_states", "key_states"), ("value_states", "value_states"))


class ValueRelations(Loss):
    """KL of the last layers' attention distributions, plus KL of their value relations (arXiv:2002.10957, eq. 5-8).

    A relation is ``softmax(V V^T / sqrt(d))``, one distribution over the real tokens for every head and real token;
    divergences are KL(teacher || student), averaged over both. Its size does not depend on the width, so nothing is
    projected. With `relation_heads`, MiniLMv2 (arXiv:2012.15828): queries, keys and values are each divided anew into
    so many heads and related to themselves, so that the numbers of attention heads may differ.

    Of decoders, each token's distribution is over itself and those before it. With grouped-query attention, keys that
    several heads share are compared with each of them, and there is one value relation for each value head.
    """

    kind: Literal["value_relations"] = "value_relations"
    relation_heads: int | None = Field(
        default=None,
        ge=1,
        description="MiniLMv2's number of relation heads, which must divide both widths; absent: MiniLM.",
    )

    outputs: ClassVar[frozenset[str]] = frozenset({"query_states", "key_states", "value_states"})
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.losses._attention",
        "edgeforge.losses._distributions",
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

        real, visible = real_tokens(batch), visible_tokens(batch)
        kept = None if real is None else real[:, None, :]
        terms = []
        for left, right in _MINILM if self.relation_heads is None else _MINILM_V2:
            ours = scores(self._last(student, left, "student"), self._last(student, right, "student"))
            theirs = scores(self._last(teacher, left, "teacher"), self._last(teacher, right, "teacher")).detach()
            _check_heads(ours.shape[1], theirs.shape[1])
            check_tokens(ours.shape[-1], theirs.shape[-1], self.kind)
            terms.append(
                mean_per_sample(divergence(log_relations(theirs, visible), log_relations(ours, visible)), kept)
            )
        return torch.stack(terms).sum()

    def _last(self, outputs: ModelOutput | None, name: str, who: str) -> torch.Tensor:
        """The last block's states, (N, heads, length, head size), in relation heads where those are asked for."""
        state = attention_states(outputs, name, who, self.kind)[-1]
        if self.relation_heads is None:
            return state
        state = state.transpose(1, 2).flatten(2)
        if state.shape[2] % self.relation_heads:
            raise ModelError(
                f"value_relations: {self.relation_heads} relation heads do not divide the {who}'s width "
                f"{state.shape[2]}",
                remedy="set relation_heads to a number that divides the widths of both",
            )
        return state.view(*state.shape[:2], self.relation_heads, -1).transpose(1, 2)


def _check_heads(ours: int, theirs: int) -> None:
    if ours != theirs:
        raise ModelError(
            f"value_relations: the student has {ours} attention heads and the teacher {theirs}",
            remedy="set relation_heads to a number that divides the widths of both",
        )
