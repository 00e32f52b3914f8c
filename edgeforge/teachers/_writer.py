"""Teachers that write texts and give no logits: what all of them are asked, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.data import Message
from edgeforge.teachers import OpenTeacher, Request, Teacher

if TYPE_CHECKING:
    import torch

    from edgeforge.core.artifact import Artifact
    from edgeforge.core.stage import Progress
    from edgeforge.core.task import TaskData
    from edgeforge.models import Model

Chat = Sequence[Message]
"""What is asked: messages, the last of them the user's."""

Finish = Literal["finished", "cut_off", "refused", "empty"]
"""How an answer ended. Cut off: the most tokens were reached, or the server gave another reason than its end."""


@dataclass(frozen=True)
class Answer:
    """One answer. `prompt` is the position of what was asked, `sample` counts the answers to one prompt.

    Tokens are as the server counted them; None where it did not say.
    """

    prompt: int
    sample: int
    text: str
    finish: Finish
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True)
class Asked:
    """All that was answered, in the order of prompts and samples. `facts` are plain JSON, for the report."""

    answers: tuple[Answer, ...]
    keep: frozenset[Finish]
    facts: dict[str, Any]

    @property
    def usable(self) -> tuple[Answer, ...]:
        """The answers to go on with: finished ones, and what the user keeps beside them."""
        return tuple(answer for answer in self.answers if answer.finish in self.keep)


class Writer(Teacher):
    """Base of teachers that write."""

    def identity(self) -> dict[str, Any]:
        """All that decides the answers, as plain JSON: part of a step's key. Raises ConfigurationError."""
        raise NotImplementedError

    def check_ready(self) -> None:
        """Refuse, before any work, what cannot work here: a missing library, key, file.

        Raises MissingExtraError, EnvironmentProblem, ConfigurationError.
        """

    def ask(self, prompts: Sequence[Chat], progress: Progress) -> Asked:
        """Answers to `prompts`. Raises EnvironmentProblem, DataError; what was answered before is not lost."""
        raise NotImplementedError

    def one_more_answer(self, spent: float) -> Writer:
        """The same teacher with one answer to each prompt, who may cost what `spent` leaves of its money."""
        return self

    # -- what a teacher of logits would do

    def sources(self) -> Mapping[str, str | Model | None]:
        return {}

    def check(self, request: Request) -> None:
        self.refuse()

    def check_data(self, data: TaskData) -> None:
        self.refuse()

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise IncompatiblePlanError: it cannot teach by losses."""
        raise IncompatiblePlanError(
            f"a `{self.kind}` teacher writes texts, and losses compare logits",
            where="teacher",
            remedy="distil by sequence: let it write (`generate` with this teacher), then train the student on that "
            "(`finetune` with `mix`); or use `teacher: model`",
        )
