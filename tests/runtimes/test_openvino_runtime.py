"""OpenVINO as a runtime: float32 everywhere, the threads asked for, and errors that say what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge import openvino_graph
from edgeforge.core.errors import ModelError
from edgeforge.exporters.openvino import Openvino as Exporter
from edgeforge.runtimes import runtime_for
from edgeforge.runtimes.onnxruntime import Onnxruntime
from edgeforge.runtimes.openvino import Openvino, OpenvinoSession

if TYPE_CHECKING:
    Digits = Any


@pytest.fixture(scope="module")
def folder(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openvino")
    Exporter().export(digits.torch("resnet"), digits.job(path))
    return path


def images(digits: Digits) -> dict[str, np.ndarray]:
    return {"pixel_values": digits.data.batch("validation", range(6))["pixel_values"].numpy()}


def test_it_gives_what_another_runtime_gives(digits: Digits, folder: Path) -> None:
    runtime = runtime_for("openvino")
    assert isinstance(runtime, Openvino)
    assert runtime.available() is None
    runtime.prepare()
    found = runtime.open(folder).run(images(digits))
    expected = Onnxruntime().open(digits.onnx("resnet").path).run(images(digits))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = runtime.open(folder, threads=1)
    first = again.run(images(digits))
    kept = first.copy()
    again.run({"pixel_values": np.zeros((6, 1, 8, 8), dtype=np.float32)})
    np.testing.assert_array_equal(first, kept)  # an answer is the caller's own


def test_threads_and_precision_are_what_was_asked(folder: Path) -> None:
    session = OpenvinoSession(folder / openvino_graph.MODEL, threads=1)
    compiled = session._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert str(compiled.get_property("PERFORMANCE_HINT")).endswith("LATENCY")


def test_inputs_that_do_not_fit(digits: Digits, folder: Path) -> None:
    session = Openvino().open(folder)
    right = images(digits)["pixel_values"]
    for inputs in (
        {},
        {"image": right},
        {"pixel_values": right, "more": right},
        {"pixel_values": right[:, :, :5]},
        {"pixel_values": right.astype(np.float64)},
    ):
        with pytest.raises(ModelError, match="the file does not run"):
            session.run(inputs)


def test_files_that_do_not_open(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="cannot open it"):
        Openvino().open(tmp_path)
    for name in (openvino_graph.MODEL, openvino_graph.WEIGHTS):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot open it") as caught:
        Openvino().open(tmp_path)
    assert caught.value.where == str(tmp_path / openvino_graph.MODEL)
    assert capfd.readouterr() == ("", "")


def test_a_benchmark_process_runs_it_without_torch(digits: Digits, folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", **images(digits))
    job = {
        "what": "start",
        "cores": [],
        "threads": 1,
        "inputs": str(tmp_path / "inputs.npz"),
        "subjects": {"model": {"runtime": "openvino", "folder": str(folder)}},
    }
    script = """
import sys
from edgeforge.links import _local_worker, _worker
_worker.main(_local_worker.Installed())
sys.exit(" ".join({"torch", "transformers", "onnx", "onnxruntime", "nncf"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(job), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (answer,) = (json.loads(line) for line in done.stdout.splitlines())
    assert set(answer["start"]) == {"load_ms", "first_inference_ms", "peak_rss_mb"}
