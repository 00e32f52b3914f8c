"""Which of the teacher's blocks a student has: how a user says it, and the teacher without the others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from typing import Self

    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.architectures import Architecture


class Blocks(Spec):
    """Some of a model's blocks, numbered from 0 through all stages."""

    keep: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, min_length=1, description="The blocks that stay, counted from 0 through all stages: [0, 2, 5]."
    )
    every: int | None = Field(
        default=None, ge=2, description="Instead of `keep`: every n-th block of each stage stays, its first included."
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        if self.keep is not None and self.every is not None:
            raise ValueError("give either keep or every")
        if self.keep is not None and list(self.keep) != sorted(set(self.keep)):
            raise ValueError("keep must rise, each block once")
        return self

    def chooses(self) -> bool:
        """Whether anything is said: otherwise every block stays."""
        return self.keep is not None or self.every is not None

    def check_blocks(self, teacher: PretrainedConfig) -> None:
        """Raise ModelError where `without_the_others` would, from the teacher's config alone."""
        family = _family(teacher)
        depths = getattr(teacher, str(family.depths_field))
        self._kept([depths] if isinstance(depths, int) else list(depths), has_stages=_has_stages(family))

    def without_the_others(self, teacher: PreTrainedModel) -> PreTrainedModel:
        """A copy of the teacher that has these blocks only, and says so in its config. Raises ModelError."""
        from edgeforge.models.surgery import keep_blocks

        family = _family(teacher.config)
        student = copy.deepcopy(teacher)
        stages = family.stages(student)
        kept = self._kept([len(blocks) for blocks in stages], has_stages=_has_stages(family))
        if not _has_stages(family):
            keep_blocks(student, stages[0], kept[0])  # type: ignore[arg-type]
            return student
        for blocks, indices in zip(stages, kept, strict=True):
            for index in reversed(range(len(blocks))):
                if index not in indices:
                    del blocks[index]
        setattr(student.config, str(family.depths_field), [len(indices) for indices in kept])
        return student

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


def _has_stages(family: type[Architecture]) -> bool:
    return family.depths_field == "depths"


def _family(config: PretrainedConfig) -> type[Architecture]:
    family = architecture_of(config)
    if family is None or family.depths_field is None:
        raise ModelError(
            f"blocks of a {config.model_type} cannot be left out one by one",
            where="student",
            remedy="use `{kind: width, multiple: 0.5}` or `{kind: config, architecture: ...}`",
        )
    return family
