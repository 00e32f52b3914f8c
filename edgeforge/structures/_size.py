"""How large a model was and is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface


def size(model: PreTrainedModel, interface: Interface) -> dict[str, int]:
    """``params`` and ``macs``, which runs the model's shapes once. Raises ModelError where they do not fit together."""
    from edgeforge.models.footprint import footprint

    try:
        found = footprint(model, interface)
    except RuntimeError as error:
        raise ModelError(
            f"this {type(model).__name__} does not run with these widths: {str(error).splitlines()[0]}",
            remedy="put the layers that disagree in `ignore`",
        ) from error
    return {"params": found["params"], "macs": found["macs"]}


def change(before: dict[str, int], model: PreTrainedModel, interface: Interface) -> dict[str, list[int]]:
    """``params`` and ``macs`` as [before, now]."""
    return {name: [before[name], value] for name, value in size(model, interface).items()}
