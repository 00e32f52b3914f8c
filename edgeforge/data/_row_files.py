"""What the kinds that keep many texts in one file share: their options, their digest, and lines of UTF-8."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from edgeforge.core.errors import DataError
from edgeforge.core.spec import digest_of
from edgeforge.data import DataSource, Medium, TextParts
from edgeforge.data._files import existing, file_digest
from edgeforge.data._texts import LABELS_DESCRIPTION, MAX_BYTES, LabelName, Row, make_text_parts

AS_UTF8 = "save the file as UTF-8 (iconv -f windows-1252 -t utf-8 OLD > NEW, if it was written on Windows)"

Paths = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | tuple[str, ...]
    ),
]
"""One path, or several."""


class RowFiles(DataSource):
    """Base of the kinds that read texts and labels, by name, from one file per part."""

    train: str = Field(description="The file to train on. Texts without a label serve distillation.")
    test: str = Field(description="The file to test on.")
    unlabelled: Paths = Field(
        default=(), description="Files of further texts to train on; their labels, if any, are not read."
    )
    text: str = Field(default="text", min_length=1, description="Where the text stands: a key, or a column's name.")
    label: str = Field(default="label", min_length=1, description="Where the label stands.")
    labels: tuple[LabelName, ...] | None = Field(default=None, description=LABELS_DESCRIPTION)

    holds: ClassVar[frozenset[Medium]] = frozenset({"texts"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.data._row_files", "edgeforge.data._texts")

    def digest(self) -> str:
        choices = self.model_dump(mode="json", exclude={"train", "test", "unlabelled"})
        return digest_of({"choices": choices, "files": [file_digest(path) for path in self._paths()]})

    def texts(self) -> TextParts:
        train, test, *unlabelled = self._paths()
        return make_text_parts(
            self.rows(train),
            self.rows(test),
            (row for path in unlabelled for row in self.rows(path, labelled=False)),
            labels=self.labels,
            places=(str(train), str(test)),
        )

    def rows(self, path: Path, *, labelled: bool = True) -> Iterator[Row]:
        """The rows of one file, in order; without their labels unless `labelled`. Raises DataError."""
        raise NotImplementedError

    def _paths(self) -> list[Path]:
        """Training, test and unlabelled files. Raises DataError where one is missing, or the test file comes twice."""
        train, test, *unlabelled = paths = [existing(path) for path in (self.train, self.test, *self.unlabelled)]
        refuse_copies((train, *unlabelled), (test,))
        return paths


def refuse_copies(train: Iterable[Path], test: Iterable[Path]) -> None:
    """Raise DataError where a training file has the content of a test file."""
    tested = {file_digest(path) for path in test}
    for path in train:
        if file_digest(path) in tested:
            raise DataError(
                "this file and the test file hold the same content",
                where=str(path),
                remedy="test on texts that no model was trained on",
            )


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered from 1, with their ends; a byte order mark is left out.

    One line is in memory at a time. Raises DataError for one that is not UTF-8, holds NUL bytes, or is too long.
    """
    try:
        with path.open("rb") as stream:
            number = 0
            while raw := stream.readline(MAX_BYTES + 1):
                number += 1
                yield number, decoded(raw, f"{path}:{number}", first=number == 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from error


def objects(path: Path, remedy: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The objects in a file of JSON lines, and where each stands; blank lines are left out. Raises DataError."""
    for number, line in lines(path):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"not JSON: {error}", where=where, remedy=remedy) from error
            if not isinstance(value, dict):
                raise DataError(f"this is not an object but a {type(value).__name__}", where=where, remedy=remedy)
            yield value, where


def decoded(raw: bytes, where: str, *, first: bool = True, limit: int | None = None) -> str:
    """UTF-8 bytes as text; at the beginning of a file (`first`) without a byte order mark.

    Raises DataError where they are no text, or more than `limit` bytes (absent: MAX_BYTES).
    """
    limit = MAX_BYTES if limit is None else limit
    if len(raw) > limit:
        raise DataError(f"this is longer than {limit:,} bytes", where=where, remedy="shorten it, or leave it out")
    if b"\0" in raw:
        raise DataError("NUL bytes: this is no plain text", where=where, remedy=AS_UTF8)
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}", where=where, remedy=AS_UTF8
        ) from error
