"""Plain text files, each one a document."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import DataError
from edgeforge.core.spec import digest_of
from edgeforge.data import DataSource, DocumentParts, Medium
from edgeforge.data._documents import Found, make_document_parts
from edgeforge.data._files import existing, file_digest
from edgeforge.data._row_files import Paths, decoded, refuse_copies

SUFFIX = ".txt"
MAX_FILE_BYTES = 1_000_000_000
"""A whole file is in memory, and so are its tokens."""


class TextFiles(DataSource):
    """UTF-8 text files, each of which is one document; of a folder, all of its .txt files, in order of their paths."""

    kind: Literal["text_files"] = "text_files"
    train: Paths = Field(min_length=1, description="The files, or folders, to train on.")
    test: Paths = Field(min_length=1, description="The files, or folders, to test on.")

    holds: ClassVar[frozenset[Medium]] = frozenset({"documents"})
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.data._documents",
        "edgeforge.data._row_files",
        "edgeforge.data._texts",
    )

    def digest(self) -> str:
        return digest_of([[file_digest(path) for path in part] for part in self._parts()])

    def documents(self) -> DocumentParts:
        train, test = self._parts()
        return make_document_parts(map(_found, train), map(_found, test), places=("train", "test"))

    def _parts(self) -> tuple[list[Path], list[Path]]:
        """Training and test files. Raises DataError where one is missing, or both hold the same content."""
        train, test = ([file for path in paths for file in _files(path)] for paths in (self.train, self.test))
        refuse_copies(train, test)
        return train, test


def _files(path: str) -> list[Path]:
    if not Path(path).expanduser().is_dir():
        return [existing(path)]
    folder = existing(path, folder=True)
    found = sorted(file for file in folder.rglob(f"*{SUFFIX}") if file.is_file())
    if not found:
        raise DataError(f"the folder holds no {SUFFIX} files", where=str(folder), remedy="name the files themselves")
    return found


def _found(path: Path) -> Found:
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from error
    return Found(decoded(raw, str(path), limit=MAX_FILE_BYTES), None, str(path))
