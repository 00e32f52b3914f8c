"""`edgeforge fetch android-runner` with a double of npm; the test marked real asks npm itself."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.fetchers import android_runner, fetcher_named
from edgeforge.fetchers.android_runner import AndroidRunner
from edgeforge.links import _runner

CONTENT = {"aarch64": b"arm library", "x86_64": b"pc library"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, a package with small libraries, and no compiler."""
    for machine, content in CONTENT.items():
        monkeypatch.setitem(android_runner.SHA256, _runner.library(machine), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(_runner, "folder", lambda: tmp_path / "runners")
    monkeypatch.setattr(_runner, "built", lambda machine: {})
    monkeypatch.setattr("edgeforge.fetchers._registry.shutil.which", lambda name: str(npm(tmp_path, CONTENT)))
    return tmp_path / "runners"


def npm(tmp_path: Path, contents: dict[str, bytes]) -> Path:
    """A program whose `npm pack` leaves this package."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for machine, content in contents.items():
            member = tarfile.TarInfo(android_runner.MEMBERS[_runner.library(machine)])
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    program = tmp_path / "npm"
    program.write_text(f"#!/bin/sh\n[ $2 = onnxruntime-node@1.30.0 ] && cp {package} $4/onnxruntime-node-1.30.0.tgz\n")
    program.chmod(0o755)
    return program


def test_both_libraries_are_kept_where_the_links_look(folder, tmp_path, monkeypatch) -> None:
    said: list[str] = []
    assert fetcher_named("android-runner").fetch(tmp_path / "data", say=said.append) == folder
    assert (folder / _runner.library("aarch64")).read_bytes() == CONTENT["aarch64"]
    assert (folder / _runner.library("x86_64")).read_bytes() == CONTENT["x86_64"]
    assert not (tmp_path / "data").exists()
    monkeypatch.setattr("edgeforge.fetchers._registry.shutil.which", lambda name: None)
    AndroidRunner().fetch(tmp_path / "data", say=said.append)  # no npm: nothing is fetched again
    assert any("there already" in text for text in said)


def test_another_library_is_refused(folder, tmp_path, monkeypatch) -> None:
    other = npm(tmp_path, {**CONTENT, "aarch64": b"something else"})
    monkeypatch.setattr("edgeforge.fetchers._registry.shutil.which", lambda name: str(other))
    with pytest.raises(EnvironmentProblem, match="not ONNX Runtime as it should be"):
        AndroidRunner().fetch(tmp_path / "data", say=lambda text: None)
    assert not (folder / _runner.library("aarch64")).exists()


@pytest.mark.real
def test_the_real_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_runner, "folder", lambda: tmp_path)
    monkeypatch.setattr(_runner, "built", lambda machine: {})
    AndroidRunner().fetch(tmp_path, say=lambda text: None)
    assert (tmp_path / _runner.library("aarch64")).stat().st_size > 20_000_000
