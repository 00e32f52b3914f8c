"""`_worker` for GGUF files on a device that has Python and llama-cpp-python, and no EdgeForge.

`archive` packs this module and the few that it imports, of EdgeForge only, into one file that Python runs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from edgeforge.core import errors, extras
from edgeforge.core.errors import EdgeForgeError, EnvironmentProblem
from edgeforge.links import _memory, _text_worker, _worker
from edgeforge.links._worker import Processor
from edgeforge.runtimes._llama import library, model, session, speculative
from edgeforge.runtimes._llama.session import LlamaCppSession

OLDEST_PYTHON = (3, 10)
MODEL = "model.gguf"
_MODULES = (errors, extras, _memory, _text_worker, _worker, library, model, session, speculative)
_MAIN = f"""\
import sys
if sys.version_info < {OLDEST_PYTHON}:
    print('{{"error": "its Python is too old: {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} is needed to measure GGUF files"}}')
else:
    import runpy
    runpy.run_module({__name__!r}, run_name="__main__")
"""


class GgufFiles:
    """See `_worker.Runtimes`. CUDA is untested on hardware."""

    refusals: tuple[type[Exception], ...] = (EdgeForgeError,)
    version: str | None = None

    def __init__(self) -> None:
        self._on_gpu = False

    def prepare(self, kind: str, processor: Processor) -> Callable[[Path, int], LlamaCppSession]:
        llama = library.library()
        self.version = f"llama.cpp ({library.DISTRIBUTION} {llama.__version__})"
        self._on_gpu = processor == "cuda"
        if self._on_gpu and not llama.llama_supports_gpu_offload():
            raise EnvironmentProblem(f"its {self.version} has no CUDA")
        return self.open

    def open(self, folder: Path, threads: int) -> LlamaCppSession:
        return LlamaCppSession(folder / MODEL, threads=threads, on_gpu=self._on_gpu)


def archive(path: Path) -> None:
    """Write the program, for the device's ``python PATH``. Packages have nothing in them but what is needed."""
    files = {PurePosixPath(*module.__name__.split(".")): Path(str(module.__file__)) for module in _MODULES}
    files[PurePosixPath(*__name__.split("."))] = Path(__file__)
    packages = {folder for name in files for folder in name.parents if folder.parts}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("__main__.py", _MAIN)
        for folder in sorted(packages):
            packed.writestr(f"{folder}/__init__.py", "")
        for name, source in sorted(files.items()):
            packed.write(source, f"{name}.py")


if __name__ == "__main__":
    _worker.main(GgufFiles(), {"start": _text_worker.start, "race": _text_worker.race})
