"""Some of the teacher's blocks, with their weights (DistilBERT, Sanh et al., 2019, https://arxiv.org/abs/1910.01108)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.students import Student

if TYPE_CHECKING:
    from typing import Self

    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.architectures import Architecture
    from edgeforge.core.task import Interface, Task


class Layers(Student):
    """A copy of the teacher with some blocks left out; everything else, the classifier too, is the teacher's.

    Blocks are numbered from 0 through all stages. Where a model has stages, each keeps its first block, which makes
    the stage's width.
    """

    kind: Literal["layers"] = "layers"
    keep: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, min_length=1, description="The blocks that stay, counted from 0 through all stages: [0, 2, 5]."
    )
    every: int | None = Field(
        default=None, ge=2, description="Instead of `keep`: every n-th block of each stage stays, its first included."
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if (self.keep is None) == (self.every is None):
            raise ValueError("give either keep or every")
        if self.keep is not None and list(self.keep) != sorted(set(self.keep)):
            raise ValueError("keep must rise, each block once")
        return self

    def check(self, teacher: PretrainedConfig) -> None:
        family = _family(teacher)
        self._kept(_depths(family, teacher), has_stages=family.depths_field == "depths")

    def build(self, teacher: PreTrainedModel, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import check_fits

        self.check(teacher.config)
        family = _family(teacher.config)
        student = copy.deepcopy(teacher)
        stages = family.stages(student)
        kept = self._kept([len(blocks) for blocks in stages], has_stages=family.depths_field == "depths")
        for blocks, indices in zip(stages, kept, strict=True):
            for index in reversed(range(len(blocks))):
                if index not in indices:
                    del blocks[index]
        depths = [len(indices) for indices in kept]
        setattr(student.config, str(family.depths_field), depths if family.depths_field == "depths" else depths[0])
        check_fits(student, interface, where="student")
        return student.float().eval()

    def _kept(self, depths: Sequence[int], *, has_stages: bool) -> list[list[int]]:
        """For each stage, the blocks that stay, counted within it. Raises ModelError."""
        if self.every is not None:
            return [list(range(0, depth, self.every)) for depth in depths]
        assert self.keep is not None
        kept, first = [], 0
        for stage, depth in enumerate(depths):
            kept.append([index - first for index in self.keep if first <= index < first + depth])
            if has_stages and 0 not in kept[-1]:
                raise ModelError(
                    f"block {first} begins stage {stage} and must stay: the stage's width is made in it",
                    where="student.keep",
                    remedy=f"add {first} to keep",
                )
            first += depth
        if self.keep[-1] >= first:
            raise ModelError(
                f"there is no block {self.keep[-1]}: the teacher has {first}",
                where="student.keep",
                remedy=f"choose from 0 to {first - 1}",
            )
        return kept


def _family(config: PretrainedConfig) -> type[Architecture]:
    family = architecture_of(config)
    if family is None or family.depths_field is None:
        raise ModelError(
            f"blocks of a {config.model_type} cannot be left out one by one",
            where="student",
            remedy="use `{kind: width, multiple: 0.5}` or `{kind: config, architecture: ...}`",
        )
    return family


def _depths(family: type[Architecture], config: PretrainedConfig) -> list[int]:
    depths = getattr(config, str(family.depths_field))
    return [depths] if isinstance(depths, int) else list(depths)
