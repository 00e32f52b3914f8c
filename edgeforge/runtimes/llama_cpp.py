"""GGUF files on llama.cpp, on the CPU or, untested on hardware, on a GPU by CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge import gguf_file
from edgeforge.core.errors import EnvironmentProblem
from edgeforge.gguf_file import MODEL
from edgeforge.runtimes import PROCESSOR, Processor, Runtime, _cuda
from edgeforge.runtimes._llama.library import DISTRIBUTION, EXTRA, library
from edgeforge.runtimes._llama.session import LlamaCppSession


class LlamaCpp(Runtime):
    """llama.cpp's own kernels for this processor, through llama-cpp-python; keys and values are kept as float16.

    Products with quantized weights round their inputs to 8 bits, as everywhere in llama.cpp, so that a quantized file's
    answers differ a little with the number of tokens that are read at once. On a GPU, which is untested, all layers are
    there.
    """

    kind: Literal["llama_cpp"] = "llama_cpp"
    processor: Processor = Field(default="cpu", description=PROCESSOR)

    format: ClassVar[str] = "gguf"
    processors: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    def available(self) -> str | None:
        from importlib.util import find_spec

        missing = f"{DISTRIBUTION} is not installed (pip install 'edgeforge[{EXTRA}]', which compiles for some minutes)"
        if not find_spec("llama_cpp"):
            return missing
        return _without_cuda() if self.processor == "cuda" else None

    def prepare(self) -> None:
        library()

    def open(self, folder: Path, *, threads: int | None = None) -> LlamaCppSession:
        """See Runtime. Raises ModelError where the file is missing or damaged, or of an architecture unknown here.

        Raises EnvironmentProblem where a GPU is asked for and llama.cpp would run it on the CPU.
        """
        if self.processor == "cuda" and (reason := _without_cuda()):
            raise EnvironmentProblem(reason, where=str(folder / MODEL))
        return LlamaCppSession(folder / MODEL, threads=threads, on_gpu=self.processor == "cuda")

    def context_length(self, folder: Path) -> int | None:
        """See Runtime: the length that the model was made for."""
        found = gguf_file.read(folder / MODEL).said("context_length")
        return found if isinstance(found, int) and found > 0 else None

    def bytes_per_token(self, folder: Path) -> int | None:
        """See Runtime: all tensors, and of a table of embeddings that is not the output's too, one row."""
        tensors = gguf_file.read(folder / MODEL).tensors
        rows = {name: tensor.shape[0] for name, tensor in tensors.items() if name == "token_embd.weight"}
        looked_up = rows if "output.weight" in tensors else {}
        return sum(tensor.size_bytes // looked_up.get(name, 1) for name, tensor in tensors.items())


def _without_cuda() -> str | None:
    """Why llama.cpp would leave all layers on the CPU, which it does without a word."""
    if reason := _cuda.missing():
        return reason
    if library().llama_supports_gpu_offload():
        return None
    return (
        f"this llama.cpp has no CUDA (CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-binary "
        f"{DISTRIBUTION} {DISTRIBUTION})"
    )
