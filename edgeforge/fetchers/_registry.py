"""Packages of the npm and Python registries, brought by the user's own `npm` and `pip` and read in place.

The tools know where their registry is and how to reach it. Nothing of a package is installed, extracted or run.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.fetchers._output import cannot_write

TIMEOUT_S = 900

# What a package of another shape makes json, tarfile, zipfile and their readers raise.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def npm_package(package: str) -> Iterator[Path]:
    """The archive (.tgz) of an npm package ``name@version``, until the block ends. Raises EnvironmentProblem."""
    npm = shutil.which("npm")
    if npm is None:
        raise EnvironmentProblem(
            "the command `npm` is needed and is not installed",
            where=package,
            remedy="install Node.js, which brings npm",
        )
    with _temporary_folder() as folder:
        command = [npm, "pack", package, "--pack-destination", "."]
        yield _downloaded(command, folder, package=package, shown="npm pack", leaves="*.tgz")


@contextmanager
def python_package(package: str) -> Iterator[Path]:
    """The wheel of a Python package ``name==version``, until the block ends. Raises EnvironmentProblem."""
    if importlib.util.find_spec("pip") is None:
        raise EnvironmentProblem(
            "`pip` is needed and is not installed", where=package, remedy=f"{sys.executable} -m ensurepip"
        )
    # A source distribution would run its own code; a wheel is only a zip file.
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--dest", "."]
    command = [sys.executable, "-m", "pip", "download", *options, package]
    with _temporary_folder() as folder:
        yield _downloaded(command, folder, package=package, shown="pip download", leaves="*.whl")


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory()
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()), error) from error
    with folder as name:
        yield Path(name)


def _downloaded(command: Sequence[str], folder: Path, *, package: str, shown: str, leaves: str) -> Path:
    """Run a download in `folder`; the one file that it leaves there, by its pattern."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"`{shown}` did not end within {TIMEOUT_S} s", where=package, remedy="check the network"
        ) from error
    archives = sorted(folder.glob(leaves))
    if done.returncode != 0 or not archives:
        raise EnvironmentProblem(
            f"`{shown}` failed: {last_line(done.stderr)}", where=package, remedy="check the network and the disk"
        )
    return archives[0]


@contextmanager
def reading(package: str) -> Iterator[None]:
    """What a damaged package raises in this block becomes an EnvironmentProblem."""
    try:
        yield
    except _DAMAGED as error:
        raise EnvironmentProblem(
            f"the package is not what it should be: {last_line(str(error))}", where=package, remedy="try again"
        ) from error


def tar_member(archive: tarfile.TarFile, member: tarfile.TarInfo, *, limit_bytes: int) -> bytes:
    """The content of one plain file. Raises ValueError for a link, a folder and a file that is too large."""
    stream = archive.extractfile(member) if member.isfile() else None
    if stream is None or member.size > limit_bytes:
        raise ValueError(f"{member.name} is not a plain file of the expected size")
    return stream.read()


def zip_member(archive: zipfile.ZipFile, name: str, *, limit_bytes: int) -> bytes:
    """The content of one file. Raises KeyError where there is none, ValueError where it is too large."""
    if archive.getinfo(name).file_size > limit_bytes:
        raise ValueError(f"{name} is not a file of the expected size")
    return archive.read(name)


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"
