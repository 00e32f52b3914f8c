"""The genuine OpenSSH client against a genuine server on 127.0.0.1, with keys that are thrown away."""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeforge.core.errors import ConfigurationError, DeviceProblem
from edgeforge.links import Subject, Timings, Workload, _llama_worker, _remote, link_of

pytest.importorskip("onnx")

SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv TMPDIR={folder}/tmp
"""
CLIENT = """\
Host board
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
"""


class Board:
    """A server that runs; `config` is the client's configuration, in which it is called `board`."""

    def __init__(self, folder: Path, sshd: str, keygen: str) -> None:
        self.folder, self.config, self._keygen = folder, folder / "config", keygen
        (folder / "tmp").mkdir()
        for name in ("host_key", "user_key"):
            self.make_key(name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        places = {"port": self.port, "folder": folder, "user": getpass.getuser()}
        (folder / "sshd_config").write_text(SERVER.format(**places))
        self.config.write_text(CLIENT.format(**places))
        self.know(folder / "host_key.pub")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # the server's own; the system's start script makes it elsewhere
        command = [sshd, "-D", "-e", "-f", str(folder / "sshd_config")]
        self.server = subprocess.Popen(command, stderr=(folder / "log").open("w"))
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.server.poll() is None, (self.folder / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the server does not listen")

    def make_key(self, name: str) -> Path:
        path = self.folder / name
        subprocess.run([self._keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        return path

    def know(self, key: Path) -> None:
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key.read_text()}")

    def lose(self) -> None:
        """End the server and every connection, as a device that is switched off does."""
        sessions = psutil.Process(self.server.pid).children() if self.server.poll() is None else []
        self.server.kill()
        self.server.wait()
        for session in sessions:
            session.kill()

    def left_behind(self) -> list[str]:
        return [path.name for path in (self.folder / "tmp").iterdir()]

    def link(self, **changes: Any) -> Any:
        known = {"host": "board", "config": str(self.config), "python": shlex.quote(sys.executable)}
        return link_of("ssh", {**known, **changes})


class Said:
    """Progress that keeps what it is told, and does something when a note says so."""

    def __init__(self, until: str = "", then: Callable[[], None] = lambda: None, after: int = 0) -> None:
        self.warnings: list[str] = []
        self.until, self.then, self.after = until, then, after

    def update(self, done: int, total: int, note: str = "") -> None:
        if self.until and self.until in note and done >= self.after:
            self.until = ""
            self.then()

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def board(needs: Callable[[str, str], str], tmp_path: Path) -> Iterator[Board]:
    needs("ssh", "openssh-client")
    started = Board(tmp_path, needs("sshd", "openssh-server"), needs("ssh-keygen", "openssh-client"))
    yield started
    started.lose()


@pytest.fixture
def two(tmp_path: Path, workload: Any, dense: Any) -> Callable[..., Workload]:
    """A workload of a small and a large model."""

    def make(**changes: Any) -> Workload:
        subjects = {"model": dense(tmp_path / "small", 16), "baseline": dense(tmp_path / "large", 1500)}
        return workload(tmp_path, subjects, **changes)

    return make


@pytest.fixture(scope="module")
def gguf(tales: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as GGUF."""
    pytest.importorskip("llama_cpp")
    from edgeforge.exporters.gguf import Gguf

    folder = tmp_path_factory.mktemp("gguf")
    Gguf(type="f32").export(tales.torch("llama"), tales.job(folder))
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Callable[..., Workload]:
    """A workload of language models in these folders."""

    def make(subjects: dict[str, Path], **changes: Any) -> Workload:
        np.savez(tmp_path / "prompt.npz", input_ids=np.arange(3, 63)[None])
        found = {name: Subject(runtime="llama_cpp", folder=folder) for name, folder in subjects.items()}
        settings = {
            "samples": 3,
            "warmup": 1,
            "starts": {"model": 1},
            "min_sample_ms": 1,
            "threads": 1,
            "new_tokens": 8,
        }
        return Workload(subjects=found, inputs=tmp_path / "prompt.npz", **{**settings, **changes})

    return make


# -- what works


@pytest.mark.slow
def test_another_computer_is_measured_as_this_one_is(board, two) -> None:
    said = Said()
    timings = board.link().measure(two(sustained={"model": 0.5}), said)
    assert {name: len(samples) for name, samples in timings.latency_ms.items()} == {"model": 30, "baseline": 30}
    assert np.median(timings.latency_ms["baseline"]) > 3 * np.median(timings.latency_ms["model"])
    (small,), (large,) = timings.starts["model"], timings.starts["baseline"]
    assert small.peak_rss_mb + 4 * 1500**2 / 1e6 < large.peak_rss_mb
    assert 0 < timings.sustained["model"][-1][0] < 0.5
    import onnxruntime

    assert timings.conditions["runtime_on_device"] == f"ONNX Runtime {onnxruntime.__version__}"
    assert timings.conditions["load_average_before"] and "partial" not in timings.conditions
    assert board.left_behind() == [] and said.warnings == []


@pytest.mark.slow
def test_a_computer_without_python_gets_the_native_runner(board, two, native_runner) -> None:
    timings = board.link(runner="native", python="/nowhere").measure(two(), Said())
    assert np.median(timings.latency_ms["baseline"]) > 3 * np.median(timings.latency_ms["model"])
    assert timings.conditions["runtime_on_device"].startswith("ONNX Runtime 1.")
    assert board.left_behind() == []


def test_language_models_are_measured_there_without_edgeforge(board, texts, gguf) -> None:
    import llama_cpp

    said = Said()
    work = texts({"model": gguf, "baseline": gguf}, sustained={"model": 0.2})
    timings = board.link().measure(work, said)
    for samples in (timings.latency_ms, timings.prefill_ms):
        assert {name: len(values) for name, values in samples.items()} == {"model": 3, "baseline": 3}
        assert min(min(values) for values in samples.values()) > 0
    assert min(timings.memory_gb_per_s) > 0.1 and timings.sustained["model"]
    assert 10 < timings.starts["model"][0].peak_rss_mb < 1000
    assert (timings.conditions["prompt_tokens"], timings.conditions["new_tokens"]) == (60, 8)
    assert timings.conditions["runtime_on_device"] == f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
    assert board.left_behind() == [] and said.warnings == []


def test_a_language_model_s_answers_come_from_there(board, gguf, tmp_path) -> None:
    ids = np.random.default_rng(0).integers(3, 300, (3, 12))
    np.savez(tmp_path / "shard.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    subject = Subject(runtime="llama_cpp", folder=gguf)
    answers = board.link().outputs(subject, tmp_path / "shard.npz", Said())
    assert np.array_equal(answers, link_of("local").outputs(subject, tmp_path / "shard.npz", Said()))
    assert board.left_behind() == []


def test_the_program_for_language_models_needs_llama_cpp_and_numpy_alone(gguf, tmp_path) -> None:
    """Run with an empty path beside the program, so that whatever else it imports is missed."""
    for name in ("llama_cpp", "numpy"):
        folder = Path(importlib.util.find_spec(name).origin).parent
        for part in folder.parent.glob(f"{name}*"):
            (tmp_path / part.name).symlink_to(part)
    # Of llama_cpp's own needs those that its low-level part imports.
    for name in ("typing_extensions", "diskcache", "jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin) if spec and spec.origin else None
        if origin is not None:
            part = origin.parent if origin.name == "__init__.py" else origin
            (tmp_path / part.name).symlink_to(part)
    _llama_worker.archive(tmp_path / "worker.pyz")
    ids = np.arange(3, 20)[None]
    np.savez(tmp_path / "inputs.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    job = {
        "what": "outputs", "subjects": {"model": {"runtime": "llama_cpp", "folder": str(gguf)}}, "threads": 1,
        "inputs": "inputs.npz", "outputs": "outputs.bin", "cores": [],
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-S", "worker.pyz"], cwd=tmp_path, input=json.dumps(job), capture_output=True, text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"outputs": {"shape": [1, 17, 352]}}


def test_its_own_answers_are_those_of_the_file(board, dense, tmp_path) -> None:
    subject = Subject(runtime="onnxruntime", folder=dense(tmp_path / "model", 64))
    x = np.random.default_rng(0).standard_normal((70, 8)).astype(np.float32)
    np.savez(tmp_path / "shard.npz", x=x)
    answers = board.link().outputs(subject, tmp_path / "shard.npz", Said())
    assert np.array_equal(answers, link_of("local").outputs(subject, tmp_path / "shard.npz", Said()))
    assert answers.shape == (70, 2)
    assert board.left_behind() == []


# -- what goes wrong


def test_a_host_key_that_changed(board, two) -> None:
    board.know(board.make_key("another").with_suffix(".pub"))
    with pytest.raises(DeviceProblem, match="host key is not the one that was known") as found:
        board.link().measure(two(), Said())
    assert "ssh-keygen -R board" in str(found.value)
    assert board.left_behind() == []


def test_a_host_key_that_nobody_has_seen(board, two) -> None:
    (board.folder / "known_hosts").write_text("")
    with pytest.raises(DeviceProblem, match="host key is not known yet"):
        board.link().measure(two(), Said())


def test_a_key_that_is_not_accepted(board, two) -> None:
    (board.folder / "user_key.pub").write_text("")
    with pytest.raises(DeviceProblem, match="does not accept") as found:
        board.link().measure(two(), Said())
    assert "ssh-copy-id board" in str(found.value)


def test_a_computer_without_a_server(board, two) -> None:
    board.lose()
    with pytest.raises(DeviceProblem, match="no SSH server answers"):
        board.link().measure(two(), Said())


def test_no_such_python(board, two) -> None:
    with pytest.raises(DeviceProblem, match="`/nowhere/python` does not start there") as found:
        board.link(python="/nowhere/python").measure(two(), Said())
    assert "runner: native" in str(found.value)


def test_a_python_without_onnxruntime(board, two) -> None:
    bare = board.folder / "bare"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(DeviceProblem, match="has no onnxruntime there") as found:
        board.link(python=str(bare)).measure(two(), Said())
    assert "pip install onnxruntime" in str(found.value)


def test_a_python_without_llama_cpp(board, texts, gguf) -> None:
    bare = board.folder / "bare"
    bare.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(DeviceProblem, match="has no llama-cpp-python there") as found:
        board.link(python=str(bare)).measure(texts({"model": gguf}), Said())
    assert "pip install llama-cpp-python" in str(found.value) and "native" not in str(found.value)


def test_a_damaged_language_model(board, texts, gguf, tmp_path) -> None:
    (tmp_path / "model.gguf").write_bytes((gguf / "model.gguf").read_bytes()[:5000])
    with pytest.raises(DeviceProblem, match=r"start of model failed.*cannot open it"):
        board.link().measure(texts({"model": tmp_path}), Said())
    assert board.left_behind() == []


def test_an_old_python_is_told_so(tmp_path) -> None:
    """The program's first lines run on any Python 3."""
    _llama_worker.archive(tmp_path / "worker.pyz")
    with zipfile.ZipFile(tmp_path / "worker.pyz") as packed:
        main = packed.read("__main__.py").decode()
    said: list[str] = []
    old = types.SimpleNamespace(version_info=(3, 9, 2))
    exec(main.replace("import sys\n", ""), {"sys": old, "print": said.append})
    assert "3.10 is needed" in json.loads(said[0])["error"]


def test_classifiers_and_language_models_are_not_mixed(texts, gguf) -> None:
    work = texts({"model": gguf, "baseline": gguf})
    mixed = {**work.subjects, "baseline": Subject(runtime="onnxruntime", folder=gguf)}
    for wrong in (work.model_copy(update={"subjects": mixed}), work.model_copy(update={"new_tokens": 0})):
        with pytest.raises(DeviceProblem, match="language models are measured over ssh as GGUF files"):
            link_of("ssh", {"host": "board"}).measure(wrong, Said())


@pytest.mark.parametrize(("processor", "said"), [("cpu", (10.0,)), ("cuda", ())])
def test_memory_is_the_processor_s_and_not_a_gpu_s(monkeypatch, texts, gguf, processor, said) -> None:
    found = Timings(
        starts={}, latency_ms={}, calls_per_sample={}, waiting_share=None, conditions={}, memory_gb_per_s=(10.0,)
    )
    monkeypatch.setattr(_remote, "measure", lambda *rest: found)
    monkeypatch.setattr(_remote, "answer", lambda *rest: "True")
    link = link_of("ssh", {"host": "board", "processor": processor})
    assert link.measure(texts({"model": gguf}), Said()).memory_gb_per_s == said


def test_the_native_runner_takes_no_language_models() -> None:
    assert "runner: python" in str(link_of("ssh", {"host": "board", "runner": "native"}).unavailable("llama_cpp"))
    assert link_of("ssh", {"host": "board"}).unavailable("llama_cpp") is None
    assert "coreml is not" in str(link_of("ssh", {"host": "board"}).unavailable("coreml"))


def test_a_runtime_too_old_for_the_file(board, workload, dense, tmp_path) -> None:
    future = dense(tmp_path / "future", 16, 99)
    with pytest.raises(DeviceProblem, match=r"start of model failed: ONNX Runtime 1.* cannot open it") as found:
        board.link().measure(workload(tmp_path, {"model": future}), Said())
    assert "too old for this file" in str(found.value)
    assert board.left_behind() == []


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Unsupported model IR version: 13, max supported IR version: 10", "too old for this file"),
        ("ONNX Runtime only guarantees support for models stamped with opset version 1 to 21", "too old for this file"),
        ("NOT_IMPLEMENTED : Could not find an implementation for MatMulNBits(1) node", "too old for this file"),
        ("Fatal error: com.microsoft:MatMulNBits(-1) is not a registered function/op", "too old for this file"),
        ("std::bad_alloc", "memory ran out"),
        ("Failed to allocate memory for requested buffer of size 8589934592", "memory ran out"),
        ("out of memory", "memory ran out"),
        ("llama.cpp cannot open it: error loading model: unknown model architecture: 'new'", "newer llama-cpp-python"),
        ("Protobuf parsing failed.", None),
    ],
)
def test_what_to_do_where_a_runtime_refuses(said: str, remedy: str | None) -> None:
    found = _remote._remedy(said)
    assert (found is None) if remedy is None else (remedy in str(found))


def test_a_processor_without_a_native_runner(monkeypatch) -> None:
    monkeypatch.setattr(_remote, "run", lambda shell, command, doing: {"uname -m": "Welcome!\narmv7l\n"}[command])
    link = link_of("ssh", {"host": "old-board", "runner": "native"})
    with pytest.raises(DeviceProblem, match=r"does not exist for its processor .armv7l.") as found:
        link.outputs(Subject(runtime="onnxruntime", folder=Path("model")), Path("inputs.npz"), Said())
    assert "aarch64" in str(found.value)


def test_a_greeting_of_the_users_shell_is_no_answer(monkeypatch, tmp_path) -> None:
    """Start-up files print on every connection."""
    said: list[str] = []

    def run(shell: Any, command: str, doing: str, *, timeout_s: float = 60) -> str:
        said.append(command)
        return f"Welcome to my board!\n{'/tmp/edgeforge-1234' if 'mktemp' in command else 'True'}\n"

    monkeypatch.setattr(_remote, "run", run)
    link = link_of("ssh", {"host": "board"})
    link._check_python(link._shell(), "onnxruntime")
    with _remote._folder_on(link._shell(), Said()) as folder:
        assert folder == "/tmp/edgeforge-1234"
    assert said[-1] == "rm -rf /tmp/edgeforge-1234"


def test_a_full_disk(board, two) -> None:
    small = board.folder / "tmp"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small disk cannot be mounted here (not root)")
    try:
        with pytest.raises(DeviceProblem, match="no space is left on it"):
            board.link().measure(two(), Said())
        assert board.left_behind() == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_a_connection_that_is_lost_halfway_leaves_its_whole_rounds(board, two, monkeypatch) -> None:
    monkeypatch.setattr(_remote, "CLEANUP_PAUSES_S", (0.0,))

    said = Said("timing", board.lose, after=1 + 5)
    timings = board.link().measure(two(samples=3000, starts={"model": 1}), said)
    rounds = {len(samples) for samples in timings.latency_ms.values()}
    assert len(rounds) == 1 and 5 <= rounds.pop() < 3000
    assert "of 3000 rounds were measured: the connection was lost" in timings.conditions["partial"]
    assert any("may be left on the device" in text for text in said.warnings)
    # Nobody tells the device; its worker finds that nobody reads, and its shell clears up.
    deadline = time.monotonic() + 20
    while board.left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert board.left_behind() == []


def test_ctrl_c_leaves_nothing_behind(board, two) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        board.link().measure(two(starts={}), Said("timing", interrupt))
    assert board.left_behind() == []


# -- what the user said


def test_a_device_without_an_address() -> None:
    with pytest.raises(DeviceProblem, match="nobody has said where this device is"):
        link_of("ssh")._shell()


def test_a_host_that_is_an_option() -> None:
    with pytest.raises(DeviceProblem, match="no host name"):
        link_of("ssh", {"host": "-oProxyCommand=touch x"})._shell()


def test_an_unknown_key_of_the_connection() -> None:
    with pytest.raises(ConfigurationError, match=r"connection\.?.*unknown key 'hots'; perhaps you meant 'host'"):
        link_of("ssh", {"hots": "board"})


def test_names_that_no_one_knows_are_said() -> None:
    shell = link_of("ssh", {"host": "pi@nowhere.invalid"})._shell()
    noise = "ssh: Could not resolve hostname nowhere.invalid: Name or service not known\n"
    assert shell.problem(255, noise, "trying").what == "no device has that name"
    noise = "ssh: connect to host 192.0.2.1 port 22: Connection timed out\n"
    assert shell.problem(255, noise, "trying").what == "it does not answer"
