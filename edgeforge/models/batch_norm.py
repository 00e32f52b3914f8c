"""Batch normalization folded into the convolution before it, inside the torch model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.models.operations import Operation


def absorb_batch_norm(model: PreTrainedModel, operations: Sequence[Operation]) -> list[str]:
    """Move each batch normalization's scale into the convolution it follows; return the names of those it moved.

    The function stays the same, up to rounding, and so does the module tree: what is left of the normalization
    only adds (its factor ``weight / sqrt(running_var + eps)`` is exactly 1). Whoever folds it later multiplies by
    one, so integers and scales chosen for the convolution afterwards are those that every exporter writes.
    """
    import torch

    uses = Counter(operation.weight for operation in operations)
    uses.update(operation.batch_norm for operation in operations if operation.batch_norm)
    moved = []
    for operation in operations:
        name = operation.batch_norm
        if name is None or uses[name] > 1 or uses[operation.weight] > 1:
            continue  # shared: a factor that suits one place is wrong in the other
        norm = model.get_submodule(name)
        with torch.no_grad():
            factor = torch.rsqrt(norm.running_var.double() + norm.eps)
            if norm.weight is not None:
                factor *= norm.weight.double()
                norm.weight.fill_(1.0)
            weight = model.get_parameter(operation.weight)
            weight.copy_(weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1)))
            if operation.bias is not None:
                bias = model.get_parameter(operation.bias)
                bias.copy_(bias.double() * factor)
            norm.running_mean.copy_(norm.running_mean.double() * factor)
            norm.running_var.fill_(1.0 - norm.eps)
        moved.append(name)
    return moved
