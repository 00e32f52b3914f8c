"""What pruning removes: one file per structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job
    from edgeforge.criteria import Criterion


class Structure(Spec):
    """Base of every structure."""

    kind: str

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove what `criterion` finds unimportant, in place; return what was removed, for the report.

        Data that a criterion needs comes from the validation-free part of the training split of ``job.task``.
        Raises ModelError where a layer would be left with nothing.
        """
        raise NotImplementedError
