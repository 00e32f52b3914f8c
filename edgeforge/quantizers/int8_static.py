"""Eight-bit weights and activations in ONNX files, with ranges found on training data before shipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.device import Layout
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._calibration import Method
from edgeforge.quantizers._embeddings import Embeddings
from edgeforge.quantizers._static import NEEDS, USES, Choices, Keep, Layouts, Samples, quantize_static

if TYPE_CHECKING:
    from typing import Self


class Int8Static(Quantizer):
    """Static INT8: weights and activations in eight bits, their scales fixed in the file (QDQ).

    In convolutional networks all values stay integers from the image to the last layer. In networks with
    LayerNormalization (transformers, ConvNeXt) only layers with weights compute in integers.
    """

    kind: Literal["int8_static"] = "int8_static"
    samples: Samples = 512
    calibration: Method = Field(
        default="minmax",
        description="What eight bits span: all that was seen, all but a share of outliers, or what loses the least "
        "information.",
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="percentile: the share of values within the range (%)."
    )
    layout: Layouts = "auto"
    keep: Keep = ()
    sensitive: int = Field(
        default=0,
        ge=0,
        description="How many more layers stay in float: those whose quantization alone disturbs the outputs most, "
        "measured on validation data.",
    )
    per_channel: bool = Field(default=True, description="One scale per output channel of a weight, or one for all.")
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
            calibration=self.calibration,
            percentile=self.percentile,
            sensitive=self.sensitive,
            per_channel=self.per_channel,
        )
        return quantize_static(model, job, choices)
