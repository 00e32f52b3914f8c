"""pipelines/api_teacher.yaml from end to end: a server teaches, the run is killed in the middle of asking and goes on.

`slow` runs it with a tiny student against doubles of both protocols, `real` with SmolLM2-135M behind the server of
llama-cpp-python.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from edgeforge.data import _spec as specs
from edgeforge.data._spec_prompts import prompts
from edgeforge.pipeline import load

if TYPE_CHECKING:
    from tests.conftest import Tales

ROOT = Path(__file__).parent.parent
PIPELINE, FOLDER = ROOT / "pipelines" / "api_teacher.yaml", ROOT / "pipelines" / "api_teacher"
WAIT_S = 1800
KEY = "sk-test-0123456789"
CONSTRAINTS = {"spec_passed", "spec_form", "spec_output", "spec_label", "spec_one_word"}

Reply = Callable[[str, bytes], bytes]
"""The path and body of a request -> the body of its answer."""


class Counting(ThreadingHTTPServer):
    """Counts every request by its messages, and holds back the answer to one of them until it is told to go on."""

    daemon_threads = True

    def __init__(self, reply: Reply, hold: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.hold = reply, hold
        self.asked: list[str] = []
        self.usage: dict[str, tuple[int, int]] = {}
        self.held, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


class _Handler(BaseHTTPRequestHandler):
    server: Counting
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        messages = json.dumps(json.loads(body)["messages"])
        with self.server.lock:
            self.server.asked.append(messages)
            held = len(self.server.asked) == self.server.hold
        if held:
            self.server.held.set()
            assert self.server.go_on.wait(WAIT_S)
        found = self.server.reply(self.path, body)
        usage = json.loads(found)["usage"]
        read, wrote = usage.get("prompt_tokens"), usage.get("completion_tokens")
        self.server.usage[messages] = (read or usage["input_tokens"], wrote or usage["output_tokens"])
        if held:
            self.server.done.set()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Notes:
    """Progress that hears of no trouble."""

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


@contextmanager
def counting(reply: Reply, hold: int) -> Iterator[Counting]:
    """A server that the teacher can be pointed at."""
    server = Counting(reply, hold)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        server.server_close()


def pipeline(folder: Path, server: Counting, **changes: Any) -> Path:
    """The shipped pipeline, its server elsewhere, its answers kept in `folder`, and `changes` to it."""
    source = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))
    source["task"]["data"] |= {part: str(FOLDER / f"{part}.jsonl") for part in ("train", "test")}
    source["task"]["spec"] = source["stages"][0]["spec"] = str(FOLDER / "spec.yaml")
    lessons, *others = source["stages"]
    teacher = {"base_url": f"{server.url}/v1", "journal": str(folder / "answers"), "retries": 0}
    lessons["teacher"] |= {**teacher, **changes.pop("teacher", {})}
    lessons["count"] = changes.pop("count")
    for stage, more in zip(others, changes.pop("stages"), strict=True):
        stage |= more
    source["task"] |= changes.pop("task", {})
    source |= changes
    path = folder / "api_teacher.yaml"
    path.write_text(yaml.safe_dump(source), encoding="utf-8")
    return path


@contextmanager
def started(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`edgeforge run`, in a process of its own, which does not outlive the test."""
    folder = path.parent
    command = [sys.executable, "-m", "edgeforge", "run", str(path), "--out", str(folder / "out")]
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--store", str(folder / "store")],
            env={**plain, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "TEACHER_KEY": KEY},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def finished(path: Path) -> dict[str, Any]:
    """The report of a run that goes to its end."""
    with started(path) as process:
        assert process.wait(WAIT_S) == 0, said(path)
    found: dict[str, Any] = json.loads((path.parent / "out" / "report.json").read_text(encoding="utf-8"))
    return found


def said(path: Path) -> str:
    """The end of what a run's process wrote."""
    return (path.parent / "log").read_text(encoding="utf-8")[-3000:]


def kept(folder: Path) -> list[dict[str, Any]]:
    """The answers in the journal."""
    (journal,) = (folder / "answers").glob("*.jsonl")
    return [json.loads(line) for line in journal.read_bytes().splitlines()[1:]]


def killed_and_resumed(path: Path, server: Counting, count: int) -> dict[str, Any]:
    """The report of a run that is killed while its server works on request number `server.hold`, and run again.

    One request is on its way at a time, and the next is sent when the answer to the last one is on the disk. So what a
    kill can cost is the one whose answer nobody was there to receive; whatever was answered is asked for once.
    """
    with started(path) as process:
        while not server.held.wait(0.2):
            assert process.poll() is None, said(path)
        os.kill(process.pid, signal.SIGKILL)
    before = kept(path.parent)
    assert len(before) == server.hold - 1 == len(set(server.asked)) - 1
    server.go_on.set()
    assert server.done.wait(WAIT_S), "what it was at work on is done, and there is nobody to take it"
    report = finished(path)
    lost = server.asked[server.hold - 1]
    assert Counter(server.asked) == {**dict.fromkeys(server.asked, 1), lost: 2}
    assert len(server.asked) == count + 1
    after = kept(path.parent)
    assert after[: len(before)] == before
    assert len({one["key"] for one in after}) == len(after) == count
    return report


def check_report(report: dict[str, Any], server: Counting, count: int) -> dict[str, Any]:
    """Tokens, the yield of every filter, and every file and the student judged by the spec; the row of the lessons."""
    stages = {row["name"]: row for row in report["stages"]}
    facts = stages["lessons"]["facts"]
    asked = facts["asked"]
    assert (asked["wanted"], asked["answered_before"], sum(asked["answers"].values())) == (
        count,
        server.hold - 1,
        count,
    )
    assert asked["input_tokens"] == sum(read for read, _ in server.usage.values())
    assert asked["output_tokens"] == sum(wrote for _, wrote in server.usage.values())
    yields = facts["yields"]
    assert [one["filter"] for one in yields] == ["spec", "overlap_with_test", "duplicates", "label_balance"]
    assert yields[0]["in"] == asked["answers"]["finished"]
    assert all(one["in"] - one["out"] == sum(one["reasons"].values()) for one in yields)
    assert [one["out"] for one in yields[:-1]] == [one["in"] for one in yields[1:]]
    assert facts["documents"] == yields[-1]["out"] > 0
    assert facts["pass_rates"]["form"]["of"] == yields[0]["in"]
    judged = [stages["student"]["facts"]["metrics"], *(row["metrics"] for row in report["artifacts"])]
    for metrics in judged:
        assert {name for name in metrics if name.startswith("spec_")} == CONSTRAINTS
        assert metrics["spec_passed"] <= min(metrics[name] for name in CONSTRAINTS)
        assert metrics["spec_form"] == 1  # any text is one
    assert all(row["status"] == "shipped" for row in report["artifacts"])
    return stages


def test_the_shipped_pipeline_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = load(PIPELINE)
    spec = specs.read(FOLDER / "spec.yaml")
    assert found.task.data.documents().test  # type: ignore[attr-defined]
    assert found.task.spec == found.stages[0].spec == "pipelines/api_teacher/spec.yaml"  # type: ignore[attr-defined]
    for document in found.task.data.documents().test:  # type: ignore[attr-defined]
        question, answer = (message.content for message in document.messages)
        example = specs.Example(input=question.removeprefix(f"{spec.instruction}\n\n"), output=answer)
        assert spec.chat(example).messages == document.messages
        assert not any(spec.judge(example).values())


# -- doubles

ANIMALS, FOODS = ("dog", "cow", "hen", "pig"), ("pie", "jam", "nut", "egg")
STARVED = "a wild boar"  # which is tested


def example(messages: list[dict[str, str]]) -> str:
    """What a teacher writes: in turn an example, one that it gave before, a tested one, and something else."""
    number, label = (re.findall(pattern, messages[-1]["content"])[-1] for pattern in (r"number (\d+)", r"label: (\w+)"))
    place = int(number)
    noun = (ANIMALS if label == "animal" else FOODS)[place % 4]
    if place % 5 == 0:
        return "I cannot think of one."
    if place % 7 == 0:
        return json.dumps({"input": STARVED, "output": "animal"})
    words = "some" if place % 3 == 0 else f"{('red', 'big', 'odd', 'old')[place % 4]} number {place}"
    return json.dumps({"input": f"{words} {noun}", "output": label})


def openai(path: str, body: bytes) -> bytes:
    assert path == "/v1/chat/completions"
    text = example(json.loads(body)["messages"])
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": len(body), "completion_tokens": len(text), "total_tokens": len(body) + len(text)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    shell = {"id": "1", "object": "chat.completion", "created": 0, "model": "double"}
    return json.dumps({**shell, "choices": [choice], "usage": usage}).encode()


def anthropic(path: str, body: bytes) -> bytes:
    assert path == "/v1/messages"
    asked = json.loads(body)
    assert asked["max_tokens"] == 48
    text = example(asked["messages"])
    usage = {"input_tokens": len(body), "output_tokens": len(text)}
    shell = {"id": "1", "type": "message", "role": "assistant", "model": "double", "stop_reason": "end_turn"}
    return json.dumps({**shell, "content": [{"type": "text", "text": text}], "usage": usage}).encode()


@pytest.mark.slow
@pytest.mark.timeout(WAIT_S)
@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_a_killed_run_goes_on_and_asks_for_nothing_again(protocol: str, tales: Tales, tmp_path: Path) -> None:
    count = 24
    with counting({"openai": openai, "anthropic": anthropic}[protocol], hold=11) as server:
        teacher: dict[str, Any] = {"api_key_env": "TEACHER_KEY", "protocol": protocol}
        if protocol == "anthropic":
            teacher |= {"base_url": server.url}
        path = pipeline(
            tmp_path,
            server,
            count=count,
            teacher=teacher,
            model={"kind": "pretrained", "path": str(tales.torch("llama").path)},
            stages=[
                {"structure": {"kind": "layers", "count": 1}},
                {"structure": {"kind": "ffn_width", "width": 32}},
                {"steps": 6, "batch_size": 2},
            ],
        )
        report = killed_and_resumed(path, server, count)
        stages = check_report(report, server, count)
        reasons = {one["filter"]: one["reasons"] for one in stages["lessons"]["facts"]["yields"]}
        assert reasons["spec"] == {"form: no JSON of input and output": 4}
        assert reasons["overlap_with_test"] == {"a text of the test part": 3}
        assert reasons["duplicates"] == {"there already": 2}
    # Asked once more, with no server and no key: everything is there.
    stage = load(path).stages[0]
    asked = [one.chat for one in prompts(specs.read(FOLDER / "spec.yaml"), count, seed=0)]
    again = stage.teacher.ask(asked, Notes())  # type: ignore[attr-defined]
    assert (again.facts["answered_before"], len(again.answers)) == (count, count)
    for file in (tmp_path / "log", *(tmp_path / "out").glob("report.*"), *(tmp_path / "answers").iterdir()):
        assert KEY not in file.read_text(encoding="utf-8")


# -- the real one


@contextmanager
def llama_server(model: Path, log: Path) -> Iterator[str]:
    """The address of llama.cpp's server with that model; ended by its own pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", "1024", "--n_threads", "1"]
    command += ["--verbose", "false"]
    with log.open("w", encoding="utf-8") as written:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=written, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/v1/models"):
            assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as found:
            return bool(found.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.mark.real
@pytest.mark.timeout(3 * WAIT_S)
def test_smollm2_behind_its_server_teaches_its_own_pruned_student(tmp_path: Path) -> None:
    missing = [name for name in ("llama_cpp", "starlette_context", "uvicorn", "openai") if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'edgeforge[server,api]'")
    from edgeforge.fetchers.smollm2_135m import Smollm2135m

    count, model, log = 16, Smollm2135m().fetch(tmp_path, say=lambda _: None), tmp_path / "server.log"
    with llama_server(model, log) as url:

        def forward(path: str, body: bytes) -> bytes:
            request = urllib.request.Request(url + path, data=body, headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=WAIT_S) as found:
                return bytes(found.read())

        with counting(forward, hold=7) as server:
            path = pipeline(
                tmp_path,
                server,
                count=count,
                teacher={"timeout_seconds": WAIT_S},
                task={"evaluation_windows": 4},
                model={"kind": "gguf", "path": str(model)},
                stages=[{}, {}, {"steps": 20, "batch_size": 2}],
            )
            stages = check_report(killed_and_resumed(path, server, count), server, count)
        # The server's own count: every prompt once, and once more the one it was at work on when the run was killed.
        assert log.read_text(encoding="utf-8").count('"POST /v1/chat/completions HTTP/1.1" 200') == count + 1
    passed = {name: row["facts"]["metrics"]["spec_passed"] for name, row in stages.items() if name != "lessons"}
    assert passed["student"] > passed["narrow"]
    assert passed["student"] >= 0.5
