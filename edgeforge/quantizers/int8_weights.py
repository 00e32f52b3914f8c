"""Weights in 8 bits, activations in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.artifact import Artifact
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
    quantize_weights,
)


class Int8Weights(Quantizer):
    """Weights of convolutions, linear layers and embeddings as 8-bit integers with float16 scales.

    Symmetric; arithmetic stays float. A quarter of float32's bytes, at hardly any loss.
    """

    kind: Literal["int8_weights"] = "int8_weights"
    block_size: int | None = Field(
        default=None,
        ge=2,
        description="Input channels that share a scale; null: all of an output channel. Where it does not divide a "
        "layer's input channels, that layer has one scale per output channel.",
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

    def advice(self, export: str, reads: str) -> str | None:
        if export != "onnx" or reads != "images":
            return None
        return (
            "int8_weights makes ONNX files smaller but convolutions slower than in float32: "
            "the weights are multiplied out at every run; int8_static or int8_dynamic is as small and faster"
        )

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        facts = quantize_weights(
            model,
            job,
            spec=self,
            minimum=self.min_elements,
            embeddings=self.embeddings,
            method=Method(self._choose, self.rounding, self.awq, self.samples),
        )
        return {"scheme": "linear", "bits": 8, "block_size": self.block_size, **facts}

    def _choose(self, weight: np.ndarray) -> QuantizedWeight:
        if self.rounding == "hqq":
            return half_quadratic(weight, 8, self.block_size)
        return linear(weight, 8, self.block_size)
