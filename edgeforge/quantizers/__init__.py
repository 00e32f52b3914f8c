"""How numbers are made smaller: one file per quantizer. A quantizer decides numbers; an exporter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from typing import Self

    from edgeforge.core.artifact import Artifact
    from edgeforge.core.stage import Job
    from edgeforge.device import Layout


class Quantizer(Spec):
    """Base of every quantizer.

    `accepts` names the formats it works on. One that accepts ``torch`` runs before the export: it writes a torch
    artifact whose weights lie on the grid, with ``quantization.safetensors`` (integers, scales) and
    ``quantization.json`` beside them, and the exporter writes those very integers. One that accepts a file format
    runs after the export and rewrites the file.
    """

    kind: str
    accepts: ClassVar[frozenset[str]]
    writes: ClassVar[frozenset[str]]
    """The export formats it can end in."""

    def for_layout(self, layout: Layout) -> Self:
        """The same quantizer with its device-dependent choices made. Most have none."""
        return self

    def check(self, export: str) -> None:
        """Refuse, from the spec alone, what that format cannot say. Raises IncompatiblePlanError."""

    def advice(self, export: str, reads: str) -> str | None:
        """A warning for `plan` where this choice costs more than it gives in that format.

        `reads`: ``images`` or ``texts``; models of texts have no convolutions.
        """
        return None

    def calibration_tokens(self) -> int:
        """How many tokens of training text it wants the importance of a language model's weights measured on.

        Above 0, the stage `importance` measures it on the model before the export, and `quantize_with` finds it in
        ``inputs["importance"]``.
        """
        return 0

    def quantize_with(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        """`quantize` ``inputs["model"]``, with what else the plan measured for it."""
        return self.quantize(inputs["model"], job)

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """Write the quantized artifact into ``job.folder``; return facts (scheme, bits, coverage, layers kept)."""
        raise NotImplementedError
