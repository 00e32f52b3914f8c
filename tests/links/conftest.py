"""Models whose cost is known, and the tools that a link needs."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeforge.links import Subject, Workload


class Silent:
    """Progress that nobody reads; a warning is a failure."""

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def make_dense(folder: Path, width: int, opset: int = 17) -> Path:
    """(N, 8) -> products with an (8, width), a (width, width) and a (width, 2) matrix."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((8, width), (width, width), (width, 2))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 8), ("logits", 2))
    ]
    tensors = [numpy_helper.from_array(value, f"w{index}") for index, value in enumerate(weights)]
    graph = helper.make_graph(nodes, "dense", ends[:1], ends[1:], tensors)
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    save(model, folder / "model.onnx")
    return folder


def make_workload(tmp_path: Path, subjects: dict[str, Path], **changes: Any) -> Workload:
    """Thirty samples of 1 ms, one start each, on four equal inputs."""
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.ones((4, 8), np.float32))
    return Workload(
        **{
            "subjects": {name: Subject(runtime="onnxruntime", folder=folder) for name, folder in subjects.items()},
            "inputs": inputs,
            "threads": 1,
            "samples": 30,
            "starts": dict.fromkeys(subjects, 1),
            "warmup": 1,
            "min_sample_ms": 1.0,
            **changes,
        }
    )


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture
def dense() -> Callable[..., Path]:
    return make_dense


@pytest.fixture
def workload() -> Callable[..., Workload]:
    return make_workload


@pytest.fixture(scope="session")
def needs() -> Callable[[str, str], str]:
    """Command -> its path. Without it the test is skipped, and fails where CI says that nothing may be skipped."""

    def find(command: str, package: str) -> str:
        found = shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")
        if found is None:
            reason = f"the command {command} is needed: apt-get install {package}"
            pytest.fail(reason) if os.environ.get("EDGEFORGE_CI") else pytest.skip(reason)
        return str(found)

    return find


@pytest.fixture(scope="session")
def native_runner(tmp_path_factory: pytest.TempPathFactory, needs: Callable[[str, str], str]) -> Iterator[str]:
    """The native runner of this machine's processor, in a cache folder of the tests'; the machine's name.

    Its ONNX Runtime is the one inside the Python package, so that nothing is fetched.
    """
    import onnxruntime

    from edgeforge.links import _runner

    machine = platform.machine()
    if platform.system() != "Linux" or machine not in _runner.MACHINES:
        pytest.skip(f"the native runner is for Linux devices, and a stand-in runs on this machine ({machine})")
    needs("gcc", "gcc")
    folder = tmp_path_factory.mktemp("runners")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (folder / _runner.library(machine)).symlink_to(library)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_runner, "folder", lambda: folder)
        yield machine
