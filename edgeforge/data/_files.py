"""Content digests of data files, hashed again only when a file changed."""

from __future__ import annotations

import functools
from pathlib import Path

from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import DataError


def existing(path: str, *, folder: bool = False) -> Path:
    """`path` made absolute (relative ones start at the working directory). Raises DataError where it is not there."""
    absolute = Path(path).expanduser().absolute()
    if not (absolute.is_dir() if folder else absolute.is_file()):
        kind = "folder" if folder else "file"
        problem = f"this is not a {kind}" if absolute.exists() else f"there is no such {kind}"
        raise DataError(problem, where=str(absolute), remedy="relative paths start at the working directory")
    return absolute


def file_digest(path: Path) -> str:
    """sha256 of a file's content. Raises DataError where it cannot be read."""
    try:
        status = path.stat()
        return _hash(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from error


@functools.lru_cache(maxsize=1 << 20)
def _hash(path: Path, size_bytes: int, modified_ns: int) -> str:
    return hash_file(path)
