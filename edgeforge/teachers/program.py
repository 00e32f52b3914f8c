"""A procedure as the teacher, where one is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from edgeforge.core.errors import DataError
from edgeforge.core.spec import digest_of
from edgeforge.core.user_code import UserCode
from edgeforge.teachers._journal import Backlog, in_user_data
from edgeforge.teachers._writer import Answer, Asked, Chat, Finish, Writer

if TYPE_CHECKING:
    from edgeforge.core.stage import Progress

PLACES = ("trace", "answer")


class Program(Writer, UserCode):
    """A function of yours: ``def teach(prompt: str) -> str | tuple[str, str] | None``.

    It is given what the user says last and returns the answer, or how it is found and the answer (a trace and what
    follows from it), or None where it has none. Arithmetic, parsers, solvers and simulators teach models this way,
    with as many right answers as wanted.

    Where it raises, or the run is interrupted, what it answered is kept in the user's data folder, for as long as the
    module stays as it is; so are the answers of a slow one every half minute.
    """

    kind: Literal["program"] = "program"
    template: str = Field(
        default="{trace}\nAnswer: {answer}",
        description="How a trace and its answer become one text, where the function returns both; `Answer: {answer}` "
        "leaves traces out.",
    )

    @field_validator("template")
    @classmethod
    def _has_places(cls, value: str) -> str:
        try:
            names = [name for _, name, _, _ in Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"this is no template: {error}") from error
        if "answer" not in names or not set(names) <= set(PLACES):
            raise ValueError("a template has {answer} in it, and may have {trace}, and no other places")
        return value

    def identity(self) -> dict[str, Any]:
        function = self.function.rpartition(":")[2]
        return {"kind": self.kind, "function": function, "source": self.digest(), "template": self.template}

    def check_ready(self) -> None:
        self.load()

    def ask(self, prompts: Sequence[Chat], progress: Progress) -> Asked:
        """An answer to each prompt. Raises DataError where the function raises, or returns what is no answer."""
        teach, answers, seen = self.load(), [], Counter[str]()
        with Backlog(in_user_data(), self.identity()) as kept:
            for number, chat in enumerate(prompts):
                asked = chat[-1].content
                key = digest_of({"prompt": asked, "sample": seen[asked]})
                seen[asked] += 1
                known = kept.get(key)
                text = self._text(teach(asked), asked) if known is None else str(known["text"])
                if known is None:
                    kept.put(key, {"text": text})
                finish: Finish = "finished" if text.strip() else "empty"
                answers.append(Answer(number, 0, text, finish))
                progress.update(number + 1, len(prompts))
        facts = {"wanted": len(prompts), "answers": dict(Counter(answer.finish for answer in answers)), "stopped": None}
        return Asked(tuple(answers), frozenset({"finished"}), facts)

    def _text(self, said: object, prompt: str) -> str:
        if said is None:
            return ""
        if isinstance(said, str):
            return said
        if isinstance(said, tuple) and len(said) == 2 and all(isinstance(part, str) for part in said):
            return self.template.format(trace=said[0], answer=said[1])
        raise DataError(
            f"the function returned {str(said)[:60]!r} for {prompt[:60]!r}",
            where=self.function,
            remedy="return a text, or a trace and an answer (two texts), or None",
        )
