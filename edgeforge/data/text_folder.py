"""Text files in a folder per class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import digest_files
from edgeforge.core.errors import DataError
from edgeforge.core.spec import digest_of
from edgeforge.data import DataSource, Medium, TextParts
from edgeforge.data._class_folders import class_names, files_below, files_by_class, part_folder
from edgeforge.data._files import existing, file_digest
from edgeforge.data._row_files import decoded
from edgeforge.data._texts import LABELS_DESCRIPTION, MAX_BYTES, LabelName, Row, make_text_parts

SUFFIXES = frozenset({".txt"})
UNLABELLED = "unlabelled"


class TextFolder(DataSource):
    """`path/train/CLASS/*.txt` and `path/test/CLASS/*.txt`: one UTF-8 file per text, one folder per class.

    Texts in `path/unlabelled/*.txt`, if there is such a folder, serve distillation. Other files are left out.
    """

    kind: Literal["text_folder"] = "text_folder"
    path: str = Field(description="The folder that holds train/ and test/.")
    labels: tuple[LabelName, ...] | None = Field(default=None, description=LABELS_DESCRIPTION)

    holds: ClassVar[frozenset[Medium]] = frozenset({"texts"})
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.data._class_folders",
        "edgeforge.data._row_files",
        "edgeforge.data._texts",
    )

    def digest(self) -> str:
        root = existing(self.path, folder=True)
        folders = [part_folder(root, "train"), part_folder(root, "test"), root / UNLABELLED]
        files = {
            file.relative_to(root).as_posix(): file_digest(file)
            for folder in folders
            for file in files_below(folder, SUFFIXES)
        }
        return digest_of({"files": digest_files(files), "labels": self.labels})

    def texts(self) -> TextParts:
        root = existing(self.path, folder=True)
        return make_text_parts(
            _rows(root, "train"),
            _rows(root, "test"),
            (Row(_content(file), None, str(file)) for file in files_below(root / UNLABELLED, SUFFIXES)),
            labels=self.labels or class_names(root),
            places=(str(root / "train"), str(root / "test")),
        )


def _rows(root: Path, part: str) -> Iterator[Row]:
    return (Row(_content(file), name, str(file)) for name, file in files_by_class(root, part, SUFFIXES))


def _content(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return decoded(stream.read(MAX_BYTES + 1), str(file))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file), remedy="check its permissions") from error
