"""What the link `browser` needs on this machine: a browser of Chromium's family, and runtimes as WebAssembly.

The page in this folder is EdgeForge's own; the runtimes are fetched once (``edgeforge fetch browser-runner``).
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from edgeforge.core.errors import DeviceProblem


@dataclass(frozen=True)
class Library:
    """An npm package, and the two of its files that a page loads."""

    package: str
    places: tuple[str, str]
    """The folders inside the package where they are."""
    module: str
    wasm: str
    model: str
    """The file that it opens, in a subject's folder."""

    def folder(self) -> Path:
        """Where its files are kept."""
        return folder() / self.package.removeprefix("@").replace("/", "-").replace("@", "-")

    def files(self) -> dict[str, Path]:
        """Its files by name. Raises DeviceProblem where they were not fetched."""
        files = {name: self.folder() / name for name in (self.module, self.wasm)}
        if not all(path.is_file() for path in files.values()):
            raise DeviceProblem(
                f"{self.package} (npm) is not on this machine yet",
                where=str(self.folder()),
                remedy="edgeforge fetch browser-runner",
            )
        return files


LIBRARIES = {
    "onnxruntime": Library(
        package="onnxruntime-web@1.30.0",
        places=("dist", "dist"),
        module="ort.wasm.bundle.min.mjs",
        wasm="ort-wasm-simd-threaded.wasm",
        model="model.onnx",
    ),
    "llama_cpp": Library(
        package="@wllama/wllama@3.8.1",
        places=("esm", "esm/wasm"),
        module="index.min.js",
        wasm="wllama.wasm",
        model="model.gguf",
    ),
}
"""By the kind of the runtime whose files they open."""
PAGE_FILES = ("runner.html", "page.js", "worker.js", "turns.js", "calls.js", "texts.js")
VARIABLE = "EDGEFORGE_BROWSER"
COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
APPLICATIONS = (
    Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
    Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
)


def folder() -> Path:
    """Where the fetched runtimes are kept, in the user's cache folder."""
    return user_cache_path("edgeforge", appauthor=False) / "browser"


def page() -> dict[str, Path]:
    """The page's own files by name."""
    return {name: Path(__file__).parent / name for name in PAGE_FILES}


def program(chosen: Path | None) -> Path:
    """The browser: the one that was chosen, else the one $EDGEFORGE_BROWSER names, else the first that is installed.

    Raises DeviceProblem where there is none.
    """
    if chosen is None and os.environ.get(VARIABLE):
        chosen = Path(os.environ[VARIABLE])
    if chosen is not None:
        named = shutil.which(chosen.expanduser())
        if named is None:
            raise DeviceProblem(
                "this is no program that can be started",
                where=f"browser {chosen}",
                remedy=f"say in `connection: {{binary: ...}}` or ${VARIABLE} where Chromium or Chrome is",
            )
        return Path(named)
    found = next(filter(None, map(shutil.which, COMMANDS)), None)
    found = found or next((str(path) for path in APPLICATIONS if path.is_file()), None)
    if found is None:
        raise DeviceProblem(
            "no browser of Chromium's family is installed",
            where="browser",
            remedy=f"apt-get install chromium, or say where one is in `connection: {{binary: ...}}` or ${VARIABLE}",
        )
    return Path(found)
