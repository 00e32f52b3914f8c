"""Questions with known answers: whether a model that was made smaller can still be talked to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeforge.core.errors import DataError
from edgeforge.data import Document, Message
from edgeforge.data import _documents as documents
from edgeforge.data import _row_files as row_files
from edgeforge.models import chat, tokenizer

REMEDY = 'every line is one object, such as {"prompt": "What is 1 + 1?", "answer": "2"}'
KEYS = ("prompt", "messages", "answer", "pattern")


@dataclass(frozen=True)
class Prompt:
    """A question, and what a right answer is: `answer` word for word, or a text in which `pattern` is found."""

    document: Document
    answer: str | None
    pattern: re.Pattern[str] | None

    def passed(self, answer: str) -> bool:
        """Whether an answer is right. Blanks count once, and how Unicode writes an accent not at all; case counts."""
        if self.pattern is not None:
            return self.pattern.search(answer) is not None
        return _plain(answer) == _plain(self.answer or "")


def encoded(prompts: Sequence[Prompt], folder: Path) -> list[list[int]]:
    """The questions as the tokenizer in `folder` reads them, by its chat template where it has one.

    Raises ModelError where a prompt has messages and the tokenizer no template.
    """
    chats = [_as_chat(prompt.document, templated=chat.template(folder) is not None) for prompt in prompts]
    template = chat.opened(folder) if any(one.messages for one in chats) else None
    reader, before = tokenizer.read(folder), tokenizer.beginning(folder)
    found = []
    for one in chats:
        text = template.render(one, asking=True) if template is not None and one.messages else one.text
        ids = list(reader(text, add_special_tokens=False)["input_ids"])
        found.append(ids if one.messages or before is None else [before, *ids])
    return found


def _as_chat(document: Document, *, templated: bool) -> Document:
    """A plain question as what a user says, where the model chats."""
    if document.messages or not templated:
        return document
    return Document(messages=(Message("user", document.text),), where=document.where)


def read(path: Path) -> list[Prompt]:
    """The prompts of a file of JSON lines. Raises DataError."""
    prompts = [_prompt(value, where) for value, where in row_files.objects(path, REMEDY)]
    if not prompts:
        raise DataError("the file has no prompt", where=str(path), remedy=REMEDY)
    return prompts


def _prompt(value: dict[str, Any], where: str) -> Prompt:
    for pair in (("prompt", "messages"), ("answer", "pattern")):
        if sum(value.get(name) is not None for name in pair) != 1:
            raise DataError(f"there must be one of '{pair[0]}' and '{pair[1]}'", where=where, remedy=REMEDY)
    for name in ("prompt", "answer", "pattern"):
        if not isinstance(value.get(name) or "", str) or (name in value and value[name] == ""):
            raise DataError(f"'{name}' is not a text, or empty", where=where, remedy=REMEDY)
    messages = () if value.get("messages") is None else documents.chat(value["messages"], where)
    if messages and messages[-1].role == "assistant":
        raise DataError("the assistant has the last word already", where=where, remedy="leave its answer out")
    return Prompt(
        Document(text=value.get("prompt") or "", messages=messages, where=where),
        value.get("answer"),
        None if value.get("pattern") is None else _pattern(value["pattern"], where),
    )


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(f"'pattern' is no regular expression: {error}", where=where, remedy="correct it") from error


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
