"""The direction of the teacher's last hidden states (Sanh et al., 2019, "DistilBERT")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.errors import ModelError
from edgeforge.losses import Loss
from edgeforge.losses._layers import layer_pairs
from edgeforge.losses._tokens import mean_per_sample, real_tokens

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class CosineEmbedding(Loss):
    """1 - cosine between the last hidden states of both, averaged over the real tokens (arXiv:1910.01108).

    With `soft_targets` and `hard_labels`, the paper's triple loss. Of feature maps, the cosine is taken over the
    channels at each place. Both models need the same width.
    """

    kind: Literal["cosine_embedding"] = "cosine_embedding"

    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._layers", "edgeforge.losses._tokens")

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        from torch.nn import functional

        ((ours, theirs),) = layer_pairs("last", student, teacher, self.kind)
        if ours.shape != theirs.shape:
            raise ModelError(
                f"cosine_embedding: the last hidden states have shape {tuple(ours.shape[1:])} in the student and "
                f"{tuple(theirs.shape[1:])} in the teacher",
                remedy="use hidden_states, which learns a projection between widths",
            )
        if ours.dim() == 4:
            return 1 - functional.cosine_similarity(ours, theirs, dim=1).mean()
        return mean_per_sample(1 - functional.cosine_similarity(ours, theirs, dim=2), real_tokens(batch))
