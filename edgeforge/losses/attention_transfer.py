"""Where the teacher looks (Zagoruyko and Komodakis, 2017, "Paying More Attention to Attention")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import ModelError
from edgeforge.losses import Loss
from edgeforge.losses._layers import LAYERS_DESCRIPTION, Layers, layer_pairs
from edgeforge.losses._tokens import real_tokens

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class AttentionTransfer(Loss):
    """1/2 * sum over layers of || Q_S/|Q_S| - Q_T/|Q_T| ||_2, averaged over the batch (arXiv:1612.03928, eq. 2).

    Q is the spatial attention map: squared activations, summed over channels, as one vector per image. Maps of
    different sizes are average-pooled to the smaller. (The authors' code has the mean of squares instead, much
    smaller numbers, hence their weights near 1000; here weights near 1 are right.) It needs no projection.
    """

    kind: Literal["attention_transfer"] = "attention_transfer"
    layers: Layers = Field(default="evenly_spaced", description=LAYERS_DESCRIPTION)

    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._layers", "edgeforge.losses._tokens")

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        import torch
        from torch.nn import functional

        distances = []
        places = 1
        for ours, theirs in layer_pairs(self.layers, student, teacher, self.kind):
            maps = _same_size(_attention(ours, batch), _attention(theirs, batch))
            ours, theirs = (functional.normalize(one.flatten(1), dim=1) for one in maps)
            distances.append(torch.linalg.vector_norm(ours - theirs, dim=1).mean())
            places = max(places, ours.shape[1])
        if places == 1:
            # A normalised map of one place is the number 1: the loss would be zero whatever the student does.
            raise ModelError(
                "attention_transfer: the maps of the layers compared have a single place each, so they say nothing",
                remedy="name earlier layers, or use larger images",
            )
        return torch.stack(distances).sum() / 2


def _attention(state: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of squares over channels: (N, C, H, W) -> (N, H, W); (N, tokens, D) -> (N, tokens), 0 at padding."""
    if state.dim() == 4:
        return state.square().sum(dim=1)
    real = real_tokens(batch)
    found = state.square().sum(dim=2)
    return found if real is None else found.where(real, 0)


def _same_size(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn import functional

    if ours.shape == theirs.shape:
        return ours, theirs
    size = (min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2]))
    return functional.adaptive_avg_pool2d(ours, size), functional.adaptive_avg_pool2d(theirs, size)
