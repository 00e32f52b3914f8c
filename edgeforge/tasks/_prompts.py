"""Questions with known answers: whether a model that was made smaller can still be talked to, and can still reason."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from edgeforge.checkers import Checker
from edgeforge.core import user_code
from edgeforge.core.errors import DataError
from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import Spec, perhaps
from edgeforge.core.task import Evaluation
from edgeforge.data import Document, Message
from edgeforge.data import _documents as documents
from edgeforge.data import _row_files as row_files
from edgeforge.data._files import existing, file_digest
from edgeforge.models import chat, tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self

REMEDY = 'every line is one object, such as {"prompt": "What is 1 + 1?", "answer": "2"}'

Generate = Callable[[Sequence[Sequence[int]], int], list[list[int]]]
"""See `Answers.generate`."""
DIRECT = "_direct"
"""Ends the names of what was found where the answer was begun for the model, so that it wrote no trace."""
MEANS = {"prompts_passed": "prompts", "tokens_per_answer": "answer_tokens"}
"""Metric -> the array of which it is the mean."""


class Prompted(Spec):
    """Questions that are put to a model, and how its answers are judged. Base of a task for models that write."""

    prompts: str | None = Field(
        default=None,
        description="A file of JSON lines, each with `prompt` or `messages`, and with `answer` (word for word) or "
        "`pattern` (a regular expression to be found): the share that a model passes is `prompts_passed`, and what it "
        "writes for each on average `tokens_per_answer`.",
    )
    max_new_tokens: int = Field(default=64, ge=1, le=4096, description="Most tokens of the answer to a prompt.")
    checker: Annotated[Checker, OneOf("edgeforge.checkers")] | None = Field(
        default=None,
        description="Who compares what a model writes with a prompt's `answer`, and where the answer stands in it: "
        "`{kind: numeric, answer: {}}` reads the number behind the last `Answer:`. Absent: word for word, all of it.",
    )
    direct_prefix: str | None = Field(
        default=None,
        min_length=1,
        description="Ask every prompt a second time, the answer begun with this text (`Answer:`), so that the model "
        "writes no trace: `prompts_passed_direct`, and `tokens_per_answer_direct` behind the prefix. What is judged "
        "begins with it.",
    )
    prompt_group: str | None = Field(
        default=None,
        min_length=1,
        description="A key of the prompts' lines, such as `digits`: the report says all this for each of its values.",
    )

    @model_validator(mode="after")
    def _prompts_to_judge(self) -> Self:
        for name in ("checker", "direct_prefix", "prompt_group"):
            if getattr(self, name) is not None and self.prompts is None:
                raise ValueError(f"`{name}` is about `prompts`, and there are none")
        if self.direct_prefix is not None and self.checker is None:
            raise ValueError("`direct_prefix` needs a `checker` that finds the answer behind a trace")
        return self

    def prompts_digest(self) -> dict[str, Any]:
        """The prompts' content, and that of a user's checker: part of the task's digest.

        Raises DataError for a mistake in the prompts, so that it is found before any work; ConfigurationError where
        the checker's file is missing.
        """
        code = [(one.function.rpartition(":")[2], one.digest()) for one in user_code.inside(self)]
        if self.prompts is None:
            return {"prompts": None, "code": code}
        self.read_prompts()
        return {"prompts": file_digest(existing(self.prompts)), "code": code}

    def read_prompts(self) -> list[Prompt]:
        """The prompts of the file. Raises DataError."""
        assert self.prompts is not None
        return read(existing(self.prompts), checker=self.checker, group=self.prompt_group)

    def prompt_metrics(self) -> list[str]:
        """The names of the metrics, each way of asking beside the other."""
        return [name + way for name in MEANS for way in self._ways()]

    def ask(self, generate: Generate, folder: Path) -> Evaluation:
        """Put every prompt to a model, whose tokenizer is in `folder`.

        Metrics: `prompt_metrics`, and `prompt_groups`, where they are wanted: group -> the same, with `prompts`, how
        many belong to it. Arrays, shape (prompts,): ``prompts`` (bool: passed), ``answer_tokens`` (int32: written,
        without the one that ends a text), and both with ``_direct``.
        """
        prompts = self.read_prompts()
        arrays: dict[str, np.ndarray] = {}
        for way, prefix in self._ways().items():
            written = generate(encoded(prompts, folder, begun=prefix), self.max_new_tokens)
            texts = [prefix + tokenizer.read(folder).decode(ids, skip_special_tokens=True) for ids in written]
            passed = [one.passed(text, self.checker) for one, text in zip(prompts, texts, strict=True)]
            arrays[f"prompts{way}"] = np.array(passed, dtype=bool)
            arrays[f"answer_tokens{way}"] = np.array([len(ids) for ids in written], dtype=np.int32)
        return Evaluation(self._metrics(arrays, prompts), arrays)

    def _ways(self) -> dict[str, str]:
        """How prompts are asked, by the end of a metric's name: with what the answer begins."""
        return {"": ""} if self.direct_prefix is None else {"": "", DIRECT: self.direct_prefix}

    def _metrics(self, arrays: Mapping[str, np.ndarray], prompts: Sequence[Prompt]) -> dict[str, Any]:
        def means(rows: list[int]) -> dict[str, float]:
            ways = self._ways()
            return {name + way: float(arrays[MEANS[name] + way][rows].mean()) for name in MEANS for way in ways}

        members: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            if prompt.group is not None:
                members.setdefault(prompt.group, []).append(row)
        groups = {name: {"prompts": len(rows), **means(rows)} for name, rows in members.items()}
        return {**means(list(range(len(prompts)))), **({"prompt_groups": groups} if groups else {})}


@dataclass(frozen=True)
class Prompt:
    """A question, and what a right answer is: `answer`, or a text in which `pattern` is found."""

    document: Document
    answer: str | None
    pattern: re.Pattern[str] | None
    group: str | None = None

    @property
    def question(self) -> str:
        """What was said last."""
        return self.document.messages[-1].content if self.document.messages else self.document.text

    def passed(self, text: str, checker: Checker | None = None) -> bool:
        """Whether a text holds the right answer, by the checker; without one, whether it is it, word for word.

        Then blanks count once, and how Unicode writes an accent not at all; case counts. Raises DataError as the
        checker does.
        """
        if self.pattern is not None:
            return self.pattern.search(text) is not None
        if checker is not None:
            return checker.verify(text, self.answer, self.question).passed
        return _plain(text) == _plain(self.answer or "")


def encoded(prompts: Sequence[Prompt], folder: Path, *, begun: str = "") -> list[list[int]]:
    """The questions as the tokenizer in `folder` reads them, by its chat template where it has one; `begun` behind.

    Raises ModelError where a prompt has messages and the tokenizer no template.
    """
    chats = [_as_chat(prompt.document, templated=chat.template(folder) is not None) for prompt in prompts]
    template = chat.opened(folder) if any(one.messages for one in chats) else None
    reader, before = tokenizer.read(folder), tokenizer.beginning(folder)
    found = []
    for one in chats:
        text = template.render(one, asking=True) if template is not None and one.messages else one.text
        ids = list(reader(text + begun, add_special_tokens=False)["input_ids"])
        found.append(ids if one.messages or before is None else [before, *ids])
    return found


def _as_chat(document: Document, *, templated: bool) -> Document:
    """A plain question as what a user says, where the model chats."""
    if document.messages or not templated:
        return document
    return Document(messages=(Message("user", document.text),), where=document.where)


def read(path: Path, *, checker: Checker | None = None, group: str | None = None) -> list[Prompt]:
    """The prompts of a file of JSON lines, in groups by the key `group`.

    Raises DataError, also for an answer that `checker` cannot compare with; a user's own function is not run for that.
    """
    prompts = [_prompt(value, where, checker=checker, group=group) for value, where in row_files.objects(path, REMEDY)]
    if not prompts:
        raise DataError("the file has no prompt", where=str(path), remedy=REMEDY)
    return prompts


def _prompt(value: dict[str, Any], where: str, *, checker: Checker | None, group: str | None) -> Prompt:
    for pair, least in ((("prompt", "messages"), 1), (("answer", "pattern"), 0 if checker is not None else 1)):
        if not least <= sum(value.get(name) is not None for name in pair) <= 1:
            raise DataError(f"there must be one of '{pair[0]}' and '{pair[1]}'", where=where, remedy=REMEDY)
    for name in ("prompt", "answer", "pattern"):
        if not isinstance(value.get(name) or "", str) or (name in value and value[name] == ""):
            raise DataError(f"'{name}' is not a text, or empty", where=where, remedy=REMEDY)
    messages = () if value.get("messages") is None else documents.chat(value["messages"], where)
    if messages and messages[-1].role == "assistant":
        raise DataError("the assistant has the last word already", where=where, remedy="leave its answer out")
    found = Prompt(
        Document(text=value.get("prompt") or "", messages=messages, where=where),
        value.get("answer"),
        None if value.get("pattern") is None else _pattern(value["pattern"], where),
        None if group is None else _group(value, group, where),
    )
    if checker is not None:
        _check_comparable(found, checker)
    return found


def _group(value: Mapping[str, Any], key: str, where: str) -> str:
    if key not in value:
        raise DataError(perhaps("no key is named", key, list(value)), where=where, remedy="give every prompt its group")
    if isinstance(value[key], str | int | float) and str(value[key]).strip():
        return str(value[key])
    raise DataError(f"'{key}' is neither a text nor a number, or empty", where=where, remedy="write one of them")


def _check_comparable(prompt: Prompt, checker: Checker) -> None:
    """Raise DataError where an expected answer is missing or unusable."""
    if prompt.pattern is not None or isinstance(checker, user_code.UserCode):
        return
    try:
        checker.judge(prompt.answer or "0", prompt.answer, prompt.question)
    except DataError as error:
        raise DataError(error.what, where=prompt.document.where, remedy=error.remedy) from error


def _pattern(text: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(f"'pattern' is no regular expression: {error}", where=where, remedy="correct it") from error


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
