"""What the families share: reading their fields off a config, describing labels and images, rounding widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from edgeforge.core.errors import ModelError
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from edgeforge.core.task import Interface

Width = Annotated[int, Field(ge=1, le=16384)]
Depth = Annotated[int, Field(ge=1, le=256)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal["relu", "relu6", "gelu", "silu"]

Family = TypeVar("Family", bound=Spec)


def read_fields(family: type[Family], config: PretrainedConfig) -> Family:
    """The fields of `family` as `config` has them. Raises ModelError where a value is outside the family's limits."""
    values = {name: getattr(config, name) for name in family.model_fields if name != "kind"}
    try:
        return family.model_validate({"kind": config.model_type, **values})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ModelError(
            f"{place} is {problem['input']!r}: {problem['msg']}",
            where=f"a {config.model_type} config",
            remedy="use a model within these limits, see `edgeforge explain " + str(config.model_type) + "`",
        ) from error


def interface_fields(interface: Interface) -> dict[str, Any]:
    """What the config of a model of images takes from the task: labels and input channels."""
    return {"num_channels": interface.image_shape[0], **label_fields(interface)}


def label_fields(interface: Interface) -> dict[str, Any]:
    """The labels as a config says them, both ways."""
    return {
        "id2label": dict(enumerate(interface.labels)),
        "label2id": {label: index for index, label in enumerate(interface.labels)},
    }


def scale_width(width: int, multiple: float, *, divisor: int = 1) -> int:
    """`width` times `multiple`, to the nearest multiple of `divisor` that is not zero."""
    return max(divisor, round(width * multiple / divisor) * divisor)


def image_size(interface: Interface) -> int | list[int]:
    """The height and width of the task's images as a config says them: one number for squares."""
    _, height, width = interface.image_shape
    return height if height == width else [height, width]


def stages_agree(hidden_sizes: Sequence[int], depths: Sequence[int]) -> None:
    """Raise ValueError unless every stage has a width and a depth."""
    if len(hidden_sizes) != len(depths):
        raise ValueError(
            f"hidden_sizes has {len(hidden_sizes)} stages and depths has {len(depths)}; give one of each per stage"
        )
