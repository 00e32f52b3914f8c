"""How pruning judges what is unimportant: one file per criterion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch_pruning.dependency import Group
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job

    Importance = Callable[[Group], "torch.Tensor | None"]

Part = Literal["channels", "heads", "neurons", "blocks"]
"""What a structure can remove: channels of any layer; heads, feed-forward neurons, blocks of a transformer."""


@dataclass(frozen=True)
class Units:
    """Parts of a transformer that stay or go whole: the heads or the neurons of one layer, or one block.

    `sides` are (layer, whether its outputs are meant): that axis of the layer's weight is divided into `count` equal
    runs, the first of which is unit 0's. `place` shows the units at work: the linear layer whose inputs they are,
    divided the same way; for a block, the block itself. `block` is the block they lie in, whose first input and output
    are hidden states.
    """

    name: str
    part: Part
    count: int
    sides: tuple[tuple[nn.Module, bool], ...]
    place: nn.Module
    block: nn.Module


class Criterion(Spec):
    """Base of every criterion. `judges` names the parts it has scores for."""

    kind: str
    judges: ClassVar[frozenset[Part]] = frozenset({"channels"})

    def check(self, model: torch.nn.Module) -> None:
        """Refuse, from its layers alone, a model this cannot judge. Raises IncompatiblePlanError."""

    def check_judges(self, part: Part) -> None:
        """Raise IncompatiblePlanError unless this has scores for such parts."""
        if part not in self.judges:
            known = discover("edgeforge.criteria", Criterion)
            able = [word for word, cls in known.items() if part in cls.judges]  # type: ignore[attr-defined]
            raise IncompatiblePlanError(
                f"{self.kind} judges {' and '.join(sorted(self.judges))}, not {part}",
                remedy=f"criteria for {part}: {', '.join(able)}",
            )

    def importance(self, model: torch.nn.Module, job: Job) -> Importance:
        """Scores of channels, for `model` as it is now; asked again before every pruning step.

        The result is a torch-pruning importance: a callable from a group of coupled layers to float32 scores,
        shape (channels of the group's first layer,), higher stays; None for a group it cannot judge.
        Raises IncompatiblePlanError where it has no scores for channels.
        """
        self.check_judges("channels")
        raise NotImplementedError

    def units(self, model: PreTrainedModel, units: Sequence[Units], job: Job) -> list[torch.Tensor]:
        """Scores of `units`, for `model` as it is now: float32 of shape (count,) for each, higher stays.

        Raises IncompatiblePlanError where it has no scores for such parts.
        """
        for one in units:
            self.check_judges(one.part)
        raise NotImplementedError
