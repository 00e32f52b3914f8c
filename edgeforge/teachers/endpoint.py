"""A server that is asked through its API."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from edgeforge.core.extras import require
from edgeforge.core.spec import digest_of
from edgeforge.teachers import _endpoint_clients as clients
from edgeforge.teachers import _journal as journals
from edgeforge.teachers._endpoint_account import Account, Prices
from edgeforge.teachers._endpoint_asking import Asking, Question
from edgeforge.teachers._writer import Answer, Asked, Chat, Finish, Writer

if TYPE_CHECKING:
    from typing import Self

    from edgeforge.core.stage import Progress
    from edgeforge.teachers._journal import Journal

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Endpoint(Writer):
    """Any server that speaks OpenAI's chat completions (OpenAI, vLLM, llama.cpp, Ollama, ...) or Anthropic's messages.

    Every answer is written to a journal as it arrives, under the digest of server, model, settings, prompt and sample
    number. A run that was killed or failed goes on from there, another pipeline that asks the same finds it answered,
    and neither pays again. What a kill can cost twice is a request that was on its way: at most `concurrency` of them.
    The journal is in the user's data folder, not in the store, which may be emptied.

    `max_cost` is kept: a request is sent only where the most it may cost (a token for every byte of the prompt, and
    `max_tokens`) still fits, beside that of all others on their way. Counted are all answers this stage uses, those of
    earlier attempts too. What a provider bills for a request that it never answered, such as one that timed out and
    was repeated, cannot be known here.
    """

    kind: Literal["endpoint"] = "endpoint"
    protocol: clients.Protocol = Field(default="openai", description="What the server speaks.")
    base_url: str | None = Field(
        default=None,
        description="Where the server is, such as `http://localhost:8000/v1`; absent: the protocol's maker.",
    )
    model: str = Field(min_length=1, description="The model's name, as the server knows it.")
    api_key_env: str | None = Field(
        default=None,
        description="The environment variable that holds the key; absent: OPENAI_API_KEY or ANTHROPIC_API_KEY, and no "
        "key where `base_url` is given.",
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="Absent: the server's own.")
    max_tokens: int = Field(default=1024, ge=1, description="Most tokens of an answer.")
    samples: int = Field(default=1, ge=1, description="Answers to each prompt.")
    keep: tuple[Literal["cut_off", "refused"], ...] = Field(
        default=(), description="Which answers to use beside those that came to their end."
    )
    reasoning: Literal["leave_out", "before_answer"] = Field(
        default="leave_out",
        description="What a reasoning model's server gives beside the answer (`reasoning_content`): `before_answer` "
        "puts it before the text, between `<think>` and `</think>`.",
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="Requests side by side.")
    prices: Prices | None = Field(default=None, description="What tokens cost; absent: costs are not counted.")
    max_cost: float | None = Field(default=None, gt=0, description="Stop before this is exceeded; needs `prices`.")
    retries: int = Field(
        default=5,
        ge=0,
        le=100,
        description="How often the client repeats a request that failed, waiting longer each time.",
    )
    timeout_seconds: float = Field(default=300, gt=0, description="How long to wait for an answer.")
    journal: str | None = Field(
        default=None, description="The folder in which answers are kept; absent: in the user's data folder."
    )

    uses: ClassVar[tuple[str, ...]] = ("edgeforge.teachers._endpoint_clients",)

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not _VARIABLE.fullmatch(value):
            raise _secret("`api_key_env` is the name of an environment variable; the key itself must stand nowhere")
        return value

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.username or parts.password or parts.query:
            raise _secret("`base_url` must hold no name, password or key: use `api_key_env`")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("an address begins with http:// or https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("`max_cost` needs `prices`: {input: ..., output: ...} for a million tokens")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("several samples at temperature 0 are the same; set `samples: 1` or a temperature")
        if self.reasoning == "before_answer" and self.protocol == "anthropic":
            raise ValueError(
                "`reasoning: before_answer` is for OpenAI's protocol; ask for the steps in the prompts instead"
            )
        return self

    @property
    def address(self) -> str:
        """Where the server is. Never left to the client, which would take it from the environment."""
        return self.base_url or clients.ADDRESSES[self.protocol]

    def settings(self) -> dict[str, Any]:
        """What an answer depends on, beside the prompt."""
        return {
            "protocol": self.protocol,
            "base_url": self.address,
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def identity(self) -> dict[str, Any]:
        limits = self.model_dump(mode="json", include={"samples", "keep", "reasoning", "prices", "max_cost"})
        return {"kind": self.kind, **self.settings(), **limits}

    def check_ready(self) -> None:
        require(self.protocol, "api")
        clients.key_of(self)

    def one_more_answer(self, spent: float) -> Endpoint:
        left = None if self.max_cost is None else self.max_cost - spent
        return self.model_copy(update={"samples": 1, "max_cost": left})

    def ask(self, prompts: Sequence[Chat], progress: Progress) -> Asked:
        """Up to `samples` answers to each prompt; fewer where `max_cost` ends it, which `facts` say under `stopped`.

        Raises EnvironmentProblem for a missing key and for what the server refuses; answers so far are kept.
        """
        questions = self._questions(prompts)
        account = Account(self.prices, self.max_cost, self.max_tokens)
        with journals.opened(
            self.journal_folder(), self.settings(), lambda: progress.update(0, len(questions), "another run is asking")
        ) as journal:
            before = sum(journal.get(key) is not None for key in {question.key for question in questions})
            asking = Asking(lambda: clients.connect(self), journal, account, progress)
            complete = asking.run(questions, self.concurrency)
            answers = tuple(self._answers(questions, journal))
            served_by = {str((journal.get(question.key) or {}).get("served_by")) for question in questions}
        stopped = None if complete else f"another answer might have exceeded the `max_cost` of {self.max_cost:g}"
        if stopped:
            progress.warn(f"the teacher was asked for {len(answers)} of {len(questions)} answers: {stopped}")
        facts = {
            "wanted": len(questions),
            "answers": dict(Counter(answer.finish for answer in answers)),
            "answered_before": before,
            **account.facts(),
            "served_by": sorted(served_by - {"None"}),
            "stopped": stopped,
        }
        kept: frozenset[Finish] = frozenset({"finished", *self.keep})
        return Asked(answers, kept, facts)

    def journal_folder(self) -> Path:
        """Where answers are kept."""
        if self.journal is not None:
            return Path(self.journal).expanduser().absolute()
        return journals.in_user_data()

    def _questions(self, prompts: Sequence[Chat]) -> list[Question]:
        """Every answer that is wanted. A prompt that comes again is asked for further samples."""
        settings, seen = self.settings(), Counter[str]()
        questions = []
        for number, chat in enumerate(prompts):
            asked = digest_of([[message.role, message.content] for message in chat])
            for sample in range(self.samples):
                # At temperature 0 the same prompt has the same answer, which is paid for once.
                key = digest_of({**settings, "prompt": asked, "sample": 0 if self.temperature == 0 else seen[asked]})
                questions.append(Question(number, sample, key, chat))
                seen[asked] += 1
        return questions

    def _answers(self, questions: Sequence[Question], journal: Journal) -> Iterator[Answer]:
        for question in questions:
            kept = journal.get(question.key)
            if kept is None:
                continue
            said = {name: kept[name] for name in ("text", "finish", "input_tokens", "output_tokens")}
            if self.reasoning == "before_answer" and kept.get("reasoning"):
                said["text"] = f"<think>\n{kept['reasoning'].strip()}\n</think>\n\n{said['text']}"
            yield Answer(question.prompt, question.sample, **said)


def _secret(message: str) -> PydanticCustomError:
    """A refusal that must not show what was given: it may be a key."""
    return PydanticCustomError("secret", "{message}", {"message": message})
