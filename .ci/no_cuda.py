"""Fails where pip chose a CUDA build of torch: it would take gigabytes and test something else."""

from __future__ import annotations

import torch

if torch.version.cuda is not None:
    raise SystemExit(f"torch {torch.__version__} is a CUDA build; CI needs the CPU build")
print(f"torch {torch.__version__}")
