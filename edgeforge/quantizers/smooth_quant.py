"""Static INT8 for transformers whose activations have outliers: SmoothQuant in ONNX files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.device import Layout
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._embeddings import Embeddings
from edgeforge.quantizers._static import NEEDS, USES, Choices, Keep, Layouts, Samples, quantize_static

if TYPE_CHECKING:
    from typing import Self


class SmoothQuant(Quantizer):
    """Static INT8 (see int8_static), with outliers of normalised activations first moved into the weights.

    A few channels far larger than the rest make one scale per tensor coarse for all. SmoothQuant (Xiao et al., 2022,
    arXiv:2211.10438) divides each channel by a factor and multiplies the weights that read it by the same: the float
    model stays what it was. Where a residual reads the activation too (BERT and its family), one multiplication is
    added per normalization; else it costs nothing at run time. Networks without LayerNormalization have nothing to
    smooth.
    """

    kind: Literal["smooth_quant"] = "smooth_quant"
    alpha: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="How much of the outliers moves into the weights: 0 nothing of them, 1 all.",
    )
    samples: Samples = 512
    layout: Layouts = "auto"
    keep: Keep = ()
    embeddings: Embeddings = "int8"

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    writes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[tuple[str, ...]] = NEEDS
    uses: ClassVar[tuple[str, ...]] = USES

    def for_layout(self, layout: Layout) -> Self:
        return self.model_copy(update={"layout": layout}) if self.layout == "auto" else self

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Quantizer. Raises ConfigurationError where `keep` names no layer, ModelError where a value is NaN."""
        choices = Choices(
            samples=self.samples,
            layout="arm" if self.layout == "arm" else "x86",
            keep=self.keep,
            embeddings=self.embeddings,
            alpha=self.alpha,
        )
        facts = quantize_static(model, job, choices)
        if "smoothed" not in facts:
            job.progress.warn("smooth_quant found no LayerNormalization in front of a layer: this is int8_static")
        return {**facts, "alpha": self.alpha}
