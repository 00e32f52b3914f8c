"""How large a model is: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from torch.nn.attention import SDPBackend, sdpa_kernel
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
    if not interface.per_token:
        return _counted(model, interface, None)
    # Layers cost the same for every token, attention as much for every pair of them: two short texts tell both.
    short, longest = 8, interface.text.max_length
    once, twice = (_counted(model, interface, length) for length in (short, 2 * short))
    pairs = (twice - 2 * once) / (2 * short**2)
    return round((once / short - pairs * short) * longest + pairs * longest**2)


def _counted(model: PreTrainedModel, interface: Interface, length: int | None) -> int:
    # In plain operations: the counter does not know all of torch's attention kernels.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        example_logits(model, interface, length=length)
    return int(counter.get_total_flops()) // 2
