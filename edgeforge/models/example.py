"""Inputs that stand for real ones where only their shapes matter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from edgeforge.core.task import Batch, Interface

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def example_inputs(
    interface: Interface, count: int, *, length: int | None = None, device: str | torch.device = "cpu"
) -> Batch:
    """Placeholders for `count` samples, by name: the greatest length of variable inputs, or `length`."""
    return {
        value.name: torch.full(
            (count, *value.shape[:-1], length) if value.variable and length else (count, *value.shape),
            value.fill,
            dtype=getattr(torch, value.dtype),
            device=device,
        )
        for value in interface.inputs
    }


def example_logits(model: PreTrainedModel, interface: Interface, *, length: int | None = None) -> torch.Tensor:
    """What `model` answers to one placeholder, in eval mode; the model stays as it is.

    Images pass on the meta device, where nothing is computed. Texts are computed, at their greatest length or at
    `length`: transformers looks into their masks.
    """
    device = "meta" if interface.pixels is not None else "cpu"
    tensors = {name: tensor.to(device) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    training = model.training
    model.eval()  # batch statistics of one sample are none
    try:
        with torch.no_grad():
            given = example_inputs(interface, 1, length=length, device=device)
            answer = functional_call(model, tensors, kwargs=given)
    finally:
        model.train(training)
    logits: torch.Tensor = answer.logits
    return logits
