"""Which arithmetic a device trains in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from edgeforge.environment import cpu_features

Precision = Literal["auto", "float32", "bfloat16"]


def uses_bfloat16(precision: Precision, device: torch.device) -> bool:
    """Whether `precision` means bfloat16 on this device: `auto` does where the processor multiplies it natively."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cpu":
        return bool({"avx512_bf16", "amx_bf16"} & cpu_features())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which models are run at this precision; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bfloat16(precision, device))
