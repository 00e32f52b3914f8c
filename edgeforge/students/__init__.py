"""Where a student comes from: one file per kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface, Task


class Student(Spec):
    """Base of every student."""

    kind: str

    def build(self, teacher: PreTrainedModel, task: Task, interface: Interface) -> PreTrainedModel:
        """A new model in float32, before training. New weights follow torch's global seed. Raises ModelError."""
        raise NotImplementedError

    def check(self, teacher: PretrainedConfig) -> None:
        """Refuse, from the teacher's config alone, what `build` could not do. Raises ModelError."""
