"""Apple's Core ML, and what every package written here has in common. Runs on macOS; elsewhere files can be read."""

from __future__ import annotations

import functools
import json
import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require
from edgeforge.runtimes import Runtime

if TYPE_CHECKING:
    from edgeforge.runtimes import Session

PACKAGE = "model.mlpackage"
MANIFEST = "Manifest.json"
MODEL_FILE = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS_FOLDER = "Data/com.apple.CoreML/weights"
WEIGHTS_FILE = f"{WEIGHTS_FOLDER}/weight.bin"
IMAGE = "image"
LABEL = "classLabel"
PROBABILITIES = "classLabel_probs"

RECIPE_KEY = "edgeforge.recipe"
VERSION_KEY = "edgeforge.version"
LABELS_KEY = "edgeforge.labels"
PREPROCESSING_KEY = "edgeforge.preprocessing"
"""Metadata: JSON with ``mean`` and ``std`` per channel, of values scaled to [0, 1]; the package applies them itself."""

# Said wherever coremltools is not on macOS or not beside the newest library it knows, and of index constants.
_HARMLESS = (
    "Failed to load _ML",
    "scikit-learn version",
    "Torch version",
    "Saving value type of int64 into a builtin type of int32",
)


@functools.cache
def load_coremltools() -> ModuleType:
    """Import coremltools without what it says on every Linux machine. Raises MissingExtraError."""
    logging.getLogger("coremltools").addFilter(lambda record: not record.getMessage().startswith(_HARMLESS))
    return require("coremltools", "coreml")


class Coreml(Runtime):
    """Core ML through coremltools, on macOS."""

    kind: Literal["coreml"] = "coreml"
    format: ClassVar[str] = "coreml"

    def available(self) -> str | None:
        if sys.platform != "darwin":
            return "Core ML runs on Apple devices only"
        return None if find_spec("coremltools") else "coremltools is not installed (pip install 'edgeforge[coreml]')"

    def prepare(self) -> None:
        load_coremltools()

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """See Runtime. `threads` has no effect: Core ML takes no such setting.

        Raises EnvironmentProblem off macOS, MissingExtraError without coremltools, ModelError for a broken package.
        """
        if reason := self.available():
            raise EnvironmentProblem(reason, where=str(folder), remedy="open it on a Mac")
        coremltools = load_coremltools()
        try:
            model = coremltools.models.MLModel(str(folder / PACKAGE))
            return CoremlSession(model, model.user_defined_metadata)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            raise ModelError(f"Core ML cannot open it: {error}", where=str(folder / PACKAGE)) from error


class CoremlSession:
    """An opened package. It takes the same normalised input as the other formats, and undoes that for the image."""

    def __init__(self, model: Any, metadata: Any) -> None:
        preprocessing = json.loads(metadata[PREPROCESSING_KEY])
        self.model = model
        self.labels = json.loads(metadata[LABELS_KEY])
        self.mean = np.asarray(preprocessing["mean"], dtype=np.float64)[:, None, None]
        self.std = np.asarray(preprocessing["std"], dtype=np.float64)[:, None, None]

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logarithms of the probabilities, which are logits up to one number per image; float32, shape (N, labels).

        `inputs` holds one array, normalised images, float32, shape (N, C, H, W).
        """
        (values,) = inputs.values()
        pixels = np.rint((values * self.std + self.mean) * 255).clip(0, 255).astype(np.uint8)
        answers = self.model.predict([{IMAGE: _image(one)} for one in pixels])
        table = np.asarray([[answer[PROBABILITIES][label] for label in self.labels] for answer in answers], np.float32)
        smallest = np.finfo(np.float16).smallest_subnormal  # probabilities are computed in float16
        logits: np.ndarray = np.log(np.maximum(table, smallest))
        return logits


def _image(pixels: np.ndarray) -> Any:
    """uint8, shape (C, H, W) with 1 or 3 channels -> the PIL image that Core ML takes."""
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
