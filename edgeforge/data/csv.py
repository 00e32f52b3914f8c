"""Texts in tables of comma-separated values."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeforge.core.errors import DataError
from edgeforge.core.spec import perhaps
from edgeforge.data._files import existing
from edgeforge.data._row_files import RowFiles, lines
from edgeforge.data._texts import MAX_BYTES, Row, cell_text


class Csv(RowFiles):
    """A header line, then one text per row (RFC 4180), with text and label in the columns of those names.

    A cell with the delimiter, quotes or line ends in it is quoted, and quotes in it are doubled. A row with an empty
    label is an unlabelled text. Files are UTF-8.
    """

    kind: Literal["csv"] = "csv"
    delimiter: str = Field(default=",", pattern=r'^[^"\r\n]$', description='Between cells; "\\t" for a tab.')

    def rows(self, path: Path, *, labelled: bool = True) -> Iterator[Row]:
        table = _table(path, self.delimiter)
        where, header = next(table, (f"{path}:1", []))
        text = _column(header, self.text, where, "text")
        label = _column(header, self.label, where, "label") if labelled else None
        for where, cells in table:
            if len(cells) != len(header):
                raise DataError(
                    f"the row has {len(cells)} cells, the header {len(header)}",
                    where=where,
                    remedy="quote cells that hold the delimiter, and check `delimiter`",
                )
            yield Row(cells[text], None if label is None else cells[label] or None, where)

    def column(self, name: str) -> tuple[str, ...]:
        table = _table(existing(self.test), self.delimiter)
        where, header = next(table, (self.test, []))
        position = _column(header, name, where, "slices")
        return tuple(cell_text(cells[position], where) for where, cells in table)


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank lines, and where each begins. Raises DataError for broken quoting."""
    with _large_cells():
        reader = csv.reader((line for _, line in lines(path)), delimiter=delimiter, strict=True)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"not a table: {error}",
                    where=where,
                    remedy='quote cells like "this, or ""that""", and check `delimiter`',
                ) from error
            if cells is None:
                return
            if cells:
                yield where, cells


def _column(header: list[str], name: str, where: str, option: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    what = f"{header.count(name)} columns are named '{name}'" if name in header else None
    raise DataError(
        what or perhaps("no column is named", name, header),
        where=where,
        remedy=f"the first line names the columns; set `{option}` to one of them, and check `delimiter`",
    )


@contextmanager
def _large_cells() -> Iterator[None]:
    """The module's limit of 131,072 characters, for all its readers, is below the length of a long article."""
    before = csv.field_size_limit(MAX_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)
