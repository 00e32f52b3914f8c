"""How large a model is: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from edgeforge.core.task import Interface
from edgeforge.models.example import example_logits


def footprint(model: PreTrainedModel, interface: Interface) -> dict[str, int]:
    """``params``, ``macs`` and ``size_bytes`` of a model.

    `params` counts each shared parameter once. `macs` are the multiply-accumulates of one sample (batch 1, at the
    interface's greatest length) in convolutions and matrix products, attention included; additions, normalizations and
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
    """MACs of one sample."""
    with FlopCounterMode(display=False) as counter:
        example_logits(model, interface)
    return int(counter.get_total_flops()) // 2
