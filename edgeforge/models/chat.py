"""Chats as the text that a model reads, by the template that its tokenizer brings.

A template is a Jinja program from a file that somebody else wrote. It runs in a sandbox, and is refused where it
reaches for anything but the messages.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeforge.core.errors import DataError, ModelError
from edgeforge.data import Document, Message
from edgeforge.models import tokenizer
from edgeforge.models.folder import read_json

FILE = "chat_template.jinja"
KEY = "chat_template"
TODAY = datetime.datetime(2024, 7, 26)
"""What a template is told when it asks for the date: what it makes must be the same tomorrow."""

Span = tuple[int, int]
"""First character, and the one after the last."""


def template(folder: Path) -> str | None:
    """The chat template of the tokenizer in a folder; None where it has none. Raises ModelError."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    found = read_json(folder / tokenizer.SETTINGS).get(KEY) if (folder / tokenizer.SETTINGS).is_file() else None
    if isinstance(found, list):  # several, by name
        found = {one["name"]: one["template"] for one in found}.get("default")
    return found if isinstance(found, str) else None


def opened(folder: Path) -> ChatTemplate:
    """The chat template of the tokenizer in a folder, ready to render. Raises ModelError where there is none."""
    source = template(folder)
    if source is None:
        raise ModelError(
            "the model's tokenizer has no chat template, and the data holds messages",
            where=str(folder),
            remedy=f"put {FILE} beside {tokenizer.MAIN}, or use texts",
        )
    return ChatTemplate(source, tokenizer.read(folder).special_tokens_map, str(folder))


@dataclass(frozen=True)
class ChatTemplate:
    """A template, the special tokens that it may name, and the folder it is from."""

    source: str
    names: Mapping[str, str]
    folder: str

    def render(self, chat: Document, *, asking: bool = False) -> str:
        """The messages of `chat` as one text; with what an answer begins with, when `asking`.

        Raises DataError for messages that the template refuses or leaves out, and ModelError where it cannot be used.
        """
        text = self._rendered(chat.messages, asking=asking, where=chat.where)
        for number, message in enumerate(chat.messages, 1):
            # Its last line only: some templates take out what a model thought before it answered.
            if message.content.strip().splitlines()[-1] not in text:
                raise DataError(
                    f"the model's chat template leaves out what the role '{message.role}' says",
                    where=f"{chat.where}, message {number}",
                    remedy="use roles that the model knows, or another model",
                )
        return text

    def answers(self, chat: Document) -> tuple[str, list[Span]]:
        """The messages as one text, and where in it the assistant speaks: its turns, without what announces them.

        Raises what `render` does, and ModelError where the template changes messages when others follow.
        """
        whole = self.render(chat)
        spans = []
        for number, message in enumerate(chat.messages):
            if message.role == "assistant":
                before, turn = chat.messages[:number], chat.messages[: number + 1]
                announced = self._rendered(before, asking=True, where=chat.where)
                if not whole.startswith(announced):
                    announced = self._rendered(before, asking=False, where=chat.where)
                spoken = self._rendered(turn, asking=False, where=chat.where)
                if not (whole.startswith(announced) and whole.startswith(spoken) and len(announced) < len(spoken)):
                    raise ModelError(
                        "the chat template changes earlier messages when others follow, so that answers cannot be told "
                        "from questions",
                        where=chat.where,
                        remedy="set `answers_only: false`, or give every answer a chat of its own",
                    )
                spans.append((len(announced), len(spoken)))
        return whole, spans

    def _rendered(self, messages: Sequence[Message], *, asking: bool, where: str) -> str:
        said = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return _compiled(self.source).render(messages=said, add_generation_prompt=asking, tools=None, **self.names)
        except _Refused as error:
            raise DataError(
                f"the model's chat template refuses these messages: {error}",
                where=where,
                remedy="give the roles in the order that the model knows",
            ) from error
        except SecurityError as error:
            raise ModelError(
                f"the chat template reaches for more than the messages: {error}",
                where=self.folder,
                remedy="do not use this model, or replace its chat template",
            ) from error
        except Exception as error:  # a template is a program, and may fail in any way
            raise ModelError(
                f"the chat template fails: {type(error).__name__}: {error}",
                where=self.folder,
                remedy="repair the template",
            ) from error


class _Refused(TemplateError):
    """A template's own word against the messages."""


def _refuse(message: str) -> NoReturn:
    raise _Refused(message)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's own gives an undefined value for a forbidden attribute, which prints as nothing; this one stops."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"the attribute {attribute!r} of a {type(obj).__name__}")


class _Generation(Extension):
    """``{% generation %}``, by which newer templates mark answers: its content as it stands."""

    tags = {"generation"}  # noqa: RUF012 (the base class has it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    # The settings and names are those that templates are written for: transformers' own.
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
