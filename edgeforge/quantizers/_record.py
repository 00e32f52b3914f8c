"""What a file quantizer leaves beside the file: the numbers it chose, so that verification can compute them anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job

if TYPE_CHECKING:
    import onnx

RECORD = "quantization.json"


@dataclass(frozen=True)
class Numbers:
    """Scale and zero point of a tensor, and their axis where they are per channel. `type`: uint8 or int8."""

    type: str
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; float32 scales survive it exactly."""
        return {
            "type": self.type,
            "scale": self.scale.tolist(),
            "zero_point": self.zero_point.tolist(),
            "axis": self.axis,
        }


def record(
    job: Job, scheme: Literal["static", "dynamic"], *, values: Mapping[str, Numbers], weights: Mapping[str, Numbers]
) -> None:
    """Write ``quantization.json``: the numbers by the names of the float file's values and constants.

    Integers are not in it: whoever checks the file computes them from the float weights. Biases follow from their
    layer: input scale times weight scale. With scheme `dynamic`, inputs of layers with quantized weights get their
    numbers at run time.
    """
    content = {
        "scheme": scheme,
        "values": {name: numbers.to_json() for name, numbers in sorted(values.items())},
        "weights": {name: numbers.to_json() for name, numbers in sorted(weights.items())},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    (job.folder / RECORD).write_text(text, encoding="utf-8")


def coverage(original: onnx.ModelProto, weights: Mapping[str, Numbers]) -> float:
    """The share of the float file's constants (by count of numbers) that became integers, in percent."""
    floats = {
        name: array.size for name, array in onnx_graph.initializers(original).items() if array.dtype == np.float32
    }
    return 100 * sum(floats[name] for name in weights) / max(sum(floats.values()), 1)


def copy_companions(model: Artifact, job: Job) -> None:
    """The JSON files beside the float file (labels, preprocessing) belong to the quantized one too."""
    for name in model.files:
        if name != onnx_graph.MODEL:
            shutil.copyfile(model.path / name, job.folder / name)
