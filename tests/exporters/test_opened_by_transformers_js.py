"""Exported folders in Transformers.js under Node: opened as they are, the same logits."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Shipped = Any

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm"),
]

PACKAGE = "@huggingface/transformers@4.3.1"
SCRIPT = Path(__file__).with_name("transformers_js.mjs")
TEXT_MODELS = ("bert", "bert-int8", "roberta", "roberta-int8")
IMAGE_MODELS = ("resnet", "resnet-int8")
TEXTS = ("Click to claim: prize!", "the meeting", "naïve Café", "")
LONG_TEXT = "Click to claim: the prize of 1,000,000 is at you, winner! Urgent, urgent, urgent."
TOLERANCE = 1e-4
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def answers(shipped: Callable[[str], Shipped], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script says of every folder."""
    here, models = tmp_path_factory.mktemp("node"), tmp_path_factory.mktemp("models")
    # Its ONNX Runtime for CPUs is in the package; the script after the installation would fetch one for CUDA.
    _run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(here), PACKAGE], here)
    shutil.copy(SCRIPT, here)
    for name in (*TEXT_MODELS, *IMAGE_MODELS):
        shutil.copytree(shipped(name).folder, models / name)
    request = [
        *({"name": name, "texts": TEXTS, "long": LONG_TEXT} for name in TEXT_MODELS),
        *({"name": name, "images": IMAGES.reshape(3, -1).tolist(), "size": 8} for name in IMAGE_MODELS),
    ]
    (here / "request.json").write_text(json.dumps(request), encoding="utf-8")
    said = _run(["node", SCRIPT.name, str(models), "request.json"], here)
    shutil.rmtree(here / "node_modules")  # half a gigabyte, and pytest keeps its folders
    return json.loads(said)  # type: ignore[no-any-return]


def _run(command: list[str], folder: Path) -> str:
    program = shutil.which(command[0])
    assert program is not None
    done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, encoding="utf-8", timeout=400)
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_folder_opens_as_it_is(shipped: Callable[[str], Shipped], answers: dict[str, Any], name: str) -> None:
    case, answer = shipped(name), answers[name]
    ids = case.ids(TEXTS)
    assert len({len(row) for row in ids}) > 1  # there is padding
    assert [row[: len(own)] for row, own in zip(answer["ids"], ids, strict=True)] == ids
    expected = case.logits(ids)
    np.testing.assert_allclose(answer["logits"], expected, atol=TOLERANCE, rtol=0)
    chances = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    assert [one["label"] for one in answer["labels"]] == [("ham", "spam")[row.argmax()] for row in chances]
    np.testing.assert_allclose([one["score"] for one in answer["labels"]], chances.max(axis=1), atol=TOLERANCE)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_long_text_is_cut_to_what_the_file_takes(
    shipped: Callable[[str], Shipped], answers: dict[str, Any], name: str
) -> None:
    """Transformers.js cuts the last separator too, unlike every other program here."""
    case = shipped(name)
    (whole,) = case.ids((LONG_TEXT,), None)
    assert len(whole) > 16
    expected = case.logits([whole[:16]])
    np.testing.assert_allclose(answers[name]["cut"], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_an_image_folder_opens_as_it_is(shipped: Callable[[str], Shipped], answers: dict[str, Any], name: str) -> None:
    expected = shipped(name).run(pixel_values=((IMAGES / 255 - 0.5) / 0.5).astype(np.float32))
    np.testing.assert_allclose(answers[name]["logits"], expected, atol=TOLERANCE, rtol=0)
