"""The genuine adb client against a stand-in for the phone's side (adbd_double.py): no phone was measured here."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeforge.core.errors import DeviceProblem
from edgeforge.links import Subject, _remote, _runner, adb, link_of
from edgeforge.links._answers import Answers
from edgeforge.links._programs import NativeRunner

pytest.importorskip("onnx")

DOUBLE = Path(__file__).parent / "adbd_double.py"
HERE = {"x86_64": "x86_64", "aarch64": "arm64-v8a"}


class Said:
    """Progress that keeps what it is told; `until` is a word of a note at which the user presses Ctrl-C."""

    def __init__(self, until: str | None = None) -> None:
        self.warnings: list[str] = []
        self.until = until

    def update(self, done: int, total: int, note: str = "") -> None:
        if self.until and self.until in note:
            raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Phone:
    """A stand-in that runs, connected to the tests' own adb server."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        abi = ("--abi", HERE.get(platform.machine(), "x86_64"))
        self.process = subprocess.Popen(
            [sys.executable, str(DOUBLE), str(root), *abi, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.serial = f"127.0.0.1:{int(self.process.stdout.readline())}"
        subprocess.run(["adb", "connect", self.serial], check=True, capture_output=True)

    def left_behind(self) -> list[str]:
        return [path.name for path in (self.root / "data/local/tmp").iterdir()]

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def _server(needs: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An adb server on a port of its own: the user's is not touched."""
    needs("adb", "adb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", port)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # the server keeps a key there
        patch.delenv("ANDROID_SERIAL", raising=False)
        subprocess.run(["adb", "start-server"], check=True, capture_output=True)
        yield
        subprocess.run(["adb", "kill-server"], check=False, capture_output=True)


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Callable[..., Phone]]:
    phones: list[Phone] = []

    def start(*options: str) -> Phone:
        phones.append(Phone(tmp_path / f"phone{len(phones)}", *options))
        return phones[-1]

    yield start
    for one in phones:
        one.stop()
        subprocess.run(["adb", "disconnect", one.serial], check=False, capture_output=True)


@pytest.fixture
def two(tmp_path: Path, workload: Any, dense: Any, native_runner: str) -> Callable[..., Any]:
    """A workload of a small and a large model."""

    def make(**changes: Any) -> Any:
        subjects = {"model": dense(tmp_path / "small", 16), "baseline": dense(tmp_path / "large", 1500)}
        return workload(tmp_path, subjects, **changes)

    return make


# -- what works


def test_a_phone_is_measured_as_this_machine_is(phone, two) -> None:
    device, said = phone("--model", "Pixel 8"), Said()
    timings = link_of("adb", {"model": "Pixel 8"}).measure(two(sustained={"model": 0.5}), said)
    assert {name: len(samples) for name, samples in timings.latency_ms.items()} == {"model": 30, "baseline": 30}
    assert np.median(timings.latency_ms["baseline"]) > 3 * np.median(timings.latency_ms["model"])
    assert timings.calls_per_sample["model"] > timings.calls_per_sample["baseline"]
    (small,), (large,) = timings.starts["model"], timings.starts["baseline"]
    assert small.peak_rss_mb + 4 * 1500**2 / 1e6 < large.peak_rss_mb, "the weights are in its memory"
    assert large.load_ms > small.load_ms > 0 and small.first_inference_ms > 0
    times = [at_s for at_s, _ in timings.sustained["model"]]
    assert times == sorted(times) and times[0] == 0 and times[-1] < 0.5
    conditions = timings.conditions
    assert conditions["model"] == "Pixel 8"
    assert conditions["runtime_on_device"].startswith("ONNX Runtime 1.")
    assert "no one has run this link on such hardware" in conditions["hardware"]
    assert conditions["seconds"] > 0 and "partial" not in conditions
    assert device.left_behind() == [] and said.warnings == []


def test_the_devices_own_answers_are_those_of_the_file(tmp_path, phone, dense, native_runner) -> None:
    device = phone()
    subject = Subject(runtime="onnxruntime", folder=dense(tmp_path / "model", 64))
    x = np.random.default_rng(0).standard_normal((70, 8)).astype(np.float32)
    np.savez(tmp_path / "shard.npz", x=x)
    answers = link_of("adb").outputs(subject, tmp_path / "shard.npz", Said())
    here = link_of("local").outputs(subject, tmp_path / "shard.npz", Said())
    assert answers.shape == here.shape == (70, 2)
    assert np.allclose(answers, here, rtol=1e-5)
    assert not np.allclose(answers[0], answers[1]), "each sample has its own answer"
    assert device.left_behind() == []


def test_exit_codes_and_files_pass_unchanged(tmp_path, phone) -> None:
    device = phone()
    shell = adb._Adb("adb", device.serial)
    process = shell.start("echo out; echo err >&2; exit 7")
    out, noise = process.communicate()
    assert (out, noise, process.returncode) == ("out\n", "err\n", 7)
    with pytest.raises(DeviceProblem, match="trying ended with exit code 7: err"):
        _remote.run(shell, "echo err >&2; exit 7", "trying")
    content = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "big").write_bytes(content)
    (tmp_path / "big").chmod(0o755)
    shell.push({"deep/big": tmp_path / "big"}, "/data/local/tmp")
    pushed = device.root / "data/local/tmp/deep/big"
    assert hashlib.sha256(pushed.read_bytes()).digest() == hashlib.sha256(content).digest()
    assert os.access(pushed, os.X_OK)
    shell.pull("/data/local/tmp/deep/big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


# -- which device


def test_of_two_devices_one_must_be_chosen(phone, monkeypatch) -> None:
    first, second = phone("--model", "Pixel 8"), phone("--model", "SM S921B")
    with pytest.raises(DeviceProblem, match="2 devices are connected") as found:
        link_of("adb")._shell()
    assert f"{first.serial} (Pixel 8)" in str(found.value) and f"{second.serial} (SM S921B)" in str(found.value)
    assert "serial:" in str(found.value)
    assert link_of("adb", {"serial": second.serial})._shell().where == second.serial
    assert link_of("adb", {"model": "Pixel 8"})._shell().where == first.serial
    monkeypatch.setenv("ANDROID_SERIAL", second.serial)
    assert link_of("adb")._shell().where == second.serial
    monkeypatch.delenv("ANDROID_SERIAL")
    with pytest.raises(DeviceProblem, match=r"Pixel 9 is not connected\n.*connected: .*Pixel 8"):
        link_of("adb", {"model": "Pixel 9"})._shell()


def test_no_device() -> None:
    with pytest.raises(DeviceProblem, match="no Android device is connected"):
        link_of("adb")._shell()


def test_a_device_that_has_not_allowed_this_computer(phone) -> None:
    phone("--unauthorized")
    with pytest.raises(DeviceProblem, match="has not allowed this computer"):
        link_of("adb")._shell()


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("R58M offline usb:1-1 transport_id:3", "it is offline"),
        ("R58M no permissions (missing udev rules? user is in the plugdev group); see [x]", "may not use it"),
        ("R58M recovery product:x", "recovery mode"),
        ("R58M rescue", "state 'rescue'"),
    ],
)
def test_other_states_are_said(line: str, meaning: str) -> None:
    with pytest.raises(DeviceProblem, match=meaning):
        adb._chosen([adb._parsed(line)], None, None)


def test_without_adb(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeviceProblem, match="`adb` is not installed"):
        link_of("adb")._shell()


# -- what goes wrong


def test_a_processor_without_a_runner(phone, two) -> None:
    device = phone("--abi", "armeabi-v7a,armeabi")
    with pytest.raises(DeviceProblem, match=r"its processor .armeabi-v7a. is none that the runner exists for"):
        link_of("adb").measure(two(), Said())
    assert device.left_behind() == []


def test_a_full_device(phone, two) -> None:
    device, said = phone("--space", "1000000"), Said()
    with pytest.raises(DeviceProblem, match="no space is left on it while copying"):
        link_of("adb").measure(two(), said)
    assert device.left_behind() == [] and said.warnings == []


def test_a_runtime_too_old_for_the_file(tmp_path, phone, workload, dense, native_runner) -> None:
    device = phone()
    future = dense(tmp_path / "future", 16, 99)
    with pytest.raises(DeviceProblem, match=r"start of model failed: ONNX Runtime 1.* cannot open it") as found:
        link_of("adb").measure(workload(tmp_path, {"model": future}), Said())
    assert "too old for this file" in str(found.value)
    assert device.left_behind() == []


def test_a_device_that_vanishes_halfway_leaves_its_whole_rounds(phone, two, monkeypatch) -> None:
    monkeypatch.setattr(_remote, "CLEANUP_PAUSES_S", (0.0,))
    device, said = phone("--vanish-after", "6"), Said()
    timings = link_of("adb").measure(two(), said)
    rounds = {len(samples) for samples in timings.latency_ms.values()}
    assert len(rounds) == 1 and 1 <= rounds.pop() <= 6
    assert "device was lost" in timings.conditions["partial"] and "of 30 rounds" in timings.conditions["partial"]
    assert timings.calls_per_sample == {} and timings.waiting_share is None
    assert len(timings.starts["model"]) == 1
    assert any("lost" in text for text in said.warnings)
    assert any("may be left on the device" in text for text in said.warnings)
    # Nobody tells the phone; its runner finds that nobody reads, and its shell clears up.
    deadline = time.monotonic() + 20
    while device.left_behind() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert device.left_behind() == []


def test_a_runner_that_the_device_ends_keeps_its_rounds(phone, two) -> None:
    device, said = phone("--kill-after", "4"), Said()
    timings = link_of("adb").measure(two(samples=300), said)
    assert 4 <= len(timings.latency_ms["model"]) < 300
    assert "the device ended the race (signal 9)" in timings.conditions["partial"]
    assert device.left_behind() == []


def test_ctrl_c_leaves_nothing_behind(phone, two) -> None:
    device = phone()
    with pytest.raises(KeyboardInterrupt):
        link_of("adb").measure(two(), Said(until="timing"))
    assert device.left_behind() == []


# -- the runner


def test_without_the_library_the_user_is_told_how_to_fetch_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_runner, "folder", lambda: tmp_path)
    with pytest.raises(DeviceProblem, match="edgeforge fetch android-runner"):
        _runner.built(_runner.MACHINES["aarch64"])
    (tmp_path / _runner.library("aarch64")).touch()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeviceProblem, match=r"no C compiler for aarch64.*\n.*gcc-aarch64-linux-gnu"):
        _runner.built(_runner.MACHINES["aarch64"])


def test_the_runner_for_phones_compiles(tmp_path, monkeypatch, needs) -> None:
    import struct

    needs("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross")
    monkeypatch.setattr(_runner, "folder", lambda: tmp_path)
    (tmp_path / _runner.library("aarch64")).touch()
    files = _runner.built(_runner.MACHINES["aarch64"])
    for name in ("efrun", "lib/libc.so.6", "lib/ld-linux-aarch64.so.1"):
        head = files[name].read_bytes()[:20]
        assert head[:4] == b"\x7fELF" and struct.unpack("<H", head[18:20]) == (183,), f"{name} is for Arm64"
    built = files["efrun"].stat().st_mtime_ns
    assert _runner.built(_runner.MACHINES["aarch64"])["efrun"].stat().st_mtime_ns == built, "kept"


CPUINFO = """\
processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0b
CPU revision\t: 1
"""


@pytest.mark.real
def test_the_runner_for_phones_answers_on_an_emulated_processor(tmp_path, monkeypatch, needs, workload, dense) -> None:
    """The very files that are copied to a phone, on a Cortex-A76 under qemu: not Android, but every instruction."""
    from edgeforge.fetchers.android_runner import AndroidRunner

    emulator = needs("qemu-aarch64-static", "qemu-user-static")
    needs("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross")
    monkeypatch.setattr(_runner, "folder", lambda: tmp_path / "runners")
    AndroidRunner().fetch(tmp_path, say=lambda text: None)
    job = workload(tmp_path, {"model": dense(tmp_path / "model", 64)}, samples=5)
    x = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    np.savez(job.inputs, x=x)
    program, device = NativeRunner(_runner.MACHINES["aarch64"]), tmp_path / "device"
    (tmp_path / "scratch").mkdir()
    for name, path in program.files(job.inputs, tmp_path / "scratch").items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, device / name)
    shutil.copytree(tmp_path / "model", device / "subjects" / "model")
    # ONNX Runtime looks at what processor this is, and must not find this machine's.
    root = tmp_path / "root"
    cores = root / "sys/devices/system/cpu"
    for name, text in {cores / "possible": "0", cores / "present": "0", root / "proc/cpuinfo": CPUINFO}.items():
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(f"{text}\n")
    found = {}
    for what in ("start", "race", "outputs"):
        (device / "job").write_text(program.job(what, job, ["model"]))
        command = f"{emulator} -cpu cortex-a76 -L {root} {program.command(what, 'job')}"
        done = subprocess.run(["sh", "-c", command], cwd=device, capture_output=True, text=True, check=True)
        found[what] = Answers.of(done.stdout)
    assert found["start"].start is not None and found["start"].start.peak_rss_mb > 10
    assert len(found["race"].rounds) == 5 and found["race"].end is not None
    answers = np.fromfile(device / "outputs.bin", np.float32).reshape(found["outputs"].shape or ())
    here = link_of("local").outputs(Subject(runtime="onnxruntime", folder=tmp_path / "model"), job.inputs, Said())
    assert np.allclose(answers, here, rtol=1e-4)


def test_only_onnx_files_are_measured_there() -> None:
    assert link_of("adb").unavailable("onnxruntime") is None
    assert "openvino is not" in str(link_of("adb").unavailable("openvino"))
