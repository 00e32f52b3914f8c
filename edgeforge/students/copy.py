"""The teacher itself, as it is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

from edgeforge.students import Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface, Task


class Copy(Student):
    """A copy of the teacher with its weights: in `mutual`, a teacher that goes on learning."""

    kind: Literal["copy"] = "copy"

    def build(self, teacher: PreTrainedModel, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import check_fits

        student = copy.deepcopy(teacher)
        check_fits(student, interface, where="student")
        return student.float().eval()
