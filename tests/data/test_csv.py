"""Tables of comma-separated values, against Python's own writer, and how each mistake in one is named."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeforge.core.errors import DataError
from edgeforge.data.csv import Csv

TEXTS = ["buy now", 'she said "yes", twice', "two\nlines", "caf\u00e9 \u2615, \u4f60\u597d", "=SUM(A1)"]
ROWS = [["text", "label"], *([text, "ham" if number % 2 else "spam"] for number, text in enumerate(TEXTS))]
TEST = b"text,label\nfree money,spam\nminutes,ham\n"


def source(folder: Path, train: bytes | None = None, test: bytes = TEST, **options: Any) -> Csv:
    (folder / "test.csv").write_bytes(test)
    if train is None:
        with (folder / "train.csv").open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter=options.get("delimiter", ",")).writerows(ROWS)
    else:
        (folder / "train.csv").write_bytes(train)
    return Csv(train=str(folder / "train.csv"), test=str(folder / "test.csv"), **options)


def test_what_the_writer_wrote_is_read(tmp_path: Path) -> None:
    parts = source(tmp_path).texts()
    assert parts.train.texts == tuple(TEXTS)
    assert parts.train.labels.tolist() == [1, 0, 1, 0, 1]
    assert parts.label_names == ("ham", "spam")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    test = TEST.replace(b",", delimiter.encode())
    assert source(tmp_path, test=test, delimiter=delimiter).texts().train.texts == tuple(TEXTS)


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n"])
def test_what_cannot_be_a_delimiter(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(ValidationError):
        source(tmp_path, b"", delimiter=delimiter)


def test_columns_are_chosen_by_name_and_empty_labels_are_none(tmp_path: Path) -> None:
    train = b"\xef\xbb\xbfid,kind,body\r\n1,spam,buy\r\n\r\n2,,perhaps\r\n3,ham,hello\r\n"
    test = b"body,kind\nfree,spam\nmonday,ham\n"
    (tmp_path / "more.csv").write_bytes(b"body\nonly texts\n")
    parts = source(tmp_path, train, test, text="body", label="kind", unlabelled=str(tmp_path / "more.csv")).texts()
    assert parts.train.texts == ("buy", "hello")
    assert parts.unlabelled == ("perhaps", "only texts")


MISTAKES: dict[str, tuple[bytes, str, int]] = {
    "no header": (b"", "no column is named 'text'", 1),
    "another header": (b"txt,label\nx,ham\n", "no column is named 'text'; perhaps you meant 'txt'", 1),
    "no column of labels": (b"text,class\nx,ham\n", "no column is named 'label'", 1),
    "a column twice": (b"text,label,text\nx,ham,y\n", "2 columns are named 'text'", 1),
    "another delimiter": (b"text;label\nx;ham\n", "no column is named 'text'", 1),
    "a comma without quotes": (b"text,label\na,ham\none, two,ham\n", "the row has 3 cells, the header 2", 3),
    "a cell too few": (b"text,label\na,ham\nb\n", "the row has 1 cells, the header 2", 3),
    "a quote that does not end": (b'text,label\na,ham\n"b\nc,ham\nd,spam\n', "not a table: unexpected end of data", 3),
    "a quote not doubled": (b'text,label\n"a "b" c",ham\n', "not a table: ',' expected after", 2),
    "old line ends": (b"text,label\ra,ham\rb,spam\r", "not a table: new-line character", 1),
    "Latin-1": ("text,label\ncaf\u00e9,ham\n".encode("latin-1"), "not UTF-8: byte 0xe9", 2),
    "NUL bytes": (b"text,label\na,ham\n\0,spam\n", "NUL bytes", 3),
    "an empty text": (b"text,label\na,ham\n  ,spam\n", "the text is empty", 3),
    "a blank label": (b"text,label\na,ham\nb, \n", "the label is empty", 3),
    "a second line of a text": (b'text,label\n"a\nb",ham\n,spam\n', "the text is empty", 4),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_file_and_line(tmp_path: Path, mistake: str) -> None:
    train, message, line = MISTAKES[mistake]
    with pytest.raises(DataError, match=message) as caught:
        source(tmp_path, train).texts()
    assert caught.value.where == f"{tmp_path / 'train.csv'}:{line}"
    assert caught.value.remedy


def test_long_cells_are_read_and_endless_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeforge.data import csv as kind

    before = csv.field_size_limit()
    long = b"word " * 50_000
    assert len(source(tmp_path, b"text,label\n" + long + b",ham\nb,spam\n").texts().train.texts[0]) == len(long)
    assert csv.field_size_limit() == before
    monkeypatch.setattr(kind, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"not a table: field larger than field limit \(1000\)") as caught:
        source(tmp_path, b'text,label\na,ham\n"' + b"b\n" * 1000).texts()
    assert caught.value.where == f"{tmp_path / 'train.csv'}:3"


def test_the_digest_knows_the_delimiter(tmp_path: Path) -> None:
    assert source(tmp_path, b"x").digest() != source(tmp_path, b"x", delimiter=";").digest()
