"""Batches of shapes at which a sample's answer does not hang on the batch it is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeforge.core.task import Batch, Interface

ROWS = 16
LENGTH = 16


def regular(batch: Batch, interface: Interface) -> Batch:
    """The same samples with texts padded to a multiple of `LENGTH` (at most the task's length) and `ROWS` rows or more.

    The last sample fills missing rows: read only as many answers as were asked for. Images come channels last.

    Processors add in another order where a batch has few rows, or where a softmax does not end with a vector: at
    shapes like these a sample's logits were the same to the bit in whatever batch of whatever size it was asked about
    (torch 2.13 on x86, float32 and bfloat16). That is observed, not promised, and not to be expected of GPUs.
    """
    import torch
    from torch.nn import functional

    result = dict(batch)
    for value in interface.inputs:
        tensor = batch[value.name]
        if value.variable:
            longer = min(value.shape[-1], -(-tensor.shape[-1] // LENGTH) * LENGTH) - tensor.shape[-1]
            padding = interface.text.pad_id if value.name == "input_ids" else 0
            result[value.name] = functional.pad(tensor, (0, max(0, longer)), value=padding)
        elif tensor.dim() == 4:
            result[value.name] = tensor.contiguous(memory_format=torch.channels_last)
    missing = ROWS - len(batch[interface.inputs[0].name])
    if missing > 0:
        result = {
            name: torch.cat([tensor, tensor[-1:].repeat_interleave(missing, 0)]) for name, tensor in result.items()
        }
    return result
