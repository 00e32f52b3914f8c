"""The two protocols, through their own clients: one question in, one checked answer out, every failure one sentence.

The clients retry and wait (408, 409, 429, 5xx, lost connections, time-outs) as their makers have it. What they return
is read from the response's bytes, so that nonsense is told from an answer whatever the client's version makes of it.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, NonNegativeInt, ValidationError

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.core.extras import require
from edgeforge.teachers._writer import Chat, Finish

if TYPE_CHECKING:
    from edgeforge.teachers.endpoint import Endpoint

Protocol = Literal["openai", "anthropic"]

OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"
ADDRESSES: dict[Protocol, str] = {"openai": OPENAI, "anthropic": ANTHROPIC}
KEYS: dict[Protocol, str] = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
NO_KEY = "none"
"""What a server is sent that asks for no key: the clients insist on one, and would look for the user's own."""
AT_END: dict[Protocol, frozenset[str]] = {
    "openai": frozenset({"stop", "stop_sequence", "eos_token"}),
    "anthropic": frozenset({"end_turn", "stop_sequence"}),
}
REFUSED: dict[Protocol, str] = {"openai": "content_filter", "anthropic": "refusal"}
FILTERED = frozenset({"content_filter", "content_policy_violation"})
"""Codes of a status 400 that refuses one prompt, as Azure and OpenAI have it: the others can still be answered."""
SHOWN = 200
"""Characters of a server's own words in a message."""


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt | None = None
    completion_tokens: NonNegativeInt | None = None
    input_tokens: NonNegativeInt | None = None
    output_tokens: NonNegativeInt | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None
    model: str | None = None


class _Block(BaseModel):
    type: str
    text: str | None = None


class _Reply(BaseModel):
    content: list[_Block]
    stop_reason: str | None = None
    usage: _Usage | None = None
    model: str | None = None


def key_of(endpoint: Endpoint) -> str:
    """The key, from the environment. Raises EnvironmentProblem where there is none, or it cannot be one."""
    name = endpoint.api_key_env or (KEYS[endpoint.protocol] if endpoint.base_url is None else None)
    if name is None:
        return NO_KEY
    key = os.environ.get(name, "").strip()
    if not key:
        raise EnvironmentProblem(
            f"the environment variable {name} holds no key",
            where=endpoint.address,
            remedy=f"export {name}=...; or name another variable in `api_key_env`",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise EnvironmentProblem(
            f"what the environment variable {name} holds cannot be a key: it has blanks or unusual characters",
            where=endpoint.address,
            remedy="copy the key again",
        )
    return key


def connect(endpoint: Endpoint) -> Client:
    """Ready to ask. Raises MissingExtraError, EnvironmentProblem."""
    return _OpenAI(endpoint) if endpoint.protocol == "openai" else _Anthropic(endpoint)


class Client:
    """One server. `ask` may be called from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._key = endpoint, key_of(endpoint)
        self._library = require(endpoint.protocol, "api")

    def ask(self, chat: Chat) -> dict[str, Any]:
        """`text`, `finish`, `input_tokens`, `output_tokens` and `served_by`; `reasoning` where there is any.

        Raises EnvironmentProblem.
        """
        try:
            body = self._post(chat).http_response.content
            answer = self._read(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
            raise self._problem(f"what the server answers is no completion ({what})", NONSENSE) from None
        except self._library.APIError as error:
            if getattr(error, "status_code", None) == 400 and getattr(error, "code", None) in FILTERED:
                return self._answer("", REFUSED[self._endpoint.protocol], _Usage(), None)
            # Not `from error`: what a client's error holds may hold the key.
            raise self._problem(*self._explained(error)) from None
        # A server may say anything, its caller's key as well.
        said = {name: answer[name] for name in ("text", "reasoning") if name in answer}
        return {**answer, **{name: self._without_key(text) for name, text in said.items()}}

    def _post(self, chat: Chat) -> Any:
        raise NotImplementedError

    def _read(self, body: bytes) -> dict[str, Any]:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        one = self._endpoint
        return {
            "api_key": self._key,
            "base_url": one.address,
            "timeout": one.timeout_seconds,
            "max_retries": one.retries,
        }

    def _sampling(self) -> dict[str, Any]:
        temperature = self._endpoint.temperature
        # As an argument of its own, Anthropic's newer clients know it no more; their older models do.
        return {} if temperature is None else {"extra_body": {"temperature": temperature}}

    def _answer(self, text: str, reason: str | None, usage: _Usage, served_by: str | None) -> dict[str, Any]:
        protocol = self._endpoint.protocol
        finish: Finish = "finished" if text.strip() else "empty"
        if reason == REFUSED[protocol]:
            finish = "refused"
        elif reason not in AT_END[protocol]:
            finish = "cut_off"
        read, wrote = (usage.prompt_tokens, usage.completion_tokens)
        if protocol == "anthropic":
            read, wrote = usage.input_tokens, usage.output_tokens
        return {"text": text, "finish": finish, "input_tokens": read, "output_tokens": wrote, "served_by": served_by}

    # -- failures

    def _problem(self, what: str, remedy: str) -> EnvironmentProblem:
        return EnvironmentProblem(self._without_key(what), where=self._endpoint.address, remedy=remedy)

    def _without_key(self, text: str) -> str:
        return text if self._key == NO_KEY else text.replace(self._key, "***")

    def _explained(self, error: Any) -> tuple[str, str]:
        """What and what to do, for an error of the client."""
        library, one = self._library, self._endpoint
        tries = f"{one.retries + 1} times" if one.retries else "once"
        if isinstance(error, library.APITimeoutError):
            return f"no answer within {one.timeout_seconds:g} s, asked {tries}", "raise `timeout_seconds`"
        if isinstance(error, library.APIConnectionError):
            cause = error.__cause__ or error
            return f"the server cannot be reached, tried {tries}: {_line(cause)}", "is it running, at this `base_url`?"
        status = getattr(error, "status_code", None)
        if status is None:
            return f"what the server answers is no completion ({_line(error)})", NONSENSE
        variable = one.api_key_env or KEYS[one.protocol]
        said = f" ({status}): {_said(error)}"
        if status == 401:
            return f"the server refuses the key{said}", f"put a valid one into {variable}"
        if status == 403:
            return f"the key may not do this{said}", f"allow it with the provider, or put another into {variable}"
        if status == 404:
            return f"there is no model '{one.model}' at this address{said}", "correct `model` or `base_url`"
        if status == 429:
            remedy = "lower `concurrency`, raise `retries`, or run it again later"
            return f"the server takes no more requests, asked {tries}{said}", remedy
        if status >= 500:
            return f"the server fails, asked {tries}{said}", "run it again later"
        return f"the server refuses the request{said}", "correct what it names"


NONSENSE = "is this the address of the API, with its path (such as /v1), and the right `protocol`?"


class _OpenAI(Client):
    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._create = self._library.OpenAI(**self._options()).chat.completions.with_raw_response.create
        # OpenAI's own models refuse `max_tokens`; most other servers do not know what took its place.
        own = (urlsplit(endpoint.address).hostname or "").endswith("openai.com")
        self._limit = "max_completion_tokens" if own else "max_tokens"

    def _post(self, chat: Chat) -> Any:
        messages = [{"role": message.role, "content": message.content} for message in chat]
        most = {self._limit: self._endpoint.max_tokens}
        return self._create(model=self._endpoint.model, messages=messages, **most, **self._sampling())

    def _read(self, body: bytes) -> dict[str, Any]:
        completion = _Completion.model_validate_json(body)
        if not completion.choices:
            raise self._problem("the server answers with no choice at all", NONSENSE)
        choice, usage = completion.choices[0], completion.usage or _Usage()
        reason = REFUSED["openai"] if choice.message.refusal else choice.finish_reason
        answer = self._answer(choice.message.content or "", reason, usage, completion.model)
        # Servers differ in the name: DeepSeek, vLLM and llama.cpp have the first, newer vLLM and Ollama the second.
        reasoning = choice.message.reasoning_content or choice.message.reasoning
        return {**answer, "reasoning": reasoning} if reasoning else answer


class _Anthropic(Client):
    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        client = self._library.Anthropic(**self._options())
        client.auth_token = None  # older clients send the one in the environment, too, wherever they are pointed
        self._create = client.messages.with_raw_response.create

    def _post(self, chat: Chat) -> Any:
        system = "\n\n".join(message.content for message in chat if message.role in ("system", "developer"))
        messages = [
            {"role": message.role, "content": message.content}
            for message in chat
            if message.role not in ("system", "developer")
        ]
        said = {"system": system} if system else {}
        one = self._endpoint
        return self._create(model=one.model, max_tokens=one.max_tokens, messages=messages, **said, **self._sampling())

    def _read(self, body: bytes) -> dict[str, Any]:
        reply = _Reply.model_validate_json(body)
        text = "".join(block.text or "" for block in reply.content if block.type == "text")
        return self._answer(text, reply.stop_reason, reply.usage or _Usage(), reply.model)


def _said(error: Any) -> str:
    """The server's own words, on one line."""
    body = getattr(error, "body", None)
    for inner in (body.get("error") if isinstance(body, dict) else None, body):
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            return _line(inner["message"])
        if isinstance(inner, str):
            return _line(inner)
    return _line(json.dumps(body)) if body else "it gives no reason"


def _line(said: object) -> str:
    text = " ".join(str(said).split()) or type(said).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
