"""Texts by teachers that answer questions (an API, a program): asked, sieved, and kept as documents."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Progress
from edgeforge.data import Document, Message
from edgeforge.data import _spec as specs
from edgeforge.data._spec_prompts import prompts as prompts_of
from edgeforge.data._spec_prompts import question
from edgeforge.filters import Context, Filter, Sample, refuse_empty, sieve
from edgeforge.filters._examples import examples_in
from edgeforge.filters.agreement import Agreement
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


def check_opinions(spec: str | None, filters: Sequence[Filter], opinions: int) -> None:
    """Examples of a spec are questions of their own: nothing can agree before some are answered again.

    Raises IncompatiblePlanError.
    """
    agree = any(isinstance(one, Agreement) for one in filters)
    if spec is not None and agree and not opinions:
        raise IncompatiblePlanError(
            "`agreement` compares answers to one question, and each example of a `spec` is another question",
            where="filters",
            remedy="set `opinions: 3`: the teacher answers each made-up input so often again",
        )
    if opinions and (spec is None or not agree):
        raise IncompatiblePlanError(
            "`opinions` are further answers to what was made up for a `spec`, which `agreement` compares",
            where="opinions",
            remedy="add `agreement` to the `filters` of a stage with a `spec`; for `prompts`, raise the teacher's "
            "`samples`",
        )


@dataclass(frozen=True)
class Wanted:
    """So many examples of a spec, and how often the teacher is to answer the question of each anew."""

    spec: specs.DataSpec
    count: int = SPEC_COUNT
    opinions: int = 0


def examples_of(
    wanted: Wanted, teacher: Writer, filters: Sequence[Filter], context: Context, progress: Progress
) -> Kept:
    """Examples that the teacher makes up for a spec, as a student learns them. Raises as `answers_to` does."""
    spec = wanted.spec
    asked = prompts_of(spec, wanted.count, context.seed)
    found = teacher.ask([one.chat for one in asked], progress)
    again = _Again(wanted, teacher.one_more_answer(found.facts.get("cost") or 0.0), progress)
    if wanted.opinions:
        context = replace(context, again=again)
    texts, groups = [one.text for one in found.usable], [one.prompt for one in found.usable]
    examples = examples_in(texts, spec, groups=groups, filters=filters, context=context)
    refuse_empty(examples.kept, examples.yields, "generate")
    facts = {
        "asked": _together(found.facts, again.facts),
        "yields": [one.as_json() for one in examples.yields],
        "pass_rates": specs.pass_rates(examples.judged),
    }
    return Kept(tuple(spec.chat(example) for example in examples.kept), facts)


@dataclass
class _Again:
    """Lets a teacher answer questions that it made up; `facts` say what came of it."""

    wanted: Wanted
    teacher: Writer
    progress: Progress
    facts: dict[str, Any] = field(default_factory=dict)

    def __call__(self, samples: Sequence[Sample]) -> list[list[Sample]]:
        """See `edgeforge.filters.Context`."""
        count = self.wanted.opinions
        chats = [question(self.wanted.spec, sample.prompt) for sample in samples for _ in range(count)]
        found = self.teacher.ask(chats, self.progress)
        self.facts = _together(self.facts, {**found.facts, "opinions": len(found.answers)})
        answers = [[self._answer(sample.text)] for sample in samples]
        for answer in found.usable:
            answers[answer.prompt // count].append(self._answer(answer.text))
        return answers

    def _answer(self, text: str) -> Sample:
        """An output as agreement compares it: by its label, where that is part of it."""
        spec, nothing = self.wanted.spec, specs.Example(input=None, output=text.strip())
        example = spec.answered(nothing, text) or nothing
        return Sample(specs.as_text(example.output), label=spec.label(example))


def _together(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """What came of asking twice."""
    found = {**one, **two}
    for name in one.keys() & two.keys():
        first, second = one[name], two[name]
        if isinstance(first, Mapping):
            found[name] = dict(Counter(first) + Counter(second))
        elif isinstance(first, list):
            found[name] = sorted({*first, *second})
        elif isinstance(first, int | float) and isinstance(second, int | float):
            found[name] = first + second
        else:
            found[name] = second if first is None else first
    return found


def write(kept: Kept, path: Path, as_json: Callable[[Document], dict[str, Any]]) -> dict[str, Any]:
    """Write the documents as JSON lines; return the facts."""
    lines = (json.dumps(as_json(document), ensure_ascii=False) + "\n" for document in kept.documents)
    path.write_text("".join(lines), encoding="utf-8")
    return {"documents": len(kept.documents), **kept.facts}
