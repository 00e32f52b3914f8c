"""What fetchers write: files checked against their known sha256, each whole or absent."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import EnvironmentProblem

Files = Mapping[str, bytes]
Digests = Mapping[str, str]
"""sha256 (hex) by file name."""


def is_there(folder: Path, digests: Digests) -> bool:
    """Whether every file is in the folder, and sound."""
    return all((folder / name).is_file() and hash_file(folder / name) == digest for name, digest in digests.items())


def checked(files: Files, digests: Digests, *, what: str, where: str, remedy: str) -> Files:
    """The same files, if they are what they should be; else EnvironmentProblem."""
    for name, expected in digests.items():
        digest = hashlib.sha256(files[name]).hexdigest()
        if digest != expected:
            raise EnvironmentProblem(
                f"what came is not {what} as it should be: {name} has sha256 {digest}, expected {expected}",
                where=where,
                remedy=remedy,
            )
    return files


def bring(folder: Path, digests: Digests, fetch: Callable[[], Files]) -> int:
    """Fetch the files and write them into `folder`; their size in bytes. Raises EnvironmentProblem.

    That the folder can be written is found before the download, not after it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error
    files = fetch()
    for name in digests:
        _write(files[name], folder / name)
    return sum(len(files[name]) for name in digests)


def _write(content: bytes, path: Path) -> None:
    """Write beside `path`, flush, rename: the file is whole or absent."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        draft = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            draft.chmod(0o644)  # mkstemp's own is for the owner only
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> EnvironmentProblem:
    """The error for a path that the disk or its permissions refuse."""
    return EnvironmentProblem(
        f"cannot be written: {error.strerror}",
        where=str(path),
        remedy="choose another folder, or free space",
    )
