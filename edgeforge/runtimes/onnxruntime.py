"""ONNX files on ONNX Runtime, on the CPU or, untested on hardware, on a GPU by CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require
from edgeforge.onnx_graph import MODEL
from edgeforge.runtimes import PROCESSOR, Processor, Runtime, _cuda
from edgeforge.runtimes._onnx_decoder import PAST, OnnxDecoder, bytes_per_token, context_length

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

EXACT_PRODUCTS = {"session.x64quantprecision": "1"}
"""8-bit products are summed in full on processors without VNNI too, whose fast instruction saturates."""

FLOAT_INPUTS = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""Products with dequantized weights take their inputs as they are, not rounded to 8 bits."""


PROVIDERS: Mapping[Processor, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""What is asked for, the first of which must be there. Operators that CUDA does not have run on the CPU."""


class Onnxruntime(Runtime):
    """ONNX Runtime's CPU or CUDA provider, all graph optimizations on: what an app that links it gets by default.

    On a GPU a call's time has the copies to it and back in it. Untested on hardware.
    """

    kind: Literal["onnxruntime"] = "onnxruntime"
    processor: Processor = Field(default="cpu", description=PROCESSOR)

    format: ClassVar[str] = "onnx"
    processors: ClassVar[frozenset[str]] = frozenset(PROVIDERS)

    def available(self) -> str | None:
        from importlib.util import find_spec

        if not find_spec("onnxruntime"):
            return "onnxruntime is not installed (pip install 'edgeforge[onnx]')"
        return _without_cuda() if self.processor == "cuda" else None

    def prepare(self) -> None:
        require("onnxruntime.capi.onnxruntime_pybind11_state", "onnx")
        if self.processor == "cuda":
            require("onnxruntime", "onnx").preload_dlls()  # CUDA and cuDNN, where pip brought them

    def open(self, folder: Path, *, threads: int | None = None) -> OnnxSession | OnnxDecoder:
        """See Runtime. Raises ModelError where the file is missing, damaged, or has operators unknown here.

        Raises EnvironmentProblem where a GPU is asked for and ONNX Runtime would run it on the CPU.
        """
        self.prepare()
        session = OnnxSession(folder / MODEL, threads=threads, processor=self.processor)
        return OnnxDecoder(session, folder) if session.remembers else session

    def context_length(self, folder: Path) -> int | None:
        """See Runtime: what the config beside the file says."""
        return context_length(folder)

    def bytes_per_token(self, folder: Path) -> int | None:
        """See Runtime."""
        return bytes_per_token(folder)


class OnnxSession:
    """An opened ONNX file; its first output is what it answers."""

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = None,
        settings: Mapping[str, str] | None = None,
        processor: Processor = "cpu",
    ) -> None:
        """`model`: a file, or the bytes of one. `settings`: entries of the library's session configuration."""
        ort = require("onnxruntime", "onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised; the log would say it a second time
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        for key, value in (settings or {}).items():
            options.add_session_config_entry(key, value)
        self._session = _opened(ort, model, options, processor)
        self._first_output = [self._session.get_outputs()[0].name]
        # Found here and not in `run`, whose every microsecond is part of a measured latency.
        state = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnx")
        self._errors: tuple[type[Exception], ...] = (*_failures(state), ValueError)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See Session. Raises ModelError where the inputs' names, types or shapes are not the file's."""
        try:
            (logits,) = self._session.run(self._first_output, inputs)
        except self._errors as error:
            raise ModelError(f"the file does not run: {_first_line(error)}") from error
        return logits  # type: ignore[no-any-return]

    @property
    def remembers(self) -> bool:
        """Whether keys and values go in and out beside ids and logits."""
        return any(value.name.startswith(PAST) for value in self._session.get_inputs())

    def outputs(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name. Raises ModelError as `run` does."""
        names = [value.name for value in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, inputs), strict=True))
        except self._errors as error:
            raise ModelError(f"the file does not run: {_first_line(error)}") from error

    def interface(self) -> tuple[list[tuple[str, str, list[int | str]]], list[tuple[str, str, list[int | str]]]]:
        """(name, type such as ``tensor(float)``, shape) of every input and of every output; symbols stay words."""
        inputs = [(value.name, value.type, value.shape) for value in self._session.get_inputs()]
        return inputs, [(value.name, value.type, value.shape) for value in self._session.get_outputs()]


def _opened(
    ort: ModuleType, model: Path | bytes, options: onnxruntime.SessionOptions, processor: Processor
) -> onnxruntime.InferenceSession:
    """Raises EnvironmentProblem where it does not run on that processor."""
    wanted = PROVIDERS[processor]
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnx")
    where = str(model) if isinstance(model, Path) else None
    try:
        session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=list(wanted),
            enable_fallback=0,  # by default a session that fails on a GPU goes on on the CPU
        )
    except _failures(state) as error:
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot open it: {_first_line(error)}",
            where=where,
            remedy="export the model again",
        ) from error
    if session.get_providers()[:1] != [wanted[0]]:
        raise EnvironmentProblem(
            f"ONNX Runtime {ort.__version__} would run it on the CPU: {wanted[0]} does not start",
            where=where,
            remedy=_without_cuda() or "install the CUDA and cuDNN that this ONNX Runtime was built for",
        )
    return session


def _without_cuda() -> str | None:
    """Why CUDA cannot be used here, as far as that can be told before a file is opened."""
    if reason := _cuda.missing():
        return reason
    if PROVIDERS["cuda"][0] in require("onnxruntime", "onnx").get_available_providers():
        return None
    return "this ONNX Runtime has no CUDA (pip install --force-reinstall --no-deps onnxruntime-gpu)"


def _failures(state: ModuleType) -> tuple[type[Exception], ...]:
    """Every exception the library defines; they have no base class of their own."""
    return tuple(item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
