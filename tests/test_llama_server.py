"""A GGUF file that EdgeForge wrote, served by llama-cpp-python's OpenAI-compatible server, as docs/language_models.md
shows it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.conftest import Tales

PAGE = Path(__file__).parent.parent / "docs" / "language_models.md"
START_S = 90

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("llama_cpp", "starlette_context", "uvicorn") if find_spec(name) is None]
    if missing:
        pytest.skip(f"the server needs {', '.join(missing)}: pip install 'edgeforge[server]'")
    from edgeforge.exporters.gguf import Gguf

    made = tmp_path_factory.mktemp("served")
    Gguf(type="f16").export(tales.torch("llama"), tales.job(made))
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    """The address of a server of its own; ended by its own pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / "model.gguf")]
    log = (folder.parent / "server.log").open("w+", encoding="utf-8")
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--n_ctx", "256"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + START_S
        while not answers(f"http://127.0.0.1:{port}/v1/models"):
            log.seek(0)
            assert process.poll() is None, log.read()[-2000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as found:
            return bool(found.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def ask(url: str, content: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_it_continues_a_text_as_the_file_does(folder: Path, server: str) -> None:
    from edgeforge.models import tokenizer
    from edgeforge.runtimes.llama_cpp import LlamaCpp

    prompt = "The fox is"
    found = ask(f"{server}/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0})
    choice = found["choices"][0]
    session, reader = LlamaCpp().open(folder, threads=1), tokenizer.read(folder)
    (expected,) = session.generate([session.tokenize(prompt)], 8)
    session.close()
    assert found["usage"]["prompt_tokens"] in (len(reader(prompt)["input_ids"]), len(reader(prompt)["input_ids"]) + 1)
    assert choice["text"].encode("utf-8", "replace")[:4] == reader.decode(expected).encode("utf-8", "replace")[:4]


def test_it_chats_by_the_template_in_the_file(server: str) -> None:
    """The request of the page, word for word, to another port."""
    (example,) = re.findall(r"curl .*?/v1/chat/completions.*?-d '(.*?)'\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    content = json.loads(example)
    found = ask(f"{server}/v1/chat/completions", {**content, "max_tokens": 8, "temperature": 0})
    choice = found["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    from_text = {"prompt": template.format(content["messages"][-1]["content"]), "max_tokens": 8, "temperature": 0}
    same = ask(f"{server}/v1/completions", from_text)["choices"][0]
    if len(content["messages"]) == 1:
        assert choice["message"]["content"] == same["text"]


def test_a_student_can_be_taught_by_it(server: str, tmp_path: Path) -> None:
    """`teacher: endpoint` asks it as any server: its words, its count of tokens, and each question once."""
    pytest.importorskip("openai", reason="pip install 'edgeforge[api]'")
    from edgeforge.data import Message
    from edgeforge.teachers.endpoint import Endpoint

    class Silent:
        def update(self, done: int, total: int, note: str = "") -> None:
            pass

        def warn(self, message: str) -> None:
            raise AssertionError(message)

    said = {"model": "m", "temperature": 0, "max_tokens": 6, "concurrency": 2}
    teacher = Endpoint.model_validate({**said, "base_url": f"{server}/v1", "journal": str(tmp_path)})
    questions = ["Why is the sky blue?", "Who met the whale?", "Where did the fox run?"]
    asked = teacher.ask([[Message("user", question)] for question in questions], Silent())
    for question, answer in zip(questions, asked.answers, strict=True):
        body = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 6}
        direct = ask(f"{server}/v1/chat/completions", body)
        assert answer.text == direct["choices"][0]["message"]["content"]
        assert answer.input_tokens == direct["usage"]["prompt_tokens"]
        assert (answer.finish == "cut_off") == (direct["choices"][0]["finish_reason"] == "length")
    again = teacher.ask([[Message("user", question)] for question in questions], Silent())
    assert again.answers == asked.answers
    assert again.facts["answered_before"] == 3
