"""`edgeforge fetch browser-runner` with a double of npm; the link's real tests ask npm itself."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.fetchers import browser_runner, fetcher_named
from edgeforge.fetchers.browser_runner import BrowserRunner
from edgeforge.links import _browser

CONTENT = {
    "dist/ort.wasm.bundle.min.mjs": b"export {};",
    "dist/ort-wasm-simd-threaded.wasm": b"\0asm",
    "esm/index.min.js": b"export { Wllama };",
    "esm/wasm/wllama.wasm": b"\0asm again",
}
ASKED = "onnxruntime-web@1.30.0|@wllama/wllama@3.8.1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and packages with small files."""
    for name, content in CONTENT.items():
        monkeypatch.setitem(browser_runner.SHA256, Path(name).name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(_browser, "folder", lambda: tmp_path / "browser")
    monkeypatch.setattr("edgeforge.fetchers._registry.shutil.which", lambda name: str(npm(tmp_path, CONTENT)))
    return tmp_path / "browser"


def npm(tmp_path: Path, contents: dict[str, bytes]) -> Path:
    """A program whose `npm pack` leaves a package with these files, whichever of the two is asked for."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    program = tmp_path / "npm"
    program.write_text(f"#!/bin/sh\ncase $2 in {ASKED}) cp {package} $4/package.tgz;; *) exit 1;; esac\n")
    program.chmod(0o755)
    return program


def test_the_files_are_kept_where_the_link_looks(folder, tmp_path, monkeypatch) -> None:
    said: list[str] = []
    assert fetcher_named("browser-runner").fetch(tmp_path / "data", say=said.append) == folder
    kept = {
        name: path.read_bytes() for library in _browser.LIBRARIES.values() for name, path in library.files().items()
    }
    assert kept == {Path(name).name: content for name, content in CONTENT.items()}
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr("edgeforge.fetchers._registry.shutil.which", lambda name: None)
    BrowserRunner().fetch(tmp_path / "data", say=said.append)  # no npm: nothing is fetched again
    assert sum("there already" in text for text in said) == 2


def test_other_files_are_refused(folder, tmp_path, monkeypatch) -> None:
    other = npm(tmp_path, {**CONTENT, "dist/ort-wasm-simd-threaded.wasm": b"something else"})
    monkeypatch.setattr("edgeforge.fetchers._registry.shutil.which", lambda name: str(other))
    with pytest.raises(EnvironmentProblem, match=r"not onnxruntime-web@1.30.0 as it should be: ort-wasm"):
        BrowserRunner().fetch(tmp_path / "data", say=lambda text: None)
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_a_package_without_them_is_refused(folder, tmp_path, monkeypatch) -> None:
    empty = npm(tmp_path, {})
    monkeypatch.setattr("edgeforge.fetchers._registry.shutil.which", lambda name: str(empty))
    with pytest.raises(EnvironmentProblem, match="the package is not what it should be"):
        BrowserRunner().fetch(tmp_path / "data", say=lambda text: None)
