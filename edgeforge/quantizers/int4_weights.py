"""Weights in 4 bits, activations in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Job
from edgeforge.models.quantized_weights import QuantizedWeight
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._weights import (
    NEEDS,
    USES,
    Awq,
    Embeddings,
    Method,
    MinElements,
    Rounding,
    Samples,
    half_quadratic,
    linear,
    palettize,
    quantize_weights,
)


class Int4Weights(Quantizer):
    """Weights of convolutions, linear layers and embeddings in 4 bits: an eighth of float32's bytes.

    Arithmetic stays float. `linear`: symmetric integers, float16 scales. `palettize`: each weight is
    one of 16 float16 values, found by k-means.
    """

    kind: Literal["int4_weights"] = "int4_weights"
    method: Literal["linear", "palettize"] = Field(
        default="linear",
        description="Evenly spaced values with a scale per block, or 16 free values per group of output channels "
        "(Core ML only).",
    )
    block_size: int | None = Field(
        default=32,
        ge=2,
        description="linear: input channels that share a scale; null: all of an output channel. Where it does not "
        "divide a layer's input channels, that layer has one scale per output channel.",
    )
    scale_search: bool = Field(
        default=True,
        description="linear: try scales that clip the largest weights and keep the one of least squared error (about "
        "a quarter less than without).",
    )
    group_size: int = Field(
        default=16,
        ge=1,
        description="palettize: output channels that share a palette. Where it does not divide a layer's output "
        "channels, that layer has one palette.",
    )
    rounding: Rounding = "nearest"
    awq: Awq = False
    samples: Samples = 128
    embeddings: Embeddings = True
    min_elements: MinElements = 1024

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    writes: ClassVar[frozenset[str]] = frozenset({"coreml", "gguf", "onnx", "openvino"})
    needs: ClassVar[tuple[str, ...]] = NEEDS
    uses: ClassVar[tuple[str, ...]] = USES

    def check(self, export: str) -> None:
        if self.method == "palettize" and (self.awq or self.rounding != "nearest"):
            raise IncompatiblePlanError(
                "palettes are found by k-means, not rounded",
                where="quantize.method",
                remedy="leave `rounding` and `awq` out, or use method: linear",
            )
        if export != "coreml" and self.method == "palettize":
            raise IncompatiblePlanError(
                f"{export} has no palettes", where="quantize.method", remedy="use method: linear, or export to coreml"
            )

    def advice(self, export: str, reads: str) -> str | None:
        if export != "onnx" or reads != "images":
            return None
        return (
            "int4_weights makes ONNX convolutions smaller but slower than float32; only matrix products "
            "(transformers) gain, and large ones most. For CNNs use int8_static"
        )

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        method = Method(self._choose, self.rounding, self.awq, self.samples)
        facts = quantize_weights(
            model, job, spec=self, minimum=self.min_elements, embeddings=self.embeddings, method=method
        )
        if self.method == "palettize":
            return {"scheme": "palettized", "bits": 4, "group_size": self.group_size, **facts}
        return {"scheme": "linear", "bits": 4, "block_size": self.block_size, **facts}

    def _choose(self, weight: np.ndarray) -> QuantizedWeight:
        if self.method == "palettize":
            return palettize(weight, 4, self.group_size)
        if self.rounding == "hqq":
            return half_quadratic(weight, 4, self.block_size)
        return linear(weight, 4, self.block_size, search=self.scale_search)
