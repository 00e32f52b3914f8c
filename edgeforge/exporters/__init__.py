"""Which file is shipped: one file per format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from edgeforge.core.artifact import Artifact
    from edgeforge.core.stage import Job


class Exporter(Spec):
    """Base of every exporter. Its kind is the artifact format it makes."""

    kind: str
    answers_per: ClassVar[frozenset[str]] = frozenset({"sample", "token"})
    """The tasks whose models it writes, by their own `answers_per`."""

    def export(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """Write the torch artifact `model` as this format into ``job.folder``; return facts (bytes, ops, coverage)."""
        raise NotImplementedError
