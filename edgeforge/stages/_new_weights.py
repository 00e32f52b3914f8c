"""A model of the same shape as another, with fresh weights."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def with_new_weights(model: PreTrainedModel) -> PreTrainedModel:
    """What `model` was before it learnt anything, as torch's global seed has it: float32, on the CPU, in eval mode.

    Layers that were pruned to widths its config cannot say are drawn in these widths. Raises ModelError where one of
    them cannot be drawn anew.
    """
    from edgeforge.models.loading import made_ready
    from edgeforge.models.surgery import difference, resize

    new = type(model)(copy.deepcopy(model.config)).float()
    changes = difference(model, new)
    resize(new, changes)
    modules = dict(new.named_modules())
    for path, layer in changes.items():
        if layer.tensors:
            _draw(new, path, modules[path])
    if new.can_generate():
        new.generation_config = copy.deepcopy(model.generation_config)
    return made_ready(new)


def _draw(model: PreTrainedModel, path: str, module: torch.nn.Module) -> None:
    """Give a resized module new numbers: by its own rule, and then by the family's."""
    import torch

    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    with torch.no_grad():
        for tensor in own:
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
        draw = getattr(module, "reset_parameters", None)
        if draw is not None:
            draw()
        model._init_weights(module)
    if not all(bool(tensor.isfinite().all()) for tensor in own):
        raise ModelError(
            f"nobody knows how fresh weights of {path}, which was pruned, are drawn",
            where="student",
            remedy="say the generations' shape: `student: {kind: config, architecture: ...}`",
        )
