"""What the runtimes decide about a GPU, with stand-ins for the driver's program and the libraries.

No GPU is needed. Whether the answers are right on one, the tests of each runtime ask wherever there is one (`processor`
in conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.runtimes import _cuda, onnxruntime, runtime_on
from edgeforge.runtimes.llama_cpp import LlamaCpp
from edgeforge.runtimes.onnxruntime import Onnxruntime, OnnxSession
from edgeforge.runtimes.torch_eager import TorchEager, TorchSession

if TYPE_CHECKING:
    from tests.conftest import Digits, Tales

ORT = pytest.importorskip("onnxruntime")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of the driver's, and no other program beside it."""

    def install(script: str) -> None:
        program = tmp_path / "bin" / _cuda.PROGRAM
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent))

    return install


@pytest.fixture
def no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that finds a GPU; what the libraries make of it is another question."""
    monkeypatch.setattr(_cuda, "missing", lambda: None)


# -- the driver


def test_gpus_are_named_by_the_driver(driver: Callable[[str], None]) -> None:
    driver('test "$1 $2" = "--query-gpu=name --format=csv,noheader" && echo "NVIDIA L4" && echo "NVIDIA H100"')
    assert _cuda.names() == ["NVIDIA L4", "NVIDIA H100"]
    assert _cuda.missing() is None


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'No devices were found'; exit 6", "No devices were found"),
        ("echo 'the driver is not loaded' >&2; exit 9", "the driver is not loaded"),
        ("exit 0", "it does not say why"),
    ],
)
def test_a_driver_without_a_gpu_is_quoted(driver: Callable[[str], None], script: str, said: str) -> None:
    driver(script)
    assert _cuda.names() == []
    assert _cuda.missing() == f"NVIDIA's driver finds no GPU here ({said})"


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("runtime", [Onnxruntime, TorchEager, LlamaCpp])
def test_without_a_gpu_every_runtime_says_so(runtime: type[Any]) -> None:
    pytest.importorskip("llama_cpp")
    assert runtime().available() is None
    reason = runtime(processor="cuda").available()
    assert reason == "no CUDA GPU is here (nvidia-smi, which comes with NVIDIA's driver, is not installed)"


def test_runtimes_without_a_gpu_side_are_not_asked_to_have_one() -> None:
    assert runtime_on("coreml_reference", "cuda") is None
    assert runtime_on("onnxruntime", "cuda") == Onnxruntime(processor="cuda")
    assert runtime_on("onnxruntime", "cpu") == Onnxruntime()


# -- ONNX Runtime


class Session:
    """Says that it runs on `running`, whatever it was asked for."""

    running: tuple[str, ...] = ()

    def __init__(self, model: Any, options: Any, **asked: Any) -> None:
        self.asked = asked

    def get_providers(self) -> list[str]:
        return list(self.running)

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits")]

    def get_inputs(self) -> list[Any]:
        return []


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """An ONNX Runtime that was built with `built`, whose sessions run on `running`; the names of what was called."""

    def install(*, built: tuple[str, ...], running: tuple[str, ...]) -> list[str]:
        called: list[str] = []
        monkeypatch.setattr(Session, "running", running)
        fake = SimpleNamespace(
            __version__="1.99",
            SessionOptions=SimpleNamespace,
            InferenceSession=Session,
            get_available_providers=lambda: list(built),
            preload_dlls=lambda: called.append("preload_dlls"),
        )
        real = onnxruntime.require
        monkeypatch.setattr(
            onnxruntime, "require", lambda module, extra: fake if module == "onnxruntime" else real(module, extra)
        )
        return called

    return install


BOTH = ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.mark.usefixtures("gpu")
def test_cuda_is_asked_for_first_and_nothing_falls_back(tmp_path: Path, library: Callable[..., list[str]]) -> None:
    called = library(built=BOTH, running=BOTH)
    assert Onnxruntime(processor="cuda").available() is None
    session = Onnxruntime(processor="cuda").open(tmp_path)
    assert isinstance(session, OnnxSession)
    assert session._session.asked == {"providers": list(BOTH), "enable_fallback": 0}
    assert called == ["preload_dlls"]


def test_the_cpu_is_asked_for_alone(tmp_path: Path, library: Callable[..., list[str]]) -> None:
    called = library(built=BOTH, running=BOTH[1:])
    session = Onnxruntime().open(tmp_path)
    assert isinstance(session, OnnxSession)
    assert session._session.asked["providers"] == ["CPUExecutionProvider"]
    assert called == []


@pytest.mark.usefixtures("gpu")
def test_a_session_that_runs_on_the_cpu_all_the_same_is_refused(
    tmp_path: Path, library: Callable[..., list[str]]
) -> None:
    """As ONNX Runtime does where cuDNN is not installed: it warns, and goes on."""
    library(built=BOTH, running=BOTH[1:])
    with pytest.raises(EnvironmentProblem, match=r"1.99 would run it on the CPU: CUDAExecutionProvider does not") as no:
        Onnxruntime(processor="cuda").open(tmp_path)
    assert "cuDNN" in str(no.value.remedy)


@pytest.mark.skipif("CUDAExecutionProvider" in ORT.get_available_providers(), reason="this library has CUDA")
@pytest.mark.usefixtures("gpu")
def test_the_genuine_library_without_cuda_is_refused(digits: Digits) -> None:
    reason = Onnxruntime(processor="cuda").available()
    assert reason is not None
    assert "pip install --force-reinstall --no-deps onnxruntime-gpu" in reason
    with pytest.raises(EnvironmentProblem, match="would run it on the CPU"):
        OnnxSession(digits.onnx("resnet").path / "model.onnx", processor="cuda")


# -- torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="this torch has a GPU")
@pytest.mark.usefixtures("gpu")
def test_a_torch_without_cuda_is_refused(tmp_path: Path) -> None:
    assert "cannot use CUDA here" in str(TorchEager(processor="cuda").available())
    with pytest.raises(EnvironmentProblem, match="cannot use CUDA here"):
        TorchEager(processor="cuda").open(tmp_path)


class Network:
    """Weights that are said to be on a device, and logits of what it is given."""

    def __init__(self, device: str, events: list[str]) -> None:
        self.device, self.events = torch.device(device), events

    def parameters(self) -> Any:
        return iter([SimpleNamespace(device=self.device)])

    def __call__(self, x: torch.Tensor) -> Any:
        self.events.append("computed")
        return SimpleNamespace(logits=x + 1)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", ["synchronized", "moved to cuda", "computed", "synchronized"]),
        ("cpu", ["moved to cpu", "computed"]),
    ],
)
def test_the_gpu_is_waited_for_before_time_is_taken(
    monkeypatch: pytest.MonkeyPatch, device: str, expected: list[str]
) -> None:
    events: list[str] = []

    def to(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
        events.append(f"moved to {where.type}")
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: events.append("synchronized"))
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    session = TorchSession(Network(device, events))  # type: ignore[arg-type]
    answer = session.run({"x": np.zeros((1, 2), np.float32)})
    assert events == expected
    np.testing.assert_array_equal(answer, np.ones((1, 2), np.float32))


# -- llama.cpp


@pytest.fixture
def gguf(tales: Tales, tmp_path: Path) -> Path:
    from edgeforge.exporters.gguf import Gguf

    pytest.importorskip("llama_cpp")
    Gguf(type="f32").export(tales.torch("llama"), tales.job(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("gpu")
def test_a_llama_cpp_without_cuda_is_refused(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    assert "CMAKE_ARGS=-DGGML_CUDA=on pip install" in str(LlamaCpp(processor="cuda").available())
    with pytest.raises(EnvironmentProblem, match="has no CUDA"):
        LlamaCpp(processor="cuda").open(gguf)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("processor", "layers", "there"), [("cuda", -1, True), ("cpu", 0, False)])
def test_all_layers_go_to_the_gpu_or_none(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, processor: str, layers: int, there: bool
) -> None:
    import llama_cpp

    seen: dict[str, Any] = {}
    load, make = llama_cpp.llama_model_load_from_file, llama_cpp.llama_init_from_model

    def loading(path: bytes, settings: Any) -> Any:
        seen["layers"] = settings.n_gpu_layers
        settings.n_gpu_layers = 0
        return load(path, settings)

    def making(model: Any, settings: Any) -> Any:
        seen["there"] = (settings.offload_kqv, settings.op_offload)
        return make(model, settings)

    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", loading)
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", making)
    session = LlamaCpp(processor=processor).open(gguf, threads=1)  # type: ignore[arg-type]
    session.prefill([5, 9, 200])
    session.close()
    assert seen == {"layers": layers, "there": (there, there)}
