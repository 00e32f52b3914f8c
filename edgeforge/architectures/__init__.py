"""Model families: one file per Hugging Face `model_type`; what a family's config can say lives there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic_core import PydanticCustomError

from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec, perhaps, unknown_key

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface


class Architecture(Spec):
    """Base of every family. Fields are what a user may choose; they carry the names of the Hugging Face config."""

    kind: str
    depths_field: ClassVar[str | None] = None
    """The config's field that counts blocks, one number or one per stage; None where no block can be left out."""
    can_end_early: ClassVar[bool] = False
    """Whether a classifier of this family can end after any of its blocks: then it has `answer`."""

    def config(self, interface: Interface) -> PretrainedConfig:
        """The Hugging Face config of this shape for a task's inputs and labels."""
        raise NotImplementedError

    @classmethod
    def of(cls, config: PretrainedConfig) -> Self:
        """The shape that a config of this family says."""
        raise NotImplementedError

    def scaled(self, multiple: float) -> Self:
        """The same depth with every width times `multiple` (rounded to what the family allows)."""
        raise NotImplementedError

    @classmethod
    def measured(cls, model: PreTrainedModel) -> PretrainedConfig:
        """A copy of the model's config with its sizes read off the actual layers.

        It may still not describe the model (widths that differ where the config has one number): the caller compares.
        """
        raise NotImplementedError

    @classmethod
    def stages(cls, model: PreTrainedModel) -> list[nn.Sequential | nn.ModuleList]:
        """The model's blocks in order, by stage; what a stage does between blocks is not in it."""
        raise NotImplementedError

    @classmethod
    def answer(cls, model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
        """The logits, (N, labels), that what stands behind a classifier's blocks makes of what the last one puts out.

        `states` are (N, length, width), or (N, channels, height, width). Of `model` nothing else is used.
        """
        raise NotImplementedError

    @classmethod
    def axes(cls, config: PretrainedConfig) -> Mapping[str, tuple[str | None, ...]]:
        """What the axes of each weight count, by the end of its module's name; a bias counts what the first axis does.

        ``hidden`` is the width between blocks, ``heads`` and ``neurons`` are a block's own, other words are widths of
        their own; None does not change with the width. Empty where nobody has said it for this family.
        """
        return {}

    @classmethod
    def prepare(cls, model: PreTrainedModel) -> None:
        """Correct in place what the Hugging Face class sets wrongly for training and no config says. Usually nothing.

        Called for every model that is built or loaded; it changes nothing that inference sees.
        """


def architecture_of(config: PretrainedConfig) -> type[Architecture] | None:
    """The family of a Hugging Face config, or None where EdgeForge has no file for it."""
    found = discover("edgeforge.architectures", Architecture)
    return found.get(config.model_type)  # type: ignore[return-value]


def nested(value: Any, own: Iterable[str]) -> Any:
    """``{architecture: resnet, depths: [2, 2]}`` -> ``{architecture: {kind: resnet, depths: [2, 2]}}``.

    For specs with a field `architecture` beside their `own` fields: users write the family's fields flat, one level
    less to indent; what is nested already stays. Raises the error for an unknown key over both sets of names,
    or for an unknown architecture.
    """
    if not (isinstance(value, dict) and isinstance(value.get("architecture"), str)):
        return value
    families = discover("edgeforge.architectures", Architecture)
    if value["architecture"] not in families:
        message = perhaps("unknown architecture", value["architecture"], list(families))
        raise PydanticCustomError("unknown_kind", "{message}", {"message": message, "key": "architecture"})
    ours, theirs = set(own), families[value["architecture"]].model_fields.keys() - {"kind"}
    for key in value:
        if key not in ours | theirs:
            raise unknown_key(str(key), sorted(ours | theirs))
    shape = {key: item for key, item in value.items() if key in theirs - ours}
    rest = {key: item for key, item in value.items() if key in ours}
    return {**rest, "architecture": {"kind": value["architecture"], **shape}}
