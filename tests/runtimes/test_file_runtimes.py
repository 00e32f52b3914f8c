"""ONNX Runtime and torch as runtimes: the same answers, quiet, and errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge.core.errors import ModelError
from edgeforge.models import loading
from edgeforge.runtimes import Processor, runtime_for
from edgeforge.runtimes.onnxruntime import EXACT_PRODUCTS, Onnxruntime, OnnxSession
from edgeforge.runtimes.torch_eager import TorchEager

if TYPE_CHECKING:
    Digits = Any


def images(digits: Digits) -> dict[str, np.ndarray]:
    return {"pixel_values": digits.data.batch("validation", range(6))["pixel_values"].numpy()}


def test_a_format_finds_its_runtime() -> None:
    assert isinstance(runtime_for("onnx"), Onnxruntime)
    assert isinstance(runtime_for("torch"), TorchEager)
    assert Onnxruntime().available() is None


def test_both_give_the_models_logits(digits: Digits, processor: Processor) -> None:
    with torch.no_grad():
        pixels = torch.from_numpy(images(digits)["pixel_values"])
        expected = loading.load(digits.torch("resnet").path)(pixels).logits.numpy()
    eager = TorchEager(processor=processor).open(digits.torch("resnet").path).run(images(digits))
    file = Onnxruntime(processor=processor).open(digits.onnx("resnet").path, threads=1).run(images(digits))
    if processor == "cpu":
        np.testing.assert_array_equal(eager, expected)
    # A GPU may round what it multiplies to TF32: 10 bits behind the point.
    atol = 1e-5 if processor == "cpu" else 1e-2 * float(np.abs(expected).max())
    np.testing.assert_allclose(eager, expected, atol=atol)
    np.testing.assert_allclose(file, expected, atol=atol)
    assert (eager.dtype, file.dtype) == (np.float32, np.float32)


def test_runs_repeat_to_the_bit(digits: Digits) -> None:
    session = Onnxruntime().open(digits.onnx("resnet").path)
    np.testing.assert_array_equal(session.run(images(digits)), session.run(images(digits)))


def test_torch_gives_its_threads_back(digits: Digits) -> None:
    before = torch.get_num_threads()
    TorchEager().open(digits.torch("resnet").path, threads=before + 1).run(images(digits))
    assert torch.get_num_threads() == before


def test_a_session_from_bytes_with_settings(digits: Digits) -> None:
    content = (digits.onnx("resnet").path / "model.onnx").read_bytes()
    session = OnnxSession(content, settings=EXACT_PRODUCTS)
    inputs, outputs = session.interface()
    assert inputs == [("pixel_values", "tensor(float)", ["batch", 1, 8, 8])]
    assert outputs == [("logits", "tensor(float)", ["batch", 10])]


@pytest.mark.parametrize("left", [None, 0, 1000])
def test_files_that_do_not_open(
    digits: Digits, tmp_path: Path, capfd: pytest.CaptureFixture[str], left: int | None, processor: Processor
) -> None:
    if left is not None:
        (tmp_path / "model.onnx").write_bytes((digits.onnx("resnet").path / "model.onnx").read_bytes()[:left])
    with pytest.raises(ModelError, match="cannot open it") as caught:
        Onnxruntime(processor=processor).open(tmp_path)
    assert caught.value.where == str(tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_inputs_that_do_not_fit(digits: Digits, capfd: pytest.CaptureFixture[str], processor: Processor) -> None:
    session = Onnxruntime(processor=processor).open(digits.onnx("resnet").path)
    wrong = images(digits)["pixel_values"]
    for inputs in ({"image": wrong}, {"pixel_values": wrong[:, :, :5]}, {"pixel_values": wrong.astype(np.float64)}):
        with pytest.raises(ModelError, match="the file does not run"):
            session.run(inputs)
    assert capfd.readouterr() == ("", "")


def test_torch_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        TorchEager().open(tmp_path)
