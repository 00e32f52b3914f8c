"""What every Core ML package written here has in common, and how an opened one is asked."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.core.extras import require
from edgeforge.runtimes._coreml_decoder import CoremlDecoder

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
TOKENS_KEY = "edgeforge.tokens"
"""Metadata: JSON with ``pad_id``, which fills ``input_ids`` up to a fixed length; masked, so absent it is 0."""

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


def session_of(model: Any, metadata: Mapping[str, str], features: Sequence[Any]) -> CoremlSession | CoremlDecoder:
    """An opened package as a session. Raises KeyError, ValueError where `metadata` is not that of a package of ours."""
    if "context" in json.loads(metadata.get(TOKENS_KEY, "{}")):
        return CoremlDecoder(model, metadata[TOKENS_KEY])
    return CoremlSession(model, metadata, features)


class CoremlSession:
    """An opened classifier. It takes the same inputs as the other formats: normalised images, or tokens.

    An image is undone of its normalisation, as the package applies its own; texts are filled up to the length that
    the package takes.
    """

    def __init__(self, model: Any, metadata: Mapping[str, str], features: Sequence[Any] = ()) -> None:
        """`model` answers as MLModel does; `features` describe the inputs (coremltools' protobuf), none: one image.

        Raises KeyError where `metadata` is not that of a package written here.
        """
        self.model = model
        self.labels = json.loads(metadata[LABELS_KEY])
        self._lengths = {
            feature.name: _lengths(feature) for feature in features if feature.type.HasField("multiArrayType")
        }
        self._pad_id = int(json.loads(metadata[TOKENS_KEY])["pad_id"]) if TOKENS_KEY in metadata else 0
        if not self._lengths:
            preprocessing = json.loads(metadata[PREPROCESSING_KEY])
            self.mean = np.asarray(preprocessing["mean"], dtype=np.float64)[:, None, None]
            self.std = np.asarray(preprocessing["std"], dtype=np.float64)[:, None, None]

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logarithms of the probabilities, which are logits up to one number per sample; float32, shape (N, labels).

        `inputs`: normalised images, float32, shape (N, C, H, W); or tokens by name, integers, shape (N, length).
        """
        answers = self.model.predict(self.samples(inputs))
        table = np.asarray([[answer[PROBABILITIES][label] for label in self.labels] for answer in answers], np.float32)
        smallest = np.finfo(np.float16).smallest_subnormal  # probabilities are computed in float16
        logits: np.ndarray = np.log(np.maximum(table, smallest))
        return logits

    def samples(self, inputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """The same inputs, sample by sample, as the package itself takes them."""
        return self._texts(inputs) if self._lengths else self._images(inputs)

    def _images(self, inputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        (values,) = inputs.values()
        pixels = np.rint((values * self.std + self.mean) * 255).clip(0, 255).astype(np.uint8)
        return [{IMAGE: image(one)} for one in pixels]

    def _texts(self, inputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        if inputs.keys() != self._lengths.keys():
            raise ModelError(f"its inputs are {', '.join(self._lengths)}, and given are {', '.join(inputs)}")
        filled = {name: self._filled(name, value.astype(np.int32)) for name, value in inputs.items()}
        count = len(next(iter(filled.values())))
        return [{name: value[index : index + 1] for name, value in filled.items()} for index in range(count)]

    def _filled(self, name: str, values: np.ndarray) -> np.ndarray:
        """(N, length) -> (N, the smallest length not below it that the package takes)."""
        length = values.shape[1]
        wanted = [max(least, length) for least, most in self._lengths[name] if most < 0 or length <= most]
        if not wanted:
            raise ModelError(f"'{name}' has {length} tokens, more than the package takes")
        fill = self._pad_id if name == "input_ids" else 0
        return np.pad(values, ((0, 0), (0, min(wanted) - length)), constant_values=fill)


def _lengths(feature: Any) -> list[tuple[int, int]]:
    """What the last axis of an array input may be: (least, most), most is -1 where there is no limit."""
    array = feature.type.multiArrayType
    flexible = array.WhichOneof("ShapeFlexibility")
    if flexible == "enumeratedShapes":
        return [(int(one.shape[-1]), int(one.shape[-1])) for one in array.enumeratedShapes.shapes]
    if flexible == "shapeRange":
        limits = array.shapeRange.sizeRanges[-1]
        return [(int(limits.lowerBound), int(limits.upperBound))]
    return [(int(array.shape[-1]), int(array.shape[-1]))]


def image(pixels: np.ndarray) -> Any:
    """uint8, shape (C, H, W) with 1 or 3 channels -> the PIL image that Core ML takes."""
    from PIL import Image

    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
