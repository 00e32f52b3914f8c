"""What a file quantizer leaves beside the file: the numbers it chose, so that verification can compute them anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.quantizers._embeddings import Table

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


@dataclass(frozen=True)
class Smoothed:
    """Outliers moved into `weights`: they multiply value / factors, and are multiplied by them; float32, (K,).

    `folded`: the division is in the LayerNormalization that gives the value, and in no operator of its own.
    """

    value: str
    weights: tuple[str, ...]
    folded: bool
    factors: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; float32 factors survive it exactly."""
        return {**vars(self), "weights": list(self.weights), "factors": self.factors.tolist()}


@dataclass(frozen=True)
class Record:
    """The numbers a file quantizer chose, by the names of the float file's values and constants.

    Integers are not in it: whoever checks the file computes them from the float weights. Biases follow from their
    layer: input scale times weight scale. With scheme `dynamic`, inputs of layers with quantized weights get their
    numbers at run time. Values in `layers_only` are rounded only where such layers read them. The scales of
    embedding tables follow from their rows. `smoothed` was done first of all.
    """

    scheme: Literal["static", "dynamic"]
    weights: Mapping[str, Numbers]
    values: Mapping[str, Numbers] = field(default_factory=dict)
    tables: Mapping[str, Table] = field(default_factory=dict)
    smoothed: Sequence[Smoothed] = ()
    layers_only: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Write ``quantization.json``."""
        parts = {
            part: {name: entry.to_json() for name, entry in sorted(getattr(self, part).items())}
            for part in ("values", "weights", "tables")
        }
        smoothed = [entry.to_json() for entry in self.smoothed]
        content = {"scheme": self.scheme, **parts, "smoothed": smoothed, "layers_only": sorted(self.layers_only)}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        (folder / RECORD).write_text(text, encoding="utf-8")

    def coverage(self, original: onnx.ModelProto) -> float:
        """The share of the float file's constants (by count of numbers) that became integers, in percent."""
        floats = {
            name: array.size for name, array in onnx_graph.initializers(original).items() if array.dtype == np.float32
        }
        return 100 * sum(floats[name] for name in (*self.weights, *self.tables)) / max(sum(floats.values()), 1)


def copy_companions(model: Artifact, job: Job) -> None:
    """The JSON files beside the float file (labels, preprocessing) belong to the quantized one too."""
    for name in model.files:
        if name != onnx_graph.MODEL:
            shutil.copyfile(model.path / name, job.folder / name)
