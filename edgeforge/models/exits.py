"""Classifiers that end after an earlier block: with last layers of their own, as plain models of the same family."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgeforge.architectures import Architecture, architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.core.kinds import discover

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_BEHIND = ("pooler", "layernorm")
"""What a backbone has behind its blocks, where a family has it there."""
_COUNT_STAGES = ("stage_names", "out_features", "out_indices")
"""Fields of a config with stages that follow from their number."""


def check_exits(config: PretrainedConfig, after: Sequence[int]) -> None:
    """Raise ModelError where a model of this config cannot end after each of these blocks as well as at its end."""
    family = _family(config)
    last = sum(_depths(family, config)) - 1
    for block in after:
        if block >= last:
            raise ModelError(
                f"block {block} is the last: behind it is the model's own end, which is an exit anyway"
                if block == last
                else f"there is no block {block}: the model has {last + 1}",
                where="after",
                remedy=f"choose from 0 to {last - 1}" if last else "use a model with more blocks",
            )


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """A model's blocks in order, through all stages. Raises ModelError where its family cannot end early."""
    return [block for stage in _family(model.config).stages(model) for block in stage]


def new_head(model: PreTrainedModel, blocks: int) -> PreTrainedModel:
    """Fresh last layers (torch's global seed) for the states after so many of the model's blocks.

    It is a model of the family without embeddings and blocks, for `Architecture.answer`. Raises ModelError as
    `blocks_of` does.
    """
    from torch import nn

    family = _family(model.config)
    config = _shortened(model.config, blocks)
    if hasattr(config, "hidden_sizes"):
        # A pruned model's stages may be narrower than its config says.
        config.hidden_sizes = list(family.measured(model).hidden_sizes)[: len(config.hidden_sizes)]
    head = type(model)(config)
    for name, _ in head.base_model.named_children():
        if name not in _BEHIND:
            setattr(head.base_model, name, nn.Identity())
    return head.float()


def ended_after(model: PreTrainedModel, blocks: int, head: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` that ends after so many blocks with the layers of `head`, and says so in its config."""
    result = copy.deepcopy(model)
    _drop_blocks(result, blocks)
    for (owner, name), (other, _) in zip(_behind(result), _behind(head), strict=True):
        setattr(owner, name, copy.deepcopy(getattr(other, name)))
    return result.eval()


def _drop_blocks(model: PreTrainedModel, blocks: int) -> None:
    from edgeforge.models.surgery import keep_blocks

    family, config = _family(model.config), _shortened(model.config, blocks)
    stages: list[Any] = family.stages(model)
    if not hasattr(config, "depths"):
        keep_blocks(model, stages[0], range(blocks))
        return
    for stage, depth in zip(stages, config.depths, strict=False):
        del stage[depth:]
    del model.base_model.encoder.stages[len(config.depths) :]
    vars(model.config).update(vars(config))  # in place: every part of the model has a reference to it


def _shortened(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    """The config of a model that has only the first so many blocks."""
    family = _family(config)
    if not hasattr(config, "depths"):
        result = copy.deepcopy(config)
        setattr(result, str(family.depths_field), blocks)
        return result
    depths, left = [], blocks
    for depth in _depths(family, config):
        if left > 0:
            depths.append(min(depth, left))
        left -= depth
    said = {name: value for name, value in config.to_dict().items() if name not in _COUNT_STAGES}
    said |= {"depths": depths, "hidden_sizes": list(config.hidden_sizes)[: len(depths)]}
    if "num_stages" in said:
        said["num_stages"] = len(depths)
    return type(config).from_dict(said)


def _behind(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str]]:
    """Every part of a model that stands behind its blocks: what holds it, and its name there."""
    base = model.base_model
    yield from ((model, name) for name, child in model.named_children() if child is not base)
    yield from ((base, name) for name in _BEHIND if getattr(base, name, None) is not None)


def _depths(family: type[Architecture], config: PretrainedConfig) -> list[int]:
    found = getattr(config, str(family.depths_field))
    return [found] if isinstance(found, int) else list(found)


def _family(config: PretrainedConfig) -> type[Architecture]:
    family = architecture_of(config)
    if family is None or not family.can_end_early:
        found = discover("edgeforge.architectures", Architecture)
        able = sorted(name for name, cls in found.items() if cls.can_end_early)  # type: ignore[attr-defined]
        raise ModelError(
            f"a {config.model_type} cannot end after one of its blocks: no config of its family says so",
            where="after",
            remedy=f"use one of {', '.join(able)}; or `mutual`, whose students may be of any shape",
        )
    return family
