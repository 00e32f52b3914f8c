"""Teachers behind an API: fake servers that count what they are asked, faults, kills, caps, and the key nowhere."""

from __future__ import annotations

import json
import os
import signal
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from pydantic import ValidationError

from edgeforge.core.errors import ConfigurationError, EnvironmentProblem, IncompatiblePlanError
from edgeforge.data import Message
from edgeforge.pipeline import parse
from edgeforge.teachers._endpoint_account import most_input_tokens
from edgeforge.teachers._endpoint_clients import connect
from edgeforge.teachers.endpoint import Endpoint

pytest.importorskip("openai")
pytest.importorskip("anthropic")

KEY = "sk-test-0123456789-secret"
AT_ONCE = {"retry-after-ms": "1"}


class Server(ThreadingHTTPServer):
    """Speaks both protocols; answers a prompt with its own words turned round, and counts.

    `script` maps a prompt to the replies it gets one after the other: a status, or a dict that changes the answer, or
    bytes; then it is answered as usual. `seconds` is how long an answer takes.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: dict[str, list[Any]] = {}
        self.always: Any = None
        self.seconds = 0.0
        self.at_work = self.most_at_work = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked[prompt] += 1
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            script = self.server.script.get(prompt)
            reply = script.pop(0) if script else self.server.always
            self.server.at_work += 1
            self.server.most_at_work = max(self.server.most_at_work, self.server.at_work)
        time.sleep(self.server.seconds)
        with self.server.lock:
            self.server.at_work -= 1
        if callable(reply):
            reply = reply(self)
        if isinstance(reply, int):
            # A server may well repeat the key it was sent.
            self._send(reply, json.dumps({"error": {"message": f"no {reply} for {self._key()}"}}).encode())
        elif isinstance(reply, tuple):
            self._send(reply[0], json.dumps(reply[1]).encode())
        elif isinstance(reply, bytes):
            self._send(200, reply)
        else:
            make = _message if self.path.endswith("/v1/messages") else _completion
            self._send(200, json.dumps(make(prompt, reply or {})).encode())

    def _key(self) -> str:
        return str(self.headers.get("Authorization") or self.headers.get("x-api-key"))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **AT_ONCE}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _completion(prompt: str, changes: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": changes.get("text", prompt[::-1]), "refusal": changes.get("refusal")}
    message |= changes.get("beside", {})
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "served-model",
        "choices": [{"index": 0, "message": message, "finish_reason": changes.get("reason", "stop")}],
        **({} if changes.get("no_usage") else {"usage": changes.get("usage", usage)}),
    }


def _message(prompt: str, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "served-model",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": changes.get("text", prompt[::-1])},
        ],
        "stop_reason": changes.get("reason", "end_turn"),
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }


@pytest.fixture(scope="module")
def certificates() -> ssl.SSLContext:
    return ssl.create_default_context()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, certificates: ssl.SSLContext) -> Iterator[Server]:
    # Every client reads the system's certificates again, which here nobody needs.
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **options: certificates)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    made = Server()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


class Notes:
    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []
        self.warnings: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        self.updates.append((done, total, note))

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def teacher(server: Server, folder: Path, **fields: Any) -> Endpoint:
    protocol = fields.pop("protocol", "openai")
    said = {
        "base_url": server.url + ("/v1" if protocol == "openai" else ""),
        "model": "m",
        "api_key_env": "TEACHER_KEY",
        "journal": str(folder / "answers"),
        "retries": 2,
        **fields,
    }
    return Endpoint.model_validate({"protocol": protocol, **said})


def chats(*prompts: str) -> list[tuple[Message, ...]]:
    return [(Message("system", "Be brief."), Message("user", prompt)) for prompt in prompts]


def texts(asked: Any) -> list[str]:
    return [answer.text for answer in asked.usable]


both = pytest.mark.parametrize("protocol", ["openai", "anthropic"])


# -- what is asked and answered


@both
def test_answers_come_in_order_and_are_asked_for_once(server: Server, tmp_path: Path, protocol: str) -> None:
    one = teacher(server, tmp_path, protocol=protocol, temperature=0.5, max_tokens=77, concurrency=3)
    notes = Notes()
    first = one.ask(chats("abc", "def", "ghi", "jkl"), notes)
    assert texts(first) == ["cba", "fed", "ihg", "lkj"]
    assert [(answer.prompt, answer.input_tokens, answer.output_tokens) for answer in first.answers] == [
        (number, 10, 5) for number in range(4)
    ]
    assert notes.updates[-1][:2] == (4, 4)
    assert first.facts["answers"] == {"finished": 4}
    assert (first.facts["input_tokens"], first.facts["output_tokens"], first.facts["cost"]) == (40, 20, None)
    assert first.facts["served_by"] == ["served-model"]
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 77, 0.5)
    if protocol == "anthropic":
        assert (body["system"], len(body["messages"])) == ("Be brief.", 1)
    else:
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert KEY in str(server.headers[0])

    server.asked.clear()
    again = one.ask(chats("jkl", "new", "abc"), Notes())
    assert texts(again) == ["lkj", "wen", "cba"]
    assert server.asked == {"new": 1}
    assert again.facts["answered_before"] == 2


def test_a_complete_journal_needs_neither_key_nor_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = teacher(server, tmp_path)
    before = one.ask(chats("abc"), Notes())
    server.shutdown()
    monkeypatch.delenv("TEACHER_KEY")
    assert one.ask(chats("abc"), Notes()).answers == before.answers


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"temperature": 1.0}, {"max_tokens": 9}, {"protocol": "anthropic"}],
    ids=lambda change: next(iter(change)),
)
def test_other_settings_are_other_answers(server: Server, tmp_path: Path, change: dict[str, Any]) -> None:
    teacher(server, tmp_path).ask(chats("abc"), Notes())
    teacher(server, tmp_path, **change).ask(chats("abc"), Notes())
    assert server.asked == {"abc": 2}


def test_settings_that_change_no_answer_ask_nothing_anew(server: Server, tmp_path: Path) -> None:
    teacher(server, tmp_path).ask(chats("abc"), Notes())
    free = {"input": 0, "output": 0}
    changed = teacher(server, tmp_path, concurrency=1, retries=0, timeout_seconds=5, prices=free, max_cost=1)
    changed.ask(chats("abc"), Notes())
    assert server.asked == {"abc": 1}


def test_samples_and_repeated_prompts_are_different_answers(server: Server, tmp_path: Path) -> None:
    server.script["abc"] = [{"text": str(number)} for number in range(4)]
    one = teacher(server, tmp_path, samples=2, concurrency=1)
    assert texts(one.ask(chats("abc", "abc"), Notes())) == ["0", "1", "2", "3"]
    more = teacher(server, tmp_path, samples=5, concurrency=1).ask(chats("abc"), Notes())
    assert texts(more) == ["0", "1", "2", "3", "cba"]
    assert [answer.sample for answer in more.answers] == [0, 1, 2, 3, 4]
    assert server.asked == {"abc": 5}


def test_at_temperature_0_a_repeated_prompt_is_paid_for_once(server: Server, tmp_path: Path) -> None:
    one = teacher(server, tmp_path, temperature=0)
    assert texts(one.ask(chats("abc", "abc"), Notes())) == ["cba", "cba"]
    assert server.asked == {"abc": 1}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_beside_the_answer_is_paid_for_once_and_used_as_wished(
    server: Server, tmp_path: Path, name: str
) -> None:
    server.script["abc"] = [{"beside": {name: f"turn it round, {KEY}\n"}}]
    assert texts(teacher(server, tmp_path).ask(chats("abc", "def"), Notes())) == ["cba", "fed"]
    asked = teacher(server, tmp_path, reasoning="before_answer").ask(chats("abc", "def"), Notes())
    assert texts(asked) == ["<think>\nturn it round, ***\n</think>\n\ncba", "fed"]
    assert server.asked == {"abc": 1, "def": 1}
    assert KEY not in "".join(path.read_text() for path in (tmp_path / "answers").iterdir())


def test_reasoning_without_an_answer_is_none(server: Server, tmp_path: Path) -> None:
    server.script["abc"] = [{"text": None, "reason": "length", "beside": {"reasoning_content": "round and round"}}]
    asked = teacher(server, tmp_path, reasoning="before_answer").ask(chats("abc"), Notes())
    assert not asked.usable
    assert [answer.finish for answer in asked.answers] == ["cut_off"]


def test_anthropics_reasoning_is_not_promised(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="ask for the steps"):
        teacher(server, tmp_path, protocol="anthropic", reasoning="before_answer")


def test_no_more_requests_at_once_than_allowed(server: Server, tmp_path: Path) -> None:
    server.seconds = 0.03
    teacher(server, tmp_path, concurrency=3).ask(chats(*map(str, range(12))), Notes())
    assert server.most_at_work == 3


ENDS = [
    ("openai", {"reason": "length"}, "cut_off"),
    ("openai", {"reason": "content_filter"}, "refused"),
    ("openai", {"refusal": "I cannot", "text": None}, "refused"),
    ("openai", {"text": "  "}, "empty"),
    ("openai", {"text": None, "reason": "tool_calls"}, "cut_off"),
    ("openai", {"reason": "stop"}, "finished"),
    ("anthropic", {"reason": "max_tokens"}, "cut_off"),
    ("anthropic", {"reason": "refusal"}, "refused"),
    ("anthropic", {"text": ""}, "empty"),
    ("anthropic", {"reason": "stop_sequence"}, "finished"),
]


@pytest.mark.parametrize(("protocol", "reply", "finish"), ENDS)
def test_how_an_answer_ended_is_marked(
    server: Server, tmp_path: Path, protocol: str, reply: dict[str, Any], finish: str
) -> None:
    server.script["abc"] = [reply]
    asked = teacher(server, tmp_path, protocol=protocol).ask(chats("abc", "def"), Notes())
    assert [answer.finish for answer in asked.answers] == [finish, "finished"]
    assert [answer.prompt for answer in asked.usable] == ([0, 1] if finish == "finished" else [1])
    if finish == "cut_off":
        kept = teacher(server, tmp_path, protocol=protocol, keep=["cut_off"]).ask(chats("abc"), Notes())
        assert len(kept.usable) == 1
    assert server.asked["abc"] == 1


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_prompt_that_a_filter_refuses_does_not_stop_the_others(server: Server, tmp_path: Path, code: str) -> None:
    server.script["bad"] = [(400, {"error": {"message": "filtered", "code": code, "type": None, "param": "prompt"}})]
    one = teacher(server, tmp_path, concurrency=1)
    asked = one.ask(chats("abc", "bad", "def"), Notes())
    assert [answer.finish for answer in asked.answers] == ["finished", "refused", "finished"]
    assert asked.facts["answers_without_usage"] == 1
    assert texts(one.ask(chats("abc", "bad", "def"), Notes())) == ["cba", "fed"]
    assert server.asked["bad"] == 1, "it is not asked for again"


# -- faults


@both
@pytest.mark.parametrize("fault", [429, 500, 503])
def test_the_client_tries_again(server: Server, tmp_path: Path, protocol: str, fault: int) -> None:
    server.script["abc"] = [fault, fault]
    assert texts(teacher(server, tmp_path, protocol=protocol).ask(chats("abc"), Notes())) == ["cba"]
    assert server.asked == {"abc": 3}


FAULTS = [
    (401, "the server refuses the key (401)", "TEACHER_KEY"),
    (403, "the key may not do this (403)", "TEACHER_KEY"),
    (404, "there is no model 'm' at this address (404)", "correct `model`"),
    (400, "the server refuses the request (400)", "correct"),
    (429, "the server takes no more requests, asked 3 times (429)", "lower `concurrency`"),
    (500, "the server fails, asked 3 times (500)", "again later"),
    (b"<html>welcome</html>", "what the server answers is no completion", "`base_url`|address"),
    (b'{"choices": 3, "content": 3}', "what the server answers is no completion", "address"),
    (b'{"object": "list"}', "what the server answers is no completion", "address"),
    (b"\xff\xfe\x00", "what the server answers is no completion", "address"),
    (b"", "what the server answers is no completion", "address"),
]


@both
@pytest.mark.parametrize(("fault", "what", "remedy"), FAULTS, ids=[str(fault[0])[:12] for fault in FAULTS])
def test_a_fault_is_one_clear_line_and_loses_nothing(
    server: Server, tmp_path: Path, protocol: str, fault: Any, what: str, remedy: str
) -> None:
    server.script["bad"] = [fault] * 3
    one = teacher(server, tmp_path, protocol=protocol, concurrency=1)
    with pytest.raises(EnvironmentProblem) as caught:
        one.ask(chats("abc", "bad", "def"), Notes())
    problem = caught.value
    assert problem.exit_code == 7
    assert what in problem.what
    assert "\n" not in problem.what
    assert len(problem.what) < 400
    assert problem.where == one.base_url
    assert problem.remedy is not None
    assert any(word in problem.remedy for word in remedy.split("|"))
    assert "1 of 3 answers are kept" in problem.remedy
    assert KEY not in str(problem)
    assert problem.__cause__ is None
    assert server.asked["def"] == 0
    server.script.clear()
    server.asked.clear()
    assert texts(one.ask(chats("abc", "bad", "def"), Notes())) == ["cba", "dab", "fed"]
    assert server.asked == {"bad": 1, "def": 1}


@both
def test_a_server_that_never_answers(server: Server, tmp_path: Path, protocol: str) -> None:
    server.seconds = 1.0
    with pytest.raises(EnvironmentProblem, match=r"no answer within 0.1 s, asked once"):
        teacher(server, tmp_path, protocol=protocol, retries=0, timeout_seconds=0.1).ask(chats("abc"), Notes())


@both
def test_a_server_that_is_down(server: Server, tmp_path: Path, protocol: str) -> None:
    one = teacher(server, tmp_path, protocol=protocol, retries=0)
    server.shutdown()
    server.server_close()
    with pytest.raises(EnvironmentProblem, match=r"cannot be reached, tried once: .*refused"):
        one.ask(chats("abc"), Notes())


def test_what_is_on_its_way_when_a_request_fails_is_kept(server: Server, tmp_path: Path) -> None:
    server.script["bad"] = [401]
    server.script["slow"] = [lambda handler: time.sleep(0.3) or {}]
    one = teacher(server, tmp_path, concurrency=2)
    with pytest.raises(EnvironmentProblem, match="1 of 3 answers are kept"):
        one.ask(chats("slow", "bad", "never"), Notes())
    server.asked.clear()
    assert len(one.ask(chats("slow", "bad", "never"), Notes()).usable) == 3
    assert server.asked == {"bad": 1, "never": 1}


# -- the key


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_no_key(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    if value is not None:
        monkeypatch.setenv("TEACHER_KEY", value)
    for attempt in (
        lambda: teacher(server, tmp_path).ask(chats("abc"), Notes()),
        teacher(server, tmp_path).check_ready,
    ):
        with pytest.raises(EnvironmentProblem, match="TEACHER_KEY holds no key"):
            attempt()
    assert not server.asked


@pytest.mark.parametrize("value", ["two words-secret", "sk-\u2026-secret", "sk-\n-secret"])
def test_a_key_that_is_none_is_not_shown(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TEACHER_KEY", value)
    with pytest.raises(EnvironmentProblem, match="cannot be a key") as caught:
        teacher(server, tmp_path).ask(chats("abc"), Notes())
    assert "secret" not in str(caught.value)


def test_a_users_own_key_is_not_sent_to_another_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "sk-own-secret")
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/elsewhere")
    for protocol in ("openai", "anthropic"):
        one = teacher(server, tmp_path, protocol=protocol, api_key_env=None)
        assert texts(one.ask(chats("abc"), Notes())) == ["cba"]
    assert len(server.headers) == 2
    assert "sk-own-secret" not in str(server.headers)
    given: list[dict[str, Any]] = []

    def record(**options: Any) -> Any:
        given.append(options)
        return MagicMock()

    monkeypatch.setattr("openai.OpenAI", record)
    monkeypatch.setattr("anthropic.Anthropic", record)
    for protocol in ("openai", "anthropic"):
        connect(Endpoint.model_validate({"model": "m", "protocol": protocol}))
    # Not where the environment says.
    assert [one["base_url"] for one in given] == ["https://api.openai.com/v1", "https://api.anthropic.com"]
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EnvironmentProblem, match="OPENAI_API_KEY holds no key"):
        Endpoint(model="m").check_ready()


@both
def test_the_key_is_nowhere(
    server: Server, tmp_path: Path, protocol: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    server.script["echo"] = [{"text": f"your key is {KEY}"}]
    one = teacher(server, tmp_path, protocol=protocol, concurrency=1)
    notes = Notes()
    asked = one.ask(chats("abc", "echo"), notes)
    said = [repr(asked), repr(notes.updates), repr(one), one.model_dump_json(), json.dumps(one.identity())]
    for status in (401, 403, 404, 429, 500, 400):
        server.always = status
        with pytest.raises(EnvironmentProblem) as caught:
            one.ask(chats(f"fails {status}"), notes)
        said += [str(caught.value), repr(caught.value.__cause__)]
    captured = capfd.readouterr()
    said += [caplog.text, captured.out, captured.err]
    said += [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert "your key is ***" in said[0]
    assert any("cba" in text for text in said[-2:]), "the journal was read"
    for text in said:
        assert KEY not in text
        assert KEY[8:] not in text


def pipeline(teacher: str) -> bytes:
    return f"""name: x
task: {{kind: causal_lm, data: {{kind: jsonl, train: a.jsonl, test: b.jsonl}}}}
model: {{kind: pretrained, path: somewhere}}
stages:
  - {{kind: generate, teacher: {teacher}}}
""".encode()


@pytest.mark.parametrize(
    "fields",
    ["api_key_env: sk-secret-1", "base_url: 'https://me:secret-1@host/v1'", "base_url: 'https://host/v1?key=secret-1'"],
)
def test_a_key_in_the_pipeline_file_is_refused_and_not_repeated(fields: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(pipeline(f"{{kind: endpoint, model: m, {fields}}}"), "x.yaml")
    assert "x.yaml:5" in str(caught.value)
    assert "api_key_env" in str(caught.value)
    assert "secret-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"max_cost": 1}, "`max_cost` needs `prices`"),
        ({"samples": 2, "temperature": 0}, "are the same"),
        ({"base_url": "localhost:8000"}, "begins with http"),
        ({"base_url": "http://host:99999/"}, "[Pp]ort"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        Endpoint.model_validate({"model": "m", **fields})


def test_losses_get_no_logits_from_it() -> None:
    with pytest.raises(IncompatiblePlanError, match="writes texts") as caught:
        Endpoint(model="m").check_data(None)  # type: ignore[arg-type]
    assert "generate" in str(caught.value)


# -- money

PRICES = {"input": 1e6, "output": 1e6}  # one unit a token, so that costs are read off easily
WORST = most_input_tokens(chats("000")[0]) + 20
REAL = 15


def test_the_cap_is_never_exceeded_and_what_there_is_can_be_used(server: Server, tmp_path: Path) -> None:
    prompts = chats(*(f"{number:03d}" for number in range(40)))
    cap = 2 * WORST + 1
    notes = Notes()
    one = teacher(server, tmp_path, prices=PRICES, max_cost=cap, max_tokens=20, concurrency=4)
    server.seconds = 0.02
    asked = one.ask(prompts, notes)
    # The last request was sent when what was spent and its own worst case fitted, and none when it did not.
    expected = (cap - WORST) // REAL + 1
    assert len(asked.usable) == expected == sum(server.asked.values())
    assert server.most_at_work == 2
    assert asked.facts["cost"] == expected * REAL <= cap
    assert "max_cost" in asked.facts["stopped"]
    (warning,) = notes.warnings
    assert warning.startswith(f"the teacher was asked for {expected} of 40 answers: another answer might have exceeded")
    # What earlier attempts cost counts, so asking again adds nothing; a higher cap goes on.
    assert len(one.ask(prompts, Notes()).usable) == expected
    assert sum(server.asked.values()) == expected
    more = teacher(server, tmp_path, prices=PRICES, max_cost=10_000, max_tokens=20)
    assert more.ask(prompts, Notes()).facts["stopped"] is None
    assert set(server.asked.values()) == {1}


def test_further_answers_cost_what_the_first_ones_left(server: Server, tmp_path: Path) -> None:
    one = teacher(server, tmp_path, prices=PRICES, max_cost=WORST + REAL, max_tokens=20, samples=2, concurrency=1)
    spent = one.ask(chats("000"), Notes()).facts["cost"]
    assert spent == 2 * REAL
    rest = one.one_more_answer(spent)
    notes = Notes()
    assert rest.ask(chats("001"), notes).answers == ()
    assert "max_cost" in notes.warnings[0]
    assert server.asked == {"000": 2}
    assert len(one.one_more_answer(0.0).ask(chats("001"), Notes()).answers) == 1


def test_an_answer_without_its_tokens_counts_as_the_dearest(server: Server, tmp_path: Path) -> None:
    server.script["000"] = [{"no_usage": True}]
    asked = teacher(server, tmp_path, prices=PRICES, max_cost=10_000, max_tokens=20).ask(chats("000", "001"), Notes())
    assert asked.facts["cost"] == WORST + REAL
    assert asked.facts["answers_without_usage"] == 1


def test_no_tokenizer_makes_more_tokens_than_the_worst_case() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reader = Tokenizer(models.BPE({letter: number for number, letter in enumerate(sorted(alphabet))}, []))
    reader.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("", "plain words", "häßlich", "漢字", "👩‍👩‍👧", "\n\t  x"):
        assert most_input_tokens([Message("user", text)]) >= len(reader.encode(text).ids) + 32


# -- killed

KILLED_AFTER = (1, 7, 19)
PROMPTS = 40
AT_ONCE_WHEN_KILLED = 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork spares each attempt the seconds of its imports")
@both
def test_a_run_killed_at_any_moment_goes_on_and_pays_for_nothing_twice(
    server: Server, tmp_path: Path, protocol: str
) -> None:
    import anthropic  # noqa: F401  before the forks
    import openai  # noqa: F401

    server.seconds = 0.01
    prompts = chats(*(f"question {number}" for number in range(PROMPTS)))
    one = teacher(server, tmp_path, concurrency=AT_ONCE_WHEN_KILLED, protocol=protocol)
    one.ask(chats("warm"), Notes())
    (journal,) = (tmp_path / "answers").glob("*.jsonl")
    server.asked.clear()
    for more in KILLED_AFTER:
        child = os.fork()
        if child == 0:
            try:
                one.ask(prompts, Notes())
            finally:
                os._exit(1)  # it was to be killed before
        wanted = sum(server.asked.values()) + more
        while sum(server.asked.values()) < wanted:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with journal.open("ab") as torn:
        torn.write(b'{"key": "half an ans')
    # The server turns every question round, which tells whose answers are on the disk.
    on_disk = {json.loads(line)["text"][::-1] for line in journal.read_bytes().splitlines()[1:-1]} - {"warm"}
    before = {prompt: server.asked[prompt] for prompt in on_disk}
    assert len(on_disk) >= sum(KILLED_AFTER) - AT_ONCE_WHEN_KILLED * len(KILLED_AFTER)
    done = one.ask(prompts, Notes())
    assert texts(done) == [f"question {number}"[::-1] for number in range(PROMPTS)]
    assert done.facts["answered_before"] == len(on_disk) < PROMPTS
    assert {prompt: server.asked[prompt] for prompt in on_disk} == before, "what is on the disk is not asked for again"
    again = sum(count - 1 for count in server.asked.values())
    assert again <= AT_ONCE_WHEN_KILLED * len(KILLED_AFTER), "only what was on its way at a kill"
    assert len(one.ask(prompts, Notes()).usable) == PROMPTS
    assert sum(server.asked.values()) == PROMPTS + again


def test_what_is_on_its_way_when_a_user_interrupts_is_kept(server: Server, tmp_path: Path) -> None:
    class Interrupting(Notes):
        def update(self, done: int, total: int, note: str = "") -> None:
            if done == 3:
                raise KeyboardInterrupt

    server.seconds = 0.03
    one = teacher(server, tmp_path, concurrency=4)
    prompts = chats(*(f"question {number}" for number in range(10)))
    with pytest.raises(KeyboardInterrupt):
        one.ask(prompts, Interrupting())
    assert 3 <= sum(server.asked.values()) < 10
    assert len(one.ask(prompts, Notes()).usable) == 10
    assert set(server.asked.values()) == {1}


def test_answers_are_kept_with_the_users_data_where_nothing_else_is_said() -> None:
    from edgeforge.cli import default_store

    folder = Endpoint(model="m").journal_folder()
    assert folder.is_absolute()
    assert not folder.is_relative_to(default_store().parent), "what was paid for is in no cache"


def test_two_runs_that_ask_the_same_pay_once(server: Server, tmp_path: Path) -> None:
    server.seconds = 0.02
    one = teacher(server, tmp_path, concurrency=2)
    waited = Notes()
    other = threading.Thread(target=lambda: one.ask(chats("abc", "def", "ghi", "jkl"), Notes()))
    other.start()
    while not server.asked:
        time.sleep(0.001)
    asked = one.ask(chats("abc", "def", "ghi", "jkl"), waited)
    other.join()
    assert len(asked.usable) == 4
    assert set(server.asked.values()) == {1}
    assert (0, 4, "another run is asking") in waited.updates


def test_a_journal_that_something_else_changed_is_refused(server: Server, tmp_path: Path) -> None:
    one = teacher(server, tmp_path)
    one.ask(chats("abc"), Notes())
    (journal,) = (tmp_path / "answers").glob("*.jsonl")
    journal.write_bytes(journal.read_bytes() + b"not an answer\n")
    with pytest.raises(EnvironmentProblem, match=r"\.jsonl:3: this line is no answer"):
        one.ask(chats("abc"), Notes())


def test_a_journal_is_for_its_owner_only_and_says_whose_answers_it_holds(server: Server, tmp_path: Path) -> None:
    one = teacher(server, tmp_path)
    one.ask(chats("xyz uvw"), Notes())
    (journal,) = (tmp_path / "answers").glob("*.jsonl")
    assert journal.stat().st_mode & 0o077 == 0 or os.name == "nt"
    assert json.loads(journal.read_text().splitlines()[0]) == {"teacher": one.settings()}
    assert "xyz uvw" not in journal.read_text()  # prompts are not kept, only their digests


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="answers cannot be kept here"):
        teacher(server, tmp_path).ask(chats("abc"), Notes())
    assert not server.asked


def test_a_full_disk_stops_and_spoils_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script["late"] = [lambda handler: time.sleep(0.2) or {}]
    one = teacher(server, tmp_path, concurrency=2)
    one.ask(chats("abc"), Notes())
    real = os.write
    failed: list[int] = []

    def half_once(handle: int, data: bytes) -> int:
        if b"served_by" in data and not failed:
            failed.append(real(handle, data[: len(data) // 2]))
            raise OSError(28, "No space left on device")
        return real(handle, data)

    monkeypatch.setattr(os, "write", half_once)
    with pytest.raises(EnvironmentProblem, match="an answer cannot be kept: No space left"):
        one.ask(chats("abc", "def", "late", "never"), Notes())
    assert server.asked == {"abc": 1, "def": 1, "late": 1}
    assert texts(one.ask(chats("abc", "def", "late"), Notes())) == ["cba", "fed", "etal"]
    assert server.asked == {"abc": 1, "def": 2, "late": 1}, "half a line spoils no other"
