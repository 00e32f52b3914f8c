"""What a teacher is asked to go on with: texts and chats from a file, or the beginnings of training windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeforge.core.errors import DataError, ModelError
from edgeforge.core.task import TaskData
from edgeforge.data import Document, Message
from edgeforge.data._documents import chat as checked_chat
from edgeforge.data._row_files import objects
from edgeforge.data._texts import Row, checked_text
from edgeforge.models import chat, tokenizer

KEYS = ("prompt", "messages", "text")
REMEDY = 'every line is one object, such as {"prompt": "Why is the sky blue?"}, {"messages": [...]} or {"text": "..."}'
BATCH = 64


@dataclass(frozen=True)
class Prompt:
    """A text or chat to go on with, and its ids as the teacher reads it."""

    document: Document
    ids: tuple[int, ...]

    def answered(self, answer: str, whole: str) -> Document:
        """With what was written: `answer` alone, or, of a text, the `whole` of it."""
        if not self.document.messages:
            return Document(text=whole)
        return Document(messages=(*self.document.messages, Message("assistant", answer.strip())))


def from_file(path: Path) -> list[Document]:
    """The texts and chats of a file of JSON lines. A `prompt` is a chat of one message. Raises DataError."""
    return [document for document, _ in with_answers(path)]


def with_answers(path: Path) -> list[tuple[Document, str | None]]:
    """The same, each with the right answer that its line has under `answer`, if any."""
    found = []
    for value, where in objects(path, REMEDY):
        answer = value.get("answer")
        found.append((_document(value, where), None if answer is None else str(answer)))
    if not found:
        raise DataError("the file has no prompt", where=str(path), remedy=REMEDY)
    return found


def _document(value: dict[str, Any], where: str) -> Document:
    given = [key for key in KEYS if value.get(key) is not None]
    if len(given) != 1:
        raise DataError("there must be one of 'prompt', 'messages' and 'text'", where=where, remedy=REMEDY)
    if given[0] == "messages":
        messages = checked_chat(value["messages"], where)
        if messages[-1].role == "assistant":
            raise DataError("the assistant has the last word already", where=where, remedy="leave its answer out")
        return Document(messages=messages, where=where)
    text = checked_text(Row(value[given[0]], None, where))
    if given[0] == "text":
        return Document(text=text, where=where)
    return Document(messages=(Message("user", text),), where=where)


def read(documents: Sequence[Document], folder: Path) -> list[Prompt]:
    """The same as the tokenizer in `folder` reads them. Raises ModelError for a chat where it has no chat template."""
    reader, before = tokenizer.read(folder), tokenizer.beginning(folder)
    template = chat.opened(folder) if any(document.messages for document in documents) else None
    found = []
    for document in documents:
        text = template.render(document, asking=True) if template and document.messages else document.text
        ids = list(reader(text, add_special_tokens=False)["input_ids"])
        found.append(Prompt(document, tuple(ids if before is None or document.messages else [before, *ids])))
    return found


def beginnings(data: TaskData, folder: Path, tokens: int) -> list[Prompt]:
    """The first tokens of every training window, but for windows that begin in a chat or with a text's last words.

    Raises ModelError where no window is left.
    """
    special = set(tokenizer.read(folder).all_special_ids)
    before, end = tokenizer.beginning(folder), tokenizer.end_of_text(folder)
    reader, found = tokenizer.read(folder), []
    for ids in _windows(data):
        start = 1 if before is not None else 0
        begun = ids[start : start + tokens]
        if not special.union([end]).intersection(begun):
            asked = begun if before is None else [before, *begun]
            found.append(Prompt(Document(text=reader.decode(begun)), tuple(asked)))
    if not found:
        raise ModelError(
            f"no training window begins with {tokens} tokens of one text",
            where="prompt_tokens",
            remedy="lower it, or give a file of `prompts`",
        )
    return found


def _windows(data: TaskData) -> Iterator[list[int]]:
    size = data.size("train")
    for start in range(0, size, BATCH):
        yield from data.batch("train", range(start, min(size, start + BATCH)))["input_ids"].tolist()


def tested(data: TaskData, folder: Path) -> Iterator[str]:
    """The test part as texts, of many windows each, so that few of its runs of words are cut apart."""
    reader, size = tokenizer.read(folder), data.size("test")
    for start in range(0, size, BATCH):
        ids = data.batch("test", range(start, min(size, start + BATCH)))["input_ids"]
        yield reader.decode(ids.flatten(), skip_special_tokens=True)
