"""Checkpoints inside a stage: safetensors and JSON, never pickled; restoring one changes no bit of what follows.

Nothing random is stored: every random choice of the loop is derived from the seed and the step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STATE = "state.json"


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    """Write `tensors` (file name -> tensors by name) and `state` as the checkpoint after `step`; drop older ones.

    The folder appears by one rename after everything in it reached the disk, so a kill leaves the older one.
    """
    partial = folder / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, values in tensors.items():
        if values:
            save_file(
                {key: value.detach().cpu().contiguous().clone() for key, value in values.items()},
                partial / f"{name}.safetensors",
            )
    (partial / STATE).write_text(json.dumps(dict(state)), encoding="utf-8")
    for item in [*partial.iterdir(), partial]:
        handle = os.open(item, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    partial.rename(folder / f"step-{step:09d}")
    for old in sorted(folder.glob("step-*"))[:-1]:
        shutil.rmtree(old)


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, or None."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def read(checkpoint: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one file; empty where it was not written."""
    path = checkpoint / f"{name}.safetensors"
    return load_file(path) if path.is_file() else {}


def read_state(checkpoint: Path) -> Any:
    """The JSON part."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimizer's state as flat tensors: ``<index of the parameter>.<name>``."""
    return {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
