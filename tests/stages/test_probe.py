"""Samples from elsewhere: read as a task's own are, and answered for without a label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import DataError
from edgeforge.core.task import NO_LABEL, model_inputs
from edgeforge.data import _probe
from edgeforge.stages.probe import Probe

if TYPE_CHECKING:
    from tests.conftest import Digits, Mails

TEXTS = "Winner of the lottery!\n\nthe meeting notes\nzebra\n"


def answers(bench: Digits, artifact: Artifact, path: Path, folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    job = bench.job(folder)
    facts = dict(Probe(path=str(path)).run({"model": artifact}, job))
    return facts, np.load(folder / "logits.npy")


def test_texts_are_answered_as_the_tasks_own(mails: Mails, tmp_path: Path) -> None:
    import torch

    from edgeforge.models import loading

    (tmp_path / "p.txt").write_text(TEXTS, encoding="utf-8")
    artifact = mails.torch("bert")
    facts, logits = answers(mails, artifact, tmp_path / "p.txt", tmp_path / "out")
    assert (facts["samples"], facts["reason"], logits.shape) == (3, None, (3, 2))
    data = mails.task.open_probe(str(tmp_path / "p.txt"))
    batch = data.batch("test", range(3))
    assert batch["labels"].tolist() == [NO_LABEL] * 3
    with torch.no_grad():
        expected = loading.load(artifact.path)(**model_inputs(batch)).logits
    assert np.allclose(logits, expected.numpy(), atol=1e-5)


def test_images_of_an_array(digits: Digits, tmp_path: Path) -> None:
    images = digits.task.data.images(None).test.images[range(5)]  # type: ignore[attr-defined]
    np.savez(tmp_path / "p.npz", x=images)
    data = digits.task.open_probe(str(tmp_path / "p.npz"))
    own = digits.data.batch("test", range(5))["pixel_values"]
    assert np.array_equal(data.batch("test", range(5))["pixel_values"].numpy(), own.numpy())
    facts, logits = answers(digits, digits.torch("resnet"), tmp_path / "p.npz", tmp_path / "out")
    assert (facts["samples"], logits.shape) == (5, (5, 10))


def test_images_of_a_folder_are_resized_and_turned_gray(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "sub").mkdir()
    Image.fromarray(np.full((20, 30, 3), 255, dtype=np.uint8)).save(tmp_path / "sub" / "a.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "b.png")
    found = _probe.images(str(tmp_path), (8, 8, 1))
    assert found.array.shape == (2, 8, 8, 1)
    assert found.array.mean(axis=(1, 2, 3)).tolist() == [0.0, 255.0], "sorted by path: b.png, sub/a.png"


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "one", "label": "x"}\n{"text": "two\\nlines"}\n', encoding="utf-8")
    assert _probe.texts(str(tmp_path / "p.jsonl")) == ("one", "two\nlines")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n \n", "the file has no text"),
        ("p.txt", b"caf\xe9\n", "not UTF-8"),
        ("p.jsonl", b'{"label": "x"}\n', "the text is null"),
        ("p.jsonl", b"[1]\n", "not an object"),
        ("p.txt", None, "there is no such file"),
    ],
)
def test_what_is_no_probe_of_texts(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        _probe.texts(str(tmp_path / name))


def test_what_is_no_probe_of_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    np.savez(tmp_path / "other.npz", y=np.zeros((1, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "array.npy", np.zeros((1, 8, 8), dtype=np.uint8))
    np.savez(tmp_path / "colour.npz", x=np.zeros((1, 8, 8, 3), dtype=np.uint8))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for name, message in {
        "empty": "the folder has no image",
        "torn.npz": "no sound .npz file",
        "other.npz": "no sound .npz file",
        "array.npy": "a single array",
        "colour.npz": "the task's are 8 x 8 x 1",
        "objects.npz": "no sound .npz file",
        "gone.npz": "there is no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            _probe.images(str(tmp_path / name), (8, 8, 1))


def test_the_key_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    for name, content in (("a.txt", "one\n"), ("b.txt", "one\n"), ("c.txt", "two\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    one, same, other = (Probe(path=str(tmp_path / name)).identity() for name in ("a.txt", "b.txt", "c.txt"))
    assert one == same != other


def test_outputs_that_are_no_numbers_are_said_to_be_none(mails: Mails, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    (tmp_path / "p.txt").write_text(TEXTS, encoding="utf-8")
    source, broken = mails.torch("bert").path, tmp_path / "broken"
    broken.mkdir()
    for item in source.iterdir():
        (broken / item.name).write_bytes(item.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["classifier.bias"] = weights["classifier.bias"] * np.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    facts, _ = answers(mails, mails.artifact(broken, "torch"), tmp_path / "p.txt", tmp_path / "out")
    assert facts["reason"] == "the outputs hold NaN or infinity"


def test_a_format_that_nothing_opens(mails: Mails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_text(TEXTS, encoding="utf-8")
    monkeypatch.setattr("edgeforge.stages.probe.runtime_for", lambda format, timed: None)
    facts = Probe(path=str(tmp_path / "p.txt")).run({"model": mails.torch("bert")}, mails.job(tmp_path / "out"))
    assert facts == {"samples": 3, "runtime": None, "reason": "no runtime opens torch files"}
