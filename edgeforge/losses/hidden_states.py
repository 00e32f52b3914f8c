"""The teacher's hidden states as hints (Romero et al., 2015, "FitNets: Hints for Thin Deep Nets")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.losses import Loss, Training
from edgeforge.losses._layers import LAYERS_DESCRIPTION, Layers, layer_pairs
from edgeforge.losses._tokens import mean_per_sample, real_tokens

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class HiddenStates(Loss):
    """Mean squared error between hidden layers, averaged over the pairs (arXiv:1412.6550).

    Where widths differ, a linear projection of the student's state is learned beside the student (a 1x1 convolution
    for feature maps). Where map sizes differ, both are average-pooled to the smaller. Of texts only the real tokens
    count. The mean, where the paper has half the sum, keeps the weight meaningful whatever the width. With the pair
    [0, 0] among `layers` and `attention_maps` beside it, this is TinyBERT's intermediate loss (arXiv:1909.10351).
    """

    kind: Literal["hidden_states"] = "hidden_states"
    layers: Layers = Field(default="last", description=LAYERS_DESCRIPTION)

    outputs: ClassVar[frozenset[str]] = frozenset({"hidden_states"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.losses._layers", "edgeforge.losses._tokens")

    def modules(self, student: ModelOutput, teacher: ModelOutput | None, training: Training) -> torch.nn.Module | None:
        from torch import nn

        projections = nn.ModuleDict()
        for index, (ours, theirs) in enumerate(layer_pairs(self.layers, student, teacher, self.kind)):
            if ours.dim() == 4 and ours.shape[1] != theirs.shape[1]:
                projections[str(index)] = nn.Conv2d(ours.shape[1], theirs.shape[1], kernel_size=1)
            elif ours.dim() == 3 and ours.shape[2] != theirs.shape[2]:
                projections[str(index)] = nn.Linear(ours.shape[2], theirs.shape[2])
        return projections if len(projections) else None

    def compute(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        batch: Mapping[str, torch.Tensor],
        modules: torch.nn.Module | None,
    ) -> torch.Tensor:
        import torch

        projections = dict(modules.named_children()) if modules is not None else {}
        errors = []
        for index, (ours, theirs) in enumerate(layer_pairs(self.layers, student, teacher, self.kind)):
            is_map = ours.dim() == 4
            if is_map:
                ours, theirs = _same_size(ours, theirs)
            if str(index) in projections:
                ours = projections[str(index)](ours)
            real = None if is_map else real_tokens(batch)
            errors.append(mean_per_sample((ours - theirs).square(), None if real is None else real[:, :, None]))
        return torch.stack(errors).mean()


def _same_size(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature maps pooled to the smaller height and width."""
    from torch.nn import functional

    size = (min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3]))
    return functional.adaptive_avg_pool2d(ours, size), functional.adaptive_avg_pool2d(theirs, size)
