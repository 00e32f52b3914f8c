"""A narrower transformer with the teacher's own weights: which dimensions, heads and neurons stay, and copying them.

Every axis of every tensor counts something (see `Architecture.axes`): axes that count the same thing (the residual
width everywhere, one block's heads, one block's neurons) lose the same positions, so what is left fits together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

Axes = tuple[str | None, ...]

BLOCKS_OWN = ("heads", "neurons")

_TINY = 1e-300  # a tensor of zeros has no say, and is no reason to divide by zero
_PRUNED = "distil first and prune afterwards, or leave `weights` out"


def take_over(student: PreTrainedModel, teacher: PreTrainedModel, config: PretrainedConfig) -> None:
    """Fill `student`, in place, with the teacher's weights at its most important positions.

    `config` tells the teacher's sizes. Raises ModelError where the student is not the teacher's model in fewer
    dimensions, heads and neurons.
    """
    import torch

    theirs, ours = dict(teacher.named_parameters()), dict(student.named_parameters())
    if theirs.keys() != ours.keys():
        odd = sorted(theirs.keys() ^ ours.keys())[0]
        raise ModelError(f"student and teacher are built differently: only one has {odd}", where="student.weights")
    channels = head_size(student.config, config)
    axes = {name: _axes_of(name, config) for name in theirs}
    importance = _importance(theirs, axes)
    for group, scores in importance.items():
        if group.endswith("heads") and len(scores) != config.num_attention_heads * channels:
            raise ModelError("the teacher's attention was pruned", where="student.weights", remedy=_PRUNED)
    kept = {
        group: _most_important(importance[group], count, channels if group.endswith("heads") else 1)
        for group, count in _counts(ours, axes)
    }
    with torch.no_grad():
        for name, tensor in ours.items():
            part = theirs[name]
            for axis, counted in enumerate(axes[name]):
                if counted is not None:
                    part = part.index_select(axis, kept[counted])
            # A vocabulary or a table of positions may have rows behind the ones in use.
            tensor.copy_(part[tuple(slice(size) for size in tensor.shape)])


def head_size(student: PretrainedConfig, teacher: PretrainedConfig) -> int:
    """How many channels a head has, in both alike. Raises ModelError."""
    ours = student.hidden_size // student.num_attention_heads
    theirs = teacher.hidden_size // teacher.num_attention_heads
    if ours != theirs:
        heads = teacher.num_attention_heads
        raise ModelError(
            f"heads stay whole, and this width would make heads of {ours} out of heads of {theirs}",
            where="student.multiple",
            remedy=f"choose a multiple of 1/{heads}: " + ", ".join(f"{n / heads:.4g}" for n in range(1, heads + 1)),
        )
    return int(ours)


def _axes_of(name: str, config: PretrainedConfig) -> Axes:
    """What each axis of a parameter counts, a block's own things by its number: ``heads`` becomes ``3.heads``."""
    family = architecture_of(config)
    assert family is not None
    module, _, leaf = name.rpartition(".")
    path = module if leaf in ("weight", "bias") else name
    known = family.axes(config)
    fitting = [end for end in known if path == end or path.endswith(f".{end}")]
    if not fitting:
        raise ModelError(f"nobody has said what the axes of {name} count", where="student.weights")
    axes = known[max(fitting, key=len)][: 1 if leaf == "bias" else None]
    block = re.search(r"\.(\d+)\.", name)
    return tuple(f"{block[1]}.{axis}" if block and axis in BLOCKS_OWN else axis for axis in axes)


def _importance(tensors: Mapping[str, torch.Tensor], axes: Mapping[str, Axes]) -> dict[str, torch.Tensor]:
    """Group -> importance of each of its positions, float64.

    The mean, over the matrices that have a position on an axis, of its share in their squared norms (the L2 magnitude
    of a group, as in DepGraph, Fang et al., 2023, https://arxiv.org/abs/2301.12900); for what layer norms scale, times
    its mean share in their squared gains, which is how large it is there whatever the input. Biases have no say.
    """
    import torch

    shares: dict[str, list[torch.Tensor]] = {}
    gains: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.endswith(".bias"):
            continue
        squares = tensor.detach().double().square()
        for axis, group in enumerate(axes[name]):
            if group is not None:
                norms = squares.transpose(0, axis).flatten(1).sum(dim=1) if tensor.dim() > 1 else squares
                (shares if tensor.dim() > 1 else gains).setdefault(group, []).append(
                    norms / norms.mean().clamp_min(_TINY)
                )
    for group, found in shares.items():
        if len({len(share) for share in found}) > 1:
            raise ModelError(
                f"the teacher's layers disagree about how many {group} there are",
                where="student.weights",
                remedy=_PRUNED,
            )
    means = {group: torch.stack(found).mean(dim=0) for group, found in shares.items()}
    return {
        group: mean * torch.stack(gains[group]).mean(dim=0) if group in gains else mean for group, mean in means.items()
    }


def _counts(tensors: Mapping[str, torch.Tensor], axes: Mapping[str, Axes]) -> Iterator[tuple[str, int]]:
    for name, tensor in tensors.items():
        for size, group in zip(tensor.shape, axes[name], strict=True):
            if group is not None:
                yield group, size


def _most_important(importance: torch.Tensor, count: int, together: int) -> torch.Tensor:
    """The positions that stay, rising; `together` neighbours stay or go as one (a head's channels)."""
    import torch

    scores = importance.reshape(-1, together).sum(dim=1)
    if count > len(importance):
        raise ModelError(
            f"the student has {count} of what the teacher has {len(importance)} of",
            where="student.weights",
            remedy=_PRUNED,
        )
    chosen = torch.topk(scores, count // together).indices.sort().values
    return (chosen[:, None] * together + torch.arange(together)).flatten()
