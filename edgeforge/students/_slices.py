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

BLOCKS_OWN = ("heads", "key_value_heads", "neurons")

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
    channels = check_heads(student.config, config)
    axes = {name: _axes_of(name, config) for name in theirs}
    importance, counts = _importance(theirs, axes), dict(_counts(ours, axes))
    for group, scores in importance.items():
        if group.endswith("heads") and len(scores) != channels * _head_count(config, group):
            raise ModelError("the teacher's attention was pruned", where="student.weights", remedy=_PRUNED)
    kept: dict[str, torch.Tensor] = {}
    for group, count in counts.items():
        if group.endswith(".heads"):
            kept |= _heads(group, importance, counts, channels)
        elif not group.endswith("heads"):
            kept[group] = _most_important(importance[group], count)
    with torch.no_grad():
        for name, tensor in ours.items():
            part = theirs[name]
            for axis, counted in enumerate(axes[name]):
                if counted is not None:
                    part = part.index_select(axis, kept[counted])
            # A vocabulary or a table of positions may have rows behind the ones in use.
            tensor.copy_(part[tuple(slice(size) for size in tensor.shape)])


def check_heads(student: PretrainedConfig, teacher: PretrainedConfig) -> int:
    """How many channels a head has, in both alike. Raises ModelError where whole heads of one do not make the other."""
    ours, theirs = _head_size(student), _head_size(teacher)
    groups = _head_count(teacher, "key_value_heads")
    remedy = f"choose a multiple of 1/{groups}: " + ", ".join(f"{n / groups:.4g}" for n in range(1, groups + 1))
    if ours != theirs:
        raise ModelError(
            f"heads stay whole, and this width would make heads of {ours} out of heads of {theirs}",
            where="student.multiple",
            remedy=remedy,
        )
    own = student.num_attention_heads // _head_count(student, "key_value_heads")
    shared = teacher.num_attention_heads // groups
    if own > shared:
        raise ModelError(
            f"this width would let {own} query heads share a key, and in the teacher {shared} do",
            where="student.multiple",
            remedy=remedy,
        )
    return ours


def _head_size(config: PretrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _head_count(config: PretrainedConfig, group: str) -> int:
    """Query heads, or key/value heads, which are as many where a config has no word for them."""
    fewer = getattr(config, "num_key_value_heads", None) if group.endswith("key_value_heads") else None
    return int(fewer or config.num_attention_heads)


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


def _heads(
    group: str, importance: Mapping[str, torch.Tensor], counts: Mapping[str, int], channels: int
) -> dict[str, torch.Tensor]:
    """The channels that stay of a block's heads (`group`), and of its keys and values where query heads share them.

    Then the most important key/value heads stay with their queries, both counting alike, and of each one's query heads
    the most important.
    """
    import torch

    shared = group.removesuffix("heads") + "key_value_heads"
    queries = importance[group].view(-1, channels).sum(dim=1)
    groups = len(importance.get(shared, importance[group])) // channels
    own = counts.get(shared, counts[group]) // channels
    by_group = queries.view(groups, -1)
    whole = by_group.mean(dim=1)
    if shared in importance:
        whole = whole + importance[shared].view(-1, channels).sum(dim=1)
    chosen = _most_important(whole, own)
    each = [_most_important(by_group[index], counts[group] // channels // own) for index in chosen]
    heads = torch.cat([index * by_group.shape[1] + found for index, found in zip(chosen, each, strict=True)])
    kept = {group: _channels(heads, channels)}
    return {**kept, shared: _channels(chosen, channels)} if shared in importance else kept


def _channels(heads: torch.Tensor, size: int) -> torch.Tensor:
    import torch

    return (heads[:, None] * size + torch.arange(size)).flatten()


def _most_important(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The positions that stay, rising."""
    import torch

    if count > len(scores):
        raise ModelError(
            f"the student has {count} of what the teacher has {len(scores)} of", where="student.weights", remedy=_PRUNED
        )
    return torch.topk(scores, count).indices.sort().values
