"""Files of JSON lines as documents: texts and chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeforge.core.errors import DataError
from edgeforge.data import Document, Message
from edgeforge.data.jsonl import Jsonl

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi", "name": "x"}]
TRAIN: list[Any] = [{"text": "first \u2603", "label": 3}, {"messages": CHAT}, {"text": "third", "messages": None}]
TEST: list[Any] = [{"text": "fourth"}]


def source(folder: Path, train: list[Any] = TRAIN, test: list[Any] = TEST, **options: Any) -> Jsonl:
    for part, rows in (("train", train), ("test", test)):
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return Jsonl(train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"), **options)


def test_texts_and_chats_in_order(tmp_path: Path) -> None:
    parts = source(tmp_path).documents()
    chat = (Message("user", "hello"), Message("assistant", "hi"))
    assert parts.train == (Document("first \u2603"), Document(messages=chat), Document("third"))
    assert parts.test == (Document("fourth"),)
    assert parts.train[1].where == f"{tmp_path / 'train.jsonl'}:2"


def test_a_chat_goes_before_a_text_and_keys_are_chosen(tmp_path: Path) -> None:
    rows = [{"text": "as rendered", "messages": CHAT}, {"body": "x", "talk": CHAT[:1]}]
    assert len(source(tmp_path, rows[:1]).documents().train[0].messages) == 2
    parts = source(tmp_path, rows[1:], [{"body": "y"}], text="body", messages="talk").documents()
    assert parts.train == (Document(messages=(Message("user", "hello"),)),)
    assert parts.test == (Document("y"),)


def test_further_files_are_trained_on(tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"text": "written by the teacher"}), encoding="utf-8")
    parts = source(tmp_path, unlabelled=str(more)).documents()
    assert parts.train[-1] == Document("written by the teacher")
    assert source(tmp_path, unlabelled=str(more)).digest() != source(tmp_path).digest()
    assert source(tmp_path, messages="talk").digest() != source(tmp_path).digest()
    with pytest.raises(DataError, match="hold the same content"):
        source(tmp_path, TEST).documents()


@pytest.mark.parametrize(
    ("row", "message", "place"),
    [
        ({"txt": "x", "id": 1}, r"no key is named 'text' or 'messages' \(there are: 'txt', 'id'\)", ""),
        ({}, r"\(there are: none\)", ""),
        ({"messages": None}, r"no key is named 'text' or 'messages'", ""),
        ({"text": " "}, "the text is empty", ""),
        ({"text": None}, "the text is null", ""),
        ({"text": 7}, "the text is a number", ""),
        ({"messages": []}, "messages are a list, and this is an empty list", ""),
        ({"messages": "hello"}, "messages are a list, and this is", ""),
        ({"messages": ["hello"]}, "this message has no role and content", ", message 1"),
        ({"messages": [CHAT[0], {"role": "user"}]}, "this message has no role and content", ", message 2"),
        ({"messages": [{**CHAT[0], "content": ""}]}, "the text is empty", ", message 1"),
        ({"messages": [{**CHAT[0], "content": None}]}, "the text is null", ", message 1"),
        ({"messages": [{**CHAT[0], "content": [{"type": "text"}]}]}, "the text is a list", ", message 1"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "perhaps you meant 'assistant'", ", message 1"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "no role is named", ", message 1"),
        ("{", "not JSON", ""),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path: Path, row: Any, message: str, place: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        source(tmp_path, [*TRAIN, row]).documents()
    assert str(caught.value.where).endswith(f"train.jsonl:4{place}")
    assert caught.value.remedy


def test_a_part_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the test part has no document") as caught:
        source(tmp_path, test=["", " "]).documents()
    assert str(caught.value.where).endswith("test.jsonl")
