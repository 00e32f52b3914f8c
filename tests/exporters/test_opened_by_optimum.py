"""Exported folders in optimum: opened as they are, the same logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

optimum = pytest.importorskip("optimum.onnxruntime", reason="needs the extra `optimum`")
pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from collections.abc import Callable

    Shipped = Any

TEXTS = (
    "Click to claim: the prize of 1,000,000 is at you, winner! Urgent, urgent, urgent.",
    "the meeting",
    "naïve café",
    "",
)


@pytest.mark.parametrize("name", ["bert", "bert-int8", "roberta", "roberta-int8"])
def test_a_text_folder_opens_as_it_is(shipped: Callable[[str], Shipped], name: str) -> None:
    from transformers import AutoTokenizer

    case = shipped(name)
    model = optimum.ORTModelForSequenceClassification.from_pretrained(case.folder)
    encoded = AutoTokenizer.from_pretrained(case.folder)(
        list(TEXTS), padding=True, truncation=True, return_tensors="pt"
    )
    ids = case.ids(TEXTS)
    assert [row[mask.bool()].tolist() for row, mask in zip(*encoded.values(), strict=True)] == ids
    assert len({len(row) for row in ids}) > 1  # there is padding
    assert len(ids[0]) == 16 < len(case.ids(TEXTS, None)[0])  # and a text that is cut
    np.testing.assert_allclose(model(**encoded).logits.numpy(), case.logits(ids), atol=1e-6, rtol=0)
    assert model.config.id2label == {0: "ham", 1: "spam"}


@pytest.mark.parametrize("name", ["resnet", "resnet-int8"])
def test_an_image_folder_opens_as_it_is(shipped: Callable[[str], Shipped], name: str) -> None:
    from transformers import AutoImageProcessor

    case = shipped(name)
    model = optimum.ORTModelForImageClassification.from_pretrained(case.folder)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8))
    processor = AutoImageProcessor.from_pretrained(case.folder)
    encoded = processor(images, input_data_format="channels_first", return_tensors="pt")
    expected = case.run(pixel_values=((np.stack(images) / 255 - 0.5) / 0.5).astype(np.float32))
    np.testing.assert_allclose(model(**encoded).logits.numpy(), expected, atol=1e-5, rtol=0)
    assert model.config.id2label == {index: str(index) for index in range(10)}


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_the_settings_say_what_the_file_takes(shipped: Callable[[str], Shipped], name: str) -> None:
    case = shipped(name)
    settings, original = (
        json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        for folder in (case.folder, case.tokenizer)
    )
    assert original["model_max_length"] > settings["model_max_length"] == 16
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    kept = original.keys() - {"model_max_length"}
    assert {key: settings[key] for key in kept} == {key: original[key] for key in kept}
