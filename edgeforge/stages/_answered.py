"""Texts by teachers that answer questions (an API, a program): asked, sieved, and kept as documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Progress
from edgeforge.data import Document, Message
from edgeforge.data import _spec as specs
from edgeforge.data._spec_prompts import prompts as prompts_of
from edgeforge.filters import Context, Filter, Sample, refuse_empty, sieve
from edgeforge.filters._examples import examples_in
from edgeforge.filters.duplicates import Duplicates
from edgeforge.filters.overlap_with_test import OverlapWithTest
from edgeforge.teachers._writer import Writer

USUAL: tuple[Filter, ...] = (OverlapWithTest(), Duplicates())
SPEC_COUNT = 200
"""Examples of a spec that are asked for, where the user does not say."""


@dataclass(frozen=True)
class Question:
    """A chat to be answered, and the right answer, where it is known."""

    chat: tuple[Message, ...]
    expected: str | None = None


@dataclass(frozen=True)
class Kept:
    """Documents to train on, and what is known of how they came about."""

    documents: tuple[Document, ...]
    facts: dict[str, Any]


def questions(found: Sequence[tuple[Document, str | None]]) -> list[Question]:
    """Chats from a file of prompts. Raises IncompatiblePlanError for a text to be continued."""
    for document, _ in found:
        if not document.messages:
            raise IncompatiblePlanError(
                "this teacher answers questions, and cannot go on with a text",
                where=document.where,
                remedy="give `prompt` or `messages`, or use `teacher: model`",
            )
    return [Question(document.messages, expected) for document, expected in found]


def answers_to(
    asked: Sequence[Question], teacher: Writer, filters: Sequence[Filter], context: Context, progress: Progress
) -> Kept:
    """What the teacher answers, as chats. Raises DataError where nothing is kept; see `Writer.ask` for the rest."""
    found = teacher.ask([question.chat for question in asked], progress)
    samples = [
        Sample(
            answer.text, asked[answer.prompt].chat[-1].content, answer.prompt, expected=asked[answer.prompt].expected
        )
        for answer in found.usable
    ]
    kept, yields = sieve(filters, samples, context)
    refuse_empty(kept, yields, "generate")
    documents = tuple(
        Document(messages=(*asked[samples[place].group].chat, Message("assistant", samples[place].text.strip())))
        for place in kept
    )
    return Kept(documents, {"asked": found.facts, "yields": [one.as_json() for one in yields]})


def examples_of(
    spec: specs.DataSpec, count: int, teacher: Writer, filters: Sequence[Filter], context: Context, progress: Progress
) -> Kept:
    """Examples that the teacher makes up for a spec, as a student learns them. Raises as `answers_to` does."""
    asked = prompts_of(spec, count, context.seed)
    found = teacher.ask([one.chat for one in asked], progress)
    texts, groups = [one.text for one in found.usable], [one.prompt for one in found.usable]
    examples = examples_in(texts, spec, groups=groups, filters=filters, context=context)
    refuse_empty(examples.kept, examples.yields, "generate")
    facts = {
        "asked": found.facts,
        "yields": [one.as_json() for one in examples.yields],
        "pass_rates": specs.pass_rates(examples.judged),
    }
    return Kept(tuple(spec.chat(example) for example in examples.kept), facts)


def write(kept: Kept, path: Path, as_json: Callable[[Document], dict[str, Any]]) -> dict[str, Any]:
    """Write the documents as JSON lines; return the facts."""
    lines = (json.dumps(as_json(document), ensure_ascii=False) + "\n" for document in kept.documents)
    path.write_text("".join(lines), encoding="utf-8")
    return {"documents": len(kept.documents), **kept.facts}
