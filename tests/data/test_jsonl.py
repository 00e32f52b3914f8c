"""Files of JSON lines: what is read, and how each mistake in one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeforge.core.errors import DataError
from edgeforge.data import _row_files
from edgeforge.data.jsonl import Jsonl

TRAIN: list[dict[str, Any]] = [
    {"text": "buy now", "label": "spam"},
    {"text": "see you on monday", "label": "ham", "id": 7},
    {"text": "cheap watches", "label": "spam"},
    {"text": "caf\u00e9 \u2615 \U0001f600", "label": "ham"},
]
TEST: list[dict[str, Any]] = [
    {"text": "free money", "label": "spam"},
    {"text": "minutes of the meeting", "label": "ham"},
]


def write(path: Path, rows: list[Any]) -> str:
    """Dicts as JSON; anything else as it stands."""
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(path)


def source(folder: Path, train: list[Any] | None = None, test: list[Any] | None = None, **options: Any) -> Jsonl:
    return Jsonl(
        train=write(folder / "train.jsonl", TRAIN if train is None else train),
        test=write(folder / "test.jsonl", TEST if test is None else test),
        **options,
    )


def refused(data: Jsonl, message: str, where: str) -> DataError:
    with pytest.raises(DataError, match=message) as caught:
        data.texts()
    assert str(caught.value.where).endswith(where)
    assert caught.value.remedy
    assert caught.value.exit_code == 2
    return caught.value


# -- what is read


def test_texts_and_labels_in_order(tmp_path: Path) -> None:
    parts = source(tmp_path).texts()
    assert parts.label_names == ("ham", "spam")
    assert parts.train.texts == tuple(row["text"] for row in TRAIN)
    assert parts.train.labels.tolist() == [1, 0, 1, 0]
    assert parts.train.labels.dtype == "int64"
    assert parts.test.labels.tolist() == [1, 0]
    assert parts.unlabelled == ()


def test_keys_are_chosen_by_name(tmp_path: Path) -> None:
    train = [{"body": {"no": "text"}, "subject": row["text"], "folder": row["label"]} for row in TRAIN]
    test = [{"subject": row["text"], "folder": row["label"]} for row in TEST]
    parts = source(tmp_path, train, test, text="subject", label="folder").texts()
    assert parts.train.texts == tuple(row["text"] for row in TRAIN)
    assert parts.label_names == ("ham", "spam")


def test_lines_without_a_label_and_files_of_them_are_unlabelled(tmp_path: Path) -> None:
    train = [{"text": "first"}, *TRAIN, {"text": "second", "label": None}]
    more = write(tmp_path / "more.jsonl", [{"text": "third"}, {"text": "fourth", "label": "not even a class"}])
    parts = source(tmp_path, train, unlabelled=more).texts()
    assert parts.unlabelled == ("first", "second", "third", "fourth")
    assert parts.train.texts == tuple(row["text"] for row in TRAIN)
    two = write(tmp_path / "two.jsonl", [{"text": "fifth"}])
    assert source(tmp_path, unlabelled=[more, two]).texts().unlabelled == ("third", "fourth", "fifth")


def test_numbers_and_truth_values_are_labels_by_their_text(tmp_path: Path) -> None:
    rows = [{"text": f"text {label}", "label": label} for label in (10, 9, "2", -1)]
    assert source(tmp_path, rows, [*rows, rows[0]]).texts().label_names == ("-1", "2", "9", "10")
    rows = [{"text": f"text {label}", "label": label} for label in (True, False)]
    assert source(tmp_path, rows, [*rows, rows[0]]).texts().label_names == ("false", "true")


def test_labels_give_the_order(tmp_path: Path) -> None:
    parts = source(tmp_path, labels=["spam", "ham"]).texts()
    assert parts.label_names == ("spam", "ham")
    assert parts.train.labels.tolist() == [0, 1, 0, 1]
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": True}]
    assert source(tmp_path, rows, [*rows, rows[0]], labels=[True, 1]).texts().label_names == ("true", "1")


def test_a_byte_order_mark_and_blank_lines_and_other_line_ends_are_no_part_of_the_data(tmp_path: Path) -> None:
    rows = [
        b"\xef\xbb\xbf" + json.dumps(TRAIN[0]).encode(),
        b"",
        *TRAIN[1:3],
        json.dumps(TRAIN[3]).encode() + b"\r",
        b" ",
    ]
    assert source(tmp_path, rows).texts().train.texts == tuple(row["text"] for row in TRAIN)


# -- mistakes

LONE = b'{"text": "half \\ud83d of one", "label": "ham"}'
MISTAKES: dict[str, tuple[list[Any], str, int | str]] = {
    "not JSON": ([*TRAIN, b"{'text': 'x'}"], "not JSON", 5),
    "a line that stops": ([TRAIN[0], b'{"text": "x", "la', *TRAIN], "not JSON", 2),
    "too deep": ([*TRAIN, b"[" * 100_000], "not JSON", 5),
    "a list": ([b'["x", "ham"]', *TRAIN], "not an object but a list", 1),
    "another key": ([*TRAIN, {"txt": "x", "label": "ham"}], "no key is named 'text'; perhaps you meant 'txt'", 5),
    "a text that is a number": ([{"text": 5, "label": "ham"}, *TRAIN], "the text is a number", 1),
    "a text that is null": ([{"text": None, "label": "ham"}, *TRAIN], "the text is null", 1),
    "a text that is a list": ([{"text": ["x"], "label": "ham"}, *TRAIN], "the text is a list", 1),
    "an empty text": ([*TRAIN, {"text": "", "label": "ham"}], "the text is empty", 5),
    "a text of blanks": ([*TRAIN, {"text": " \t\n\u00a0", "label": "ham"}], "the text is empty", 5),
    "an empty text without a label": ([*TRAIN, {"text": " "}], "the text is empty", 5),
    "a NUL character": ([*TRAIN, {"text": "a\0b", "label": "ham"}], "NUL character", 5),
    "NUL bytes": ([*TRAIN, b"\0\0\0\0"], "NUL bytes", 5),
    "half a character": ([*TRAIN, LONE], r"half a character \(\\ud83d\) at position 5", 5),
    "Latin-1": (
        [*TRAIN, '{"text": "caf\u00e9", "label": "ham"}'.encode("latin-1")],
        "not UTF-8: byte 0xe9 at position 13",
        5,
    ),
    "UTF-16": (["\ufeff{}".encode("utf-16-le")], "NUL bytes", 1),
    "an empty label": ([*TRAIN, {"text": "x", "label": ""}], "the label is empty", 5),
    "a fraction as label": ([*TRAIN, {"text": "x", "label": 1.0}], "the label is the fraction 1.0", 5),
    "a list as label": ([*TRAIN, {"text": "x", "label": ["ham"]}], "the label is a list", 5),
    "a class that is not tested": ([*TRAIN, {"text": "x", "label": "hma"}], "test part has no text of class 'hma'", 5),
    "one class": ([TRAIN[0]], "no text of class 'ham'", "test.jsonl:2"),
    "no labels": ([{"text": "x"}], "training part has no labelled text", "train.jsonl"),
    "nothing": ([], "training part has no labelled text", "train.jsonl"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_file_and_line(tmp_path: Path, mistake: str) -> None:
    rows, message, line = MISTAKES[mistake]
    refused(source(tmp_path, rows), message, f"train.jsonl:{line}" if isinstance(line, int) else line)


def test_mistakes_in_the_other_files(tmp_path: Path) -> None:
    refused(source(tmp_path, test=[*TEST, {"text": "x"}]), "this test text has no label", "test.jsonl:3")
    refused(source(tmp_path, test=[*TEST, {"text": "", "label": "ham"}]), "the text is empty", "test.jsonl:3")
    refused(source(tmp_path, test=[]), "test part has no labelled text", "test.jsonl")
    refused(source(tmp_path, test=TEST[:1]), "test part has no text of class 'ham'", "train.jsonl:2")
    bad = write(tmp_path / "more.jsonl", [{"text": "x"}, {"text": 7}])
    refused(source(tmp_path, unlabelled=bad), "the text is a number", "more.jsonl:2")
    refused(source(tmp_path, TRAIN[:1], TEST[:1]), "only the class 'spam'; at least two", "train.jsonl:1")


def test_a_label_outside_the_list_is_named_with_the_nearest(tmp_path: Path) -> None:
    rows = [*TRAIN, {"text": "x", "label": "spma"}]
    error = refused(
        source(tmp_path, rows, labels=["ham", "spam"]),
        "no class is named 'spma'; perhaps you meant 'spam'",
        "train.jsonl:5",
    )
    assert "add it to `labels`" in str(error.remedy)
    refused(source(tmp_path, labels=["ham", "spam", "eggs"]), "training part has no text of class 'eggs'", "")
    with pytest.raises(DataError, match="two classes have the same name"):
        source(tmp_path, labels=["ham", "spam", "spam"]).texts()
    with pytest.raises(ValidationError):
        source(tmp_path, labels=["ham", ""])


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_row_files, "MAX_BYTES", 1000)
    refused(
        source(tmp_path, [*TRAIN, {"text": "x" * 1000, "label": "ham"}]), "longer than 1,000 bytes", "train.jsonl:5"
    )


def test_the_same_file_or_a_copy_of_it_is_no_test(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", TRAIN)
    copy = write(tmp_path / "copy.jsonl", TRAIN)
    test = write(tmp_path / "test.jsonl", TEST)
    for data in (
        Jsonl(train=path, test=path),
        Jsonl(train=path, test=copy),
        Jsonl(train=path, test=test, unlabelled=test),
    ):
        for access in (Jsonl.texts, Jsonl.digest):
            with pytest.raises(DataError, match="hold the same content"):
                access(data)


def test_missing_files_are_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", TRAIN)
    for access in (Jsonl.texts, Jsonl.digest):
        with pytest.raises(DataError, match="there is no such file") as caught:
            access(Jsonl(train="train.jsonl", test="tset.jsonl"))
        assert caught.value.where == str(tmp_path / "tset.jsonl")
    with pytest.raises(DataError, match="this is not a file"):
        Jsonl(train=".", test="train.jsonl").texts()


# -- the digest


def test_the_digest_follows_content_and_choices_not_the_place(tmp_path: Path) -> None:
    data = source(tmp_path)
    digest = data.digest()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert source(elsewhere).digest() == digest
    more = write(tmp_path / "more.jsonl", [{"text": "third"}])
    others = [
        source(elsewhere, labels=["spam", "ham"]).digest(),
        source(elsewhere, text="id").digest(),
        source(elsewhere, unlabelled=more).digest(),
        source(elsewhere, TRAIN[::-1]).digest(),
    ]
    assert len({digest, *others}) == 5
