"""Text files in a folder per class: what is read, and how each mistake is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgeforge.core.errors import DataError
from edgeforge.data import _row_files, text_folder
from edgeforge.data.text_folder import TextFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three training texts and one test text each, and two texts without a class."""
    root = tmp_path / "mails"
    for part, count in (("train", 3), ("test", 1)):
        for name in ("spam", "ham"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                (root / part / name / f"{index}.txt").write_text(f"{part} {name} {index}\n", encoding="utf-8")
    (root / "unlabelled").mkdir()
    (root / "unlabelled" / "b.txt").write_text("second")
    (root / "unlabelled" / "a.txt").write_bytes(b"\xef\xbb\xbffirst")
    return root


def test_classes_and_files_in_alphabetical_order(folder: Path) -> None:
    (folder / "train" / "ham" / "deeper").mkdir()
    (folder / "train" / "ham" / "deeper" / "x.TXT").write_text("caf\u00e9", encoding="utf-8")
    (folder / "train" / "ham" / "notes.md").write_text("no sample")
    (folder / "train" / "ham" / ".hidden.txt").write_text("no sample")
    parts = TextFolder(path=str(folder)).texts()
    assert parts.label_names == ("ham", "spam")
    ham = ["train ham 0\n", "train ham 1\n", "train ham 2\n", "caf\u00e9"]
    assert parts.train.texts == (*ham, "train spam 0\n", "train spam 1\n", "train spam 2\n")
    assert parts.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert parts.test.texts == ("test ham 0\n", "test spam 0\n")
    assert parts.unlabelled == ("first", "second")


def test_the_folder_of_unlabelled_texts_may_be_absent(folder: Path) -> None:
    shutil.rmtree(folder / "unlabelled")
    assert TextFolder(path=str(folder)).texts().unlabelled == ()


def test_labels_give_the_order(folder: Path) -> None:
    parts = TextFolder(path=str(folder), labels=("spam", "ham")).texts()
    assert parts.label_names == ("spam", "ham")
    assert parts.train.labels.tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(DataError, match="no class is named 'ham'; perhaps you meant 'hma'") as caught:
        TextFolder(path=str(folder), labels=("spam", "hma")).texts()
    assert caught.value.where == str(folder / "train" / "ham" / "0.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the text is empty"),
        (b" \n\t", "the text is empty"),
        (b"caf\xe9", "not UTF-8: byte 0xe9 at position 3"),
        (b"a\0b", "NUL bytes"),
        (b"x" * 101, "longer than 100 bytes"),
    ],
)
@pytest.mark.parametrize("place", ["train/spam/1.txt", "test/ham/0.txt", "unlabelled/a.txt"])
def test_a_bad_file_is_named(
    folder: Path, content: bytes, message: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (_row_files, text_folder):
        monkeypatch.setattr(module, "MAX_BYTES", 100)
    (folder / place).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        TextFolder(path=str(folder)).texts()
    assert caught.value.where == str(folder / place)
    assert caught.value.remedy


def test_folders_that_are_missing_empty_or_different(folder: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        TextFolder(path=str(folder / "x")).digest()
    (folder / "test" / "eggs").mkdir()
    with pytest.raises(DataError, match="class 'eggs' has a folder in test but none in train"):
        TextFolder(path=str(folder)).texts()
    (folder / "train" / "eggs").mkdir()
    with pytest.raises(DataError, match="the training part has no text of class 'eggs'"):
        TextFolder(path=str(folder)).texts()
    shutil.rmtree(folder / "test")
    for access in (TextFolder.texts, TextFolder.digest):
        with pytest.raises(DataError, match="there is no folder 'test'"):
            access(TextFolder(path=str(folder)))


def test_the_digest_follows_the_content_not_the_place(folder: Path, tmp_path: Path) -> None:
    digest = TextFolder(path=str(folder)).digest()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "readme.md").write_text("no sample")
    assert TextFolder(path=str(copy)).digest() == digest
    assert TextFolder(path=str(copy), labels=("spam", "ham")).digest() != digest
    (copy / "unlabelled" / "a.txt").write_text("changed")
    changed = TextFolder(path=str(copy)).digest()
    (copy / "train" / "ham" / "1.txt").rename(copy / "train" / "spam" / "9.txt")
    assert len({digest, changed, TextFolder(path=str(copy)).digest()}) == 3
