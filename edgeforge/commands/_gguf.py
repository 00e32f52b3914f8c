"""GGUF files that a command is given: alone, or in their folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeforge.core.errors import ConfigurationError
from edgeforge.gguf_file import MODEL


def is_one(path: Path) -> bool:
    """Whether a GGUF file is meant, and not a run or a pipeline."""
    return path.suffix == ".gguf" or (path.is_dir() and _inside(path) is not None)


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """A folder that holds the file under the name that runtimes expect. Raises ConfigurationError where none is there.

    For a file of another name it is a temporary one.
    """
    file = path if path.is_file() else _inside(path) if path.is_dir() else None
    if file is None or file.suffix != ".gguf":
        raise ConfigurationError("no GGUF file is there", where=str(path), remedy="name a .gguf file or its folder")
    if file.name == MODEL:
        yield file.parent
        return
    with TemporaryDirectory(prefix="edgeforge-") as name:
        folder = Path(name)
        try:
            (folder / MODEL).symlink_to(file.absolute())
        except OSError:  # Windows asks for a privilege
            shutil.copyfile(file, folder / MODEL)
        yield folder


def _inside(folder: Path) -> Path | None:
    if (folder / "report.json").is_file():
        return None
    found = sorted(folder.glob("*.gguf"))
    return folder / MODEL if folder / MODEL in found else found[0] if len(found) == 1 else None
