"""Plain text files as documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeforge.core.errors import DataError
from edgeforge.data import text_files
from edgeforge.data.text_files import TextFiles


def written(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def source(folder: Path, **parts: Any) -> TextFiles:
    sound = {"train": written(folder / "a.txt", "First.\r\nLine \u2603"), "test": written(folder / "b.txt", "Second.")}
    return TextFiles(**{**sound, **parts})


def test_each_file_is_a_document(tmp_path: Path) -> None:
    more = written(tmp_path / "c.md", b"\xef\xbb\xbfThird.")
    parts = source(tmp_path, train=[str(tmp_path / "a.txt"), more]).documents()
    source(tmp_path)
    assert [document.text for document in parts.train] == ["First.\r\nLine \u2603", "Third."]
    assert [document.text for document in parts.test] == ["Second."]
    assert parts.train[1].where == more
    assert parts.train[0].messages == ()


def test_a_folder_stands_for_its_texts_in_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.txt", "notes.md"):
        written(tmp_path / "train" / name, f"text of {name}")
    parts = source(tmp_path, train=str(tmp_path / "train")).documents()
    assert [document.text for document in parts.train] == ["text of a/y.txt", "text of a/z.txt", "text of b.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"the folder holds no \.txt files") as caught:
        source(tmp_path, train=str(tmp_path / "empty")).documents()
    assert caught.value.where == str(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9 noir", "not UTF-8: byte 0xe9 at position 3"),
        ("\ufeff{}".encode("utf-16-le"), "NUL bytes"),
        (b"", "the text is empty"),
        (b" \n\t\n", "the text is empty"),
        (b"\xef\xbb\xbf", "the text is empty"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    for part in ("train", "test"):
        path = written(tmp_path / "bad.txt", content)
        with pytest.raises(DataError, match=message) as caught:
            source(tmp_path, **{part: path}).documents()
        assert caught.value.where == path
        assert caught.value.remedy


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_FILE_BYTES", 1000)
    assert source(tmp_path, train=written(tmp_path / "c.txt", "x" * 1000)).documents()
    with pytest.raises(DataError, match="longer than 1,000 bytes"):
        source(tmp_path, train=written(tmp_path / "c.txt", "x" * 1001)).documents()


def test_the_same_file_or_a_copy_is_no_test(tmp_path: Path) -> None:
    copy = written(tmp_path / "copy.txt", "Second.")
    for access in (TextFiles.documents, TextFiles.digest):
        with pytest.raises(DataError, match="hold the same content") as caught:
            access(source(tmp_path, train=[str(tmp_path / "a.txt"), copy]))
        assert caught.value.where == copy
        with pytest.raises(DataError, match="there is no such file"):
            access(source(tmp_path, test=str(tmp_path / "c.txt")))
    with pytest.raises(ValidationError):
        source(tmp_path, train=[])


def test_the_digest_follows_content_not_the_place(tmp_path: Path) -> None:
    digest = source(tmp_path).digest()
    assert source(tmp_path / "elsewhere").digest() == digest
    more = written(tmp_path / "c.txt", "Third.")
    both = [str(tmp_path / "a.txt"), more]
    others = [source(tmp_path, train=part).digest() for part in (both, both[::-1], more)]
    assert len({digest, *others}) == 4
