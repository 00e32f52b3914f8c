"""Some of the teacher's blocks, with their weights (DistilBERT, Sanh et al., 2019, https://arxiv.org/abs/1910.01108)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from edgeforge.students import Student
from edgeforge.students._blocks import Blocks

if TYPE_CHECKING:
    from typing import Self

    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface, Task


class Layers(Student, Blocks):
    """A copy of the teacher with some blocks left out; everything else, the classifier too, is the teacher's.

    Blocks are numbered from 0 through all stages. Where a model has stages, each keeps its first block, which makes
    the stage's width.
    """

    kind: Literal["layers"] = "layers"

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.building", "edgeforge.models.surgery")

    @model_validator(mode="after")
    def _some_are_chosen(self) -> Self:
        if not self.chooses():
            raise ValueError("give either keep or every")
        return self

    def check(self, teacher: PretrainedConfig) -> None:
        self.check_blocks(teacher)

    def build(self, teacher: PreTrainedModel, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import check_fits

        self.check(teacher.config)
        student = self.without_the_others(teacher)
        check_fits(student, interface, where="student")
        return student.float().eval()
