"""Making numbers smaller, in the torch model or in a written file, as the quantizer says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.kinds import OneOf
from edgeforge.core.stage import Job, Stage
from edgeforge.quantizers import Quantizer


class Quantize(Stage):
    """Quantize the model, or the file, that the quantizer accepts."""

    kind: Literal["quantize"] = "quantize"
    quantizer: Annotated[Quantizer, OneOf("edgeforge.quantizers")] = Field(description="How numbers are made smaller.")

    in_chain: ClassVar[bool] = False

    def makes_format(self) -> str:
        """A quantizer writes what it reads."""
        (format,) = self.quantizer.accepts
        return format

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        return {"quantization": {"kind": self.quantizer.kind, **self.quantizer.quantize_with(inputs, job)}}
