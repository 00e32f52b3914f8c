"""Texts and chats of any origin -> checked `DocumentParts`. Every kind of documents ends here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgeforge.core.errors import DataError
from edgeforge.core.spec import perhaps
from edgeforge.data import ROLES, Document, DocumentParts, Message
from edgeforge.data._texts import Row, checked_text, shown

FORM = 'messages are objects such as {"role": "user", "content": "..."}'


@dataclass(frozen=True)
class Found:
    """What stands at one place of the data, unchecked: a text, or messages; None for what is not there."""

    text: object
    messages: object
    where: str


def make_document_parts(train: Iterable[Found], test: Iterable[Found], *, places: tuple[str, str]) -> DocumentParts:
    """Read and check all documents, once and in order. `places`: what to call the two parts in an error.

    Messages go before a text where both are there. Raises DataError for what is neither, an empty text, a role that
    is none of `ROLES`, and a part without documents.
    """
    parts = tuple(map(_document, train)), tuple(map(_document, test))
    for part, place, name in zip(parts, places, ("training", "test"), strict=True):
        if not part:
            raise DataError(f"the {name} part has no document", where=place, remedy="give it texts or messages")
    return DocumentParts(*parts)


def _document(found: Found) -> Document:
    if found.messages is not None:
        return Document(messages=chat(found.messages, found.where), where=found.where)
    return Document(text=checked_text(Row(found.text, None, found.where)), where=found.where)


def chat(messages: object, where: str) -> tuple[Message, ...]:
    """Messages as JSON has them, checked. Raises DataError."""
    if not isinstance(messages, list) or not messages:
        what = "an empty list" if messages == [] else shown(messages)
        raise DataError(f"messages are a list, and this is {what}", where=where, remedy=FORM)
    return tuple(_message(value, f"{where}, message {number}") for number, value in enumerate(messages, 1))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise DataError("this message has no role and content", where=where, remedy=FORM)
    role = value["role"]
    if role not in ROLES:
        raise DataError(perhaps("no role is named", str(role), list(ROLES)), where=where, remedy=FORM)
    return Message(str(role), checked_text(Row(value["content"], None, where)))
