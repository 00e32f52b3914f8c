"""What pruning removes: one file per structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgeforge.core.spec import Spec
from edgeforge.criteria.magnitude import Magnitude

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job
    from edgeforge.criteria import Criterion, Part


class Structure(Spec):
    """Base of every structure. `removes` names the parts that a criterion judges for it."""

    kind: str
    removes: ClassVar[Part] = "channels"

    def usual_criterion(self) -> Criterion | None:
        """How it is judged what goes where the user does not say; None where no criterion is asked."""
        return Magnitude()

    def check(self, criterion: Criterion | None) -> None:
        """Refuse, from the specs alone, a criterion that has no scores for it. Raises IncompatiblePlanError."""
        if criterion is not None:
            criterion.check_judges(self.removes)

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove what `criterion` finds unimportant, in place; return what was removed, for the report.

        Data that a criterion needs comes from the validation-free part of the training split of ``job.task``. A
        structure that changes what the model reads writes the tokenizer's files into ``job.folder``. In a rehearsal
        (``job.model`` is None) the criterion is `random` and no data is read.
        Raises ModelError where a layer would be left with nothing, IncompatiblePlanError as `check` does.
        """
        raise NotImplementedError
