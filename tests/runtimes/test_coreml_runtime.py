"""Core ML's runtime, whose Apple half is played by a stand-in: what goes in as an image, what comes out as logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.runtimes import coreml, runtime_for
from edgeforge.runtimes.coreml import Coreml, CoremlSession

LABELS = ["b", "a", "c"]


class Model:
    """Answers like an opened package: a dictionary by label, in no order. It keeps what it was given."""

    def __init__(self, probabilities: list[list[float]]) -> None:
        self.probabilities = probabilities
        self.images: list[Image.Image] = []

    def predict(self, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.images += [one["image"] for one in data]
        answers = self.probabilities[: len(data)]
        return [{"classLabel": "a", "classLabel_probs": dict(sorted(zip(LABELS, row, strict=True)))} for row in answers]


def metadata(mean: list[float], std: list[float]) -> dict[str, str]:
    return {
        coreml.LABELS_KEY: json.dumps(LABELS),
        coreml.PREPROCESSING_KEY: json.dumps({"mean": mean, "std": std}),
    }


def test_every_pixel_value_comes_back_from_its_normalised_form() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    model = Model([[0.2, 0.3, 0.5]])
    normalised = ((pixels / 255 - 0.1307) / 0.3081).astype(np.float32)
    CoremlSession(model, metadata([0.1307], [0.3081])).run({"pixel_values": normalised})
    assert model.images[0].mode == "L"
    assert np.array_equal(np.asarray(model.images[0]), pixels[0, 0])


def test_colours_keep_their_order() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(2, 3, 4, 6)).astype(np.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalised = (pixels / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    model = Model([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    CoremlSession(model, metadata(mean, std)).run({"pixel_values": normalised.astype(np.float32)})
    for index in range(2):
        assert model.images[index].mode == "RGB"
        assert model.images[index].size == (6, 4)
        assert np.array_equal(np.asarray(model.images[index]), pixels[index].transpose(1, 2, 0))


def test_logits_are_in_the_order_of_the_labels_and_finite() -> None:
    session = CoremlSession(Model([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]]), metadata([0.5], [0.5]))
    logits = session.run({"pixel_values": np.zeros((2, 1, 4, 4), np.float32)})
    assert logits.dtype == np.float32
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(probabilities, [[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]], atol=1e-6)


def test_it_is_the_runtime_of_core_ml_packages() -> None:
    assert isinstance(runtime_for("coreml"), Coreml)


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here")
def test_off_the_mac_it_says_so(tmp_path: Path) -> None:
    assert Coreml().available() == "Core ML runs on Apple devices only"
    with pytest.raises(EnvironmentProblem, match="Core ML runs on Apple devices only"):
        Coreml().open(tmp_path)


def test_a_package_that_cannot_be_opened_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("coremltools")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ModelError, match="Core ML cannot open it"):
        Coreml().open(tmp_path)
