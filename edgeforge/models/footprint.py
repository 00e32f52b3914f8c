"""How large a model is: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import torch
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from edgeforge.core.task import Interface


def footprint(model: PreTrainedModel, interface: Interface) -> dict[str, int]:
    """``params``, ``macs`` and ``size_bytes`` of a model.

    `params` counts each shared parameter once. `macs` are the multiply-accumulates of one sample (batch 1, input
    `interface.input_shape`) in convolutions and matrix products, attention included; additions, normalizations and
    activations are not counted, as is the custom. `size_bytes` is what the weights and persistent buffers take as
    they are (4 bytes each in float32).
    """
    persistent = model.state_dict().keys()
    stored = [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in persistent)]
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "macs": multiply_accumulates(model, interface),
        "size_bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
    }


def multiply_accumulates(model: PreTrainedModel, interface: Interface) -> int:
    """MACs of one sample, counted on the meta device: nothing is computed."""
    tensors = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    sample = torch.empty(1, *interface.input_shape, device="meta")
    training = model.training
    model.eval()  # batch statistics of one sample are none
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            functional_call(model, tensors, kwargs={model.main_input_name: sample})
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2
