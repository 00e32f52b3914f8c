"""An emulated Arm64 processor: with a stand-in for qemu where qemu is not what is tested, and for real (`-m real`)."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgeforge.core.errors import ConfigurationError, DeviceProblem
from edgeforge.device import profiles
from edgeforge.links import Subject, Workload, _emulator, _remote, _runner, link_of
from edgeforge.links._answers import Answers
from edgeforge.links.qemu import metrics

pytest.importorskip("onnx")

CROSS = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross"
CLASSES = (
    *("branch", "load", "store", "integer", "vector_load", "vector_store"),
    *("dot_product", "int8_matrix", "multiply_add", "vector_other", "other"),
)


class Said:
    """Progress that keeps warnings; at a note with `until` in it the user presses Ctrl-C, the second time it comes."""

    def __init__(self, until: str | None = None) -> None:
        self.warnings: list[str] = []
        self.until, self.heard = until, 0

    def update(self, done: int, total: int, note: str = "") -> None:
        self.heard += bool(self.until and self.until in note)
        if self.heard > 1:
            raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        self.warnings.append(message)


# -- counts


def test_every_instruction_is_of_one_class(tmp_path, needs) -> None:
    """Words from the assembler, whose mnemonics say what they are."""
    needs("aarch64-linux-gnu-as", CROSS)
    compiler = needs("gcc", "gcc libc6-dev")
    text = {
        "branch": "b .; bl .; b.ne .; cbz x0, .; tbnz x0, 3, .; ret; blr x1",
        "load": "ldr x0, [x1]; ldrb w0, [x1], 1; ldrsw x0, [x1, 4]; ldp x0, x1, [sp, 16]; ldur x0, [x1, -3]; "
        "ldxr x0, [x1]; ldar w0, [x1]; ldr x0, .; ldadd x0, x1, [x2]; swpal w0, w1, [x2]; prfm pldl1keep, [x0]",
        "store": "str x0, [x1]; strb w0, [x1, x2]; stp x0, x1, [sp, -16]!; stur x0, [x1, -3]; stlr w0, [x1]",
        "integer": "add x0, x1, x2; add x0, x1, 5; mov x0, 7; madd x0, x1, x2, x3; adrp x0, .; csel x0, x1, x2, eq; "
        "lsr x0, x1, 3; cmp x0, 9; udiv x0, x1, x2",
        "vector_load": "ldr q0, [x1]; ldp q0, q1, [x2], 32; ld1 {v0.16b, v1.16b}, [x0]; ld1r {v0.4s}, [x1]; "
        "ldr d0, [x1, 8]; ldur s0, [x1, -4]; ldr b0, [x1]",
        "vector_store": "str q0, [x1]; stp d0, d1, [x2]; st1 {v0.4s}, [x0], 16; stur q0, [x1, -16]; str h0, [x1]",
        "dot_product": "sdot v0.4s, v1.16b, v2.16b; udot v0.2s, v1.8b, v2.8b; sdot v0.4s, v1.16b, v2.4b[3]; "
        "udot v0.4s, v1.16b, v31.4b[0]; usdot v0.4s, v1.16b, v2.16b; usdot v0.4s, v1.16b, v2.4b[1]; "
        "sudot v0.4s, v1.16b, v2.4b[2]",
        "int8_matrix": "smmla v0.4s, v1.16b, v2.16b; ummla v0.4s, v1.16b, v2.16b; usmmla v0.4s, v1.16b, v2.16b",
        "multiply_add": "fmla v0.4s, v1.4s, v2.4s; fmls v0.2d, v1.2d, v2.2d; fmla v0.4s, v1.4s, v2.s[1]; "
        "fmla v0.8h, v1.8h, v2.8h; fmla v0.8h, v1.8h, v2.h[5]; fmadd s0, s1, s2, s3; fnmsub d0, d1, d2, d3; "
        "fmla s0, s1, v2.s[0]",
        "vector_other": "fadd v0.4s, v1.4s, v2.4s; smlal v0.8h, v1.8b, v2.8b; mla v0.4s, v1.4s, v2.4s; "
        "fmul s0, s1, s2; dup v0.4s, w1; fmulx v0.4s, v1.4s, v2.s[0]; bfdot v0.4s, v1.8h, v2.8h; "
        "bfmmla v0.4s, v1.8h, v2.8h; zip1 v0.16b, v1.16b, v2.16b; fcvtzs x0, d1; "
        "fcmla v0.4s, v1.4s, v2.s[0], 0; movi v0.4s, 0",
        "other": "nop; svc 0; dmb ish; mrs x0, tpidr_el0; add z0.s, z1.s, z2.s",
    }
    library = tmp_path / "count.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, _emulator.SOURCE], check=True)
    counter = ctypes.CDLL(str(library), mode=1)  # lazily: the functions of qemu are not there
    counter.name_of.restype = ctypes.c_char_p
    assert tuple(counter.name_of(index).decode() for index in range(len(CLASSES))) == CLASSES
    for name, instructions in text.items():
        for instruction in instructions.split("; "):
            word = assembled(tmp_path, instruction)
            assert counter.name_of(counter.classify(word)).decode() == name, instruction


def assembled(folder: Path, instruction: str) -> int:
    path = folder / "object"
    command = ["aarch64-linux-gnu-as", "-march=armv8.6-a+sve+fp16+i8mm+bf16", "-o", str(path), "-"]
    subprocess.run(command, input=f"{instruction}\n", text=True, check=True)
    raw = folder / "raw"
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", path, raw], check=True)
    return int.from_bytes(raw.read_bytes()[:4], "little")


def test_what_is_reported_of_a_call() -> None:
    counts = {name: float(10**index) for index, name in enumerate(CLASSES)}
    assert metrics(counts) == {
        "instructions": 11_111_111_111,
        "instructions_vector": 10**6 + 10**7 + 10**8 + 10**9,
        "instructions_dot_product": 10**6,
        "instructions_int8_matrix": 10**7,
        "instructions_memory": 10 + 100 + 10**4 + 10**5,
    }


def test_counts_are_read_among_what_else_is_said() -> None:
    said = ["a library's news", '{"instructions": {"load": 3}}', '{"done": 1}', '{"instructions": {"lo']
    answers = Answers.of("\n".join(said))
    assert answers.instructions == [{"load": 3}] and answers.done == 1 and not answers.finished


# -- a stand-in for qemu

NEWS = '{{"instructions": {{{counts}}}}}'


def line(**counts: int) -> str:
    every = {**dict.fromkeys(CLASSES, 0), **counts}
    return NEWS.format(counts=", ".join(f'"{name}": {count}' for name, count in every.items()))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Make a program that is run in qemu's place, from a shell script; the folder where temporary files are made."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "count.so").touch()
    program = tmp_path / "qemu-aarch64"
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(_emulator, "emulator", lambda: str(program))
    monkeypatch.setattr(_emulator, "missing", lambda: None)
    monkeypatch.setattr(_emulator, "plugin", lambda: tmp_path / "count.so")
    monkeypatch.setattr(_runner, "built", lambda machine: {"efrun": tmp_path / "count.so"})

    def make(script: str) -> Path:
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo "qemu-aarch64 version 9.9 (test)" && exit\n{script}\n'
        )
        program.chmod(0o755)
        return temporary

    yield make


@pytest.fixture
def job(tmp_path: Path, workload: Any, dense: Any) -> Callable[..., Workload]:
    def make(**changes: Any) -> Workload:
        subjects = {"model": dense(tmp_path / "model", 16), "baseline": dense(tmp_path / "baseline", 32)}
        return workload(tmp_path, subjects, **changes)

    return make


def test_calls_are_averaged_and_processes_kept_apart(stand_in, job) -> None:
    left = stand_in(
        f"echo '{line(load=100, dot_product=10)}'; echo '{line(load=300, dot_product=10)}'\n"
        """echo '{"end": {"calls": 2}, "runtime": "ONNX Runtime 1.x"}'"""
    )
    timings = link_of("qemu").measure(job(starts={"model": 3}), Said())
    assert timings.latency_ms == {} and timings.starts == {}, "an emulator has no times"
    assert {name: len(counts) for name, counts in timings.counts.items()} == {"model": 3, "baseline": 1}
    assert timings.counts["model"][0]["instructions"] == 210
    assert timings.counts["model"][0]["instructions_memory"] == 200
    assert timings.conditions["emulator"] == "QEMU 9.9" and timings.conditions["calls"] == 2
    assert timings.conditions["runtime_on_device"] == "ONNX Runtime 1.x"
    assert link_of("qemu").origin == "emulated"
    assert list(left.iterdir()) == []


def test_what_is_run(stand_in, job, tmp_path) -> None:
    """The processor without the extensions that give wrong answers, its files, and the counter only where it counts."""
    log, work = tmp_path / "log", job()
    stand_in(f'echo "$@" >> {log}; ls -R >> {log}; exit 3')
    for connection in ({}, {"cpu": "i8mm"}):
        link = link_of("qemu", connection)
        with pytest.raises(DeviceProblem, match="the count of model ended with exit code 3"):
            link.measure(work, Said())
        with pytest.raises(DeviceProblem, match="the outputs of model ended with exit code 3"):
            link.outputs(work.subjects["model"], work.inputs, Said())
    said = log.read_text()
    runs = [text for text in said.splitlines() if text.startswith("-cpu")]
    assert [text.split()[1] for text in runs] == ["cortex-a76"] * 2 + ["max,sve=off,sme=off"] * 2
    assert ["-plugin ./count.so" in text for text in runs] == [True, False] * 2
    assert all("-L root" in text for text in runs)
    assert "./root/proc:\ncpuinfo" in said


CRASHED = "echo 'qemu: uncaught target signal {0} ({1}) - core dumped' >&2; kill -{0} $$"
WRONG = {
    "crash": (CRASHED.format(11, "Segmentation fault"), "crashed in the count of model: Segmentation fault", ""),
    "instruction": (CRASHED.format(4, "Illegal instruction"), "model: Illegal instruction", "has not all instructions"),
    "processor": ("echo \"unable to find CPU model 'max'\" >&2; exit 1", "does not know the processor", "QEMU 7.2"),
    "program": ("echo 'efrun: Invalid ELF image' >&2; exit 255", "not for Arm64", "fetch android-runner"),
    "plugin": ("echo 'Could not load plugin ./count.so' >&2; exit 1", "does not load the instruction counter", "8.2"),
    "memory": ("kill -KILL $$", r"ended the count of model \(signal 9\)", "memory"),
    "runtime": ('echo \'{"error": "cannot open it: bad_alloc"}\'; exit 3', "failed: cannot open it", "memory"),
    "no counts": ('echo \'{"end": {"calls": 2}}\'', "did not count every call", ""),
    "silence": ("exit 0", "the count of model ended with exit code 0: no message", ""),
}


@pytest.mark.parametrize(("script", "said", "remedy"), list(WRONG.values()), ids=list(WRONG))
def test_what_goes_wrong_is_one_line_and_leaves_nothing(stand_in, job, script, said, remedy) -> None:
    left = stand_in(script)
    with pytest.raises(DeviceProblem, match=said) as found:
        link_of("qemu").measure(job(), Said())
    assert remedy in str(found.value) and len(str(found.value).splitlines()) <= 2
    assert list(left.iterdir()) == []


def test_a_program_that_hangs_is_ended_with_all_it_started(stand_in, job, monkeypatch) -> None:
    left = stand_in("sleep 1234 & sleep 1234")
    monkeypatch.setattr(_remote, "SILENCE_S", 0.5)
    with pytest.raises(DeviceProblem, match="nothing was heard"):
        link_of("qemu").measure(job(), Said())
    assert list(left.iterdir()) == [] and not asleep()


def test_ctrl_c_ends_it_too(stand_in, job) -> None:
    left = stand_in("echo '{\"done\": 1}'; sleep 1234")
    with pytest.raises(KeyboardInterrupt):
        link_of("qemu").measure(job(), Said(until="counting"))
    assert list(left.iterdir()) == [] and not asleep()


def asleep() -> list[int]:
    """Processes of a script above that still run."""
    _, alive = psutil.wait_procs([one for one in psutil.process_iter(["cmdline"]) if sleeps(one)], timeout=5)
    return [process.pid for process in alive]


def sleeps(process: psutil.Process) -> bool:
    return process.info["cmdline"] == ["sleep", "1234"]


# -- what is missing, and what cannot be asked


def test_all_that_is_missing_is_said_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_runner, "folder", lambda: tmp_path / "runners")
    said = link_of("qemu").missing()
    assert said is not None and len(said.splitlines()) == 1
    assert f"(apt-get install qemu-user gcc libc6-dev {CROSS}; then edgeforge fetch android-runner)" in said
    with pytest.raises(DeviceProblem, match="the emulator qemu-aarch64, a C compiler, a C compiler for Arm64, ONNX"):
        link_of("qemu").measure(Workload.model_construct(threads=1, sustained={}), Said())
    with pytest.raises(DeviceProblem, match=r"the emulator is not installed\n.*apt-get install qemu-user"):
        link_of("qemu").outputs(Subject(runtime="onnxruntime", folder=tmp_path), tmp_path, Said())


def program(path: Path, says: str = "") -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def test_a_qemu_without_plugins_answers_and_does_not_count(tmp_path, monkeypatch) -> None:
    for name in ("cc", "aarch64-linux-gnu-gcc"):
        program(tmp_path / name)
    program(tmp_path / "qemu-aarch64-static", "-cpu model")
    runners = tmp_path / "runners"
    runners.mkdir()
    (runners / _runner.library("aarch64")).touch()
    monkeypatch.setattr(_runner, "folder", lambda: runners)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(_emulator, "PROGRAMS", ("qemu-aarch64-static",))
    assert "takes no plugins" in str(link_of("qemu").missing())
    assert link_of("qemu")._program(counting=False).program == str(tmp_path / "qemu-aarch64-static")
    with pytest.raises(DeviceProblem, match=r"counts no instructions\n.*apt-get install qemu-user"):
        link_of("qemu")._program(counting=True)
    program(tmp_path / "qemu-aarch64-static", "-plugin FILE")
    assert link_of("qemu").missing() is None


@pytest.mark.parametrize(
    ("changes", "said"), [({"threads": 2}, "2 threads"), ({"sustained": {"model": 9}}, "keeps up")]
)
def test_times_and_threads_cannot_be_asked(job, changes, said) -> None:
    with pytest.raises(DeviceProblem, match=f"one thread are counted; .*{said}"):
        link_of("qemu").measure(job(**changes), Said())


def test_only_onnx_files_and_known_processors() -> None:
    assert link_of("qemu").unavailable("onnxruntime") is None
    assert "openvino does not" in str(link_of("qemu").unavailable("openvino"))
    with pytest.raises(ConfigurationError, match=r"connection\.cpu"):
        link_of("qemu", {"cpu": "max"})  # whose INT8 answers are wrong


@pytest.mark.parametrize(("name", "features"), [("emulated_a76", ("dotprod",)), ("emulated_i8mm", ("dotprod", "i8mm"))])
def test_devices_that_a_target_can_name(name, features) -> None:
    device = profiles()[name]
    assert (device.link, device.layout) == ("qemu", "arm")
    assert device.cpu_features is not None and device.cpu_features.value == features
    link = link_of(str(device.link), device.connection)
    assert link.cpu == ("i8mm" if "i8mm" in features else "cortex-a76")


# -- for real

DEPTH, WIDTH, ROWS = 256, 128, 32


def make_int8(folder: Path) -> Path:
    """(N, 32, 256) -> (N, 32, 128): products of bytes, computed by ONNX Runtime's integer kernels."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.integers(-127, 128, (DEPTH, WIDTH)).astype(np.int8),
        "scale": np.float32(0.01),
        "zero": np.int8(0),
        "output_scale": np.float32(0.5),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["bytes"]),
        helper.make_node(
            "QLinearMatMul",
            ["bytes", "scale", "zero", "weight", "scale", "zero", "output_scale", "zero"],
            ["product"],
        ),
        helper.make_node("DequantizeLinear", ["product", "output_scale", "zero"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", ROWS, size])
        for name, size in (("x", DEPTH), ("logits", WIDTH))
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "int8", ends[:1], ends[1:], tensors)
    folder.mkdir()
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    return folder


def make_int4(folder: Path) -> tuple[Path, np.ndarray]:
    """The same with weights of 4 bits in blocks of 32, and those weights as numbers, (256, 128)."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (WIDTH, DEPTH // 32, 16), dtype=np.uint8)
    scales = rng.uniform(0.005, 0.02, (WIDTH, DEPTH // 32)).astype(np.float32)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", ROWS, size])
        for name, size in (("x", DEPTH), ("logits", WIDTH))
    ]
    sizes = {"K": DEPTH, "N": WIDTH, "bits": 4, "block_size": 32, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "packed", "scales"], ["logits"], domain="com.microsoft", **sizes)
    tensors = [numpy_helper.from_array(packed, "packed"), numpy_helper.from_array(scales.reshape(-1), "scales")]
    graph = helper.make_graph([node], "int4", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    folder.mkdir()
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")
    integers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(WIDTH, DEPTH // 32, 32).astype(np.float32) - 8
    return folder, (integers * scales[..., None]).reshape(WIDTH, DEPTH).T


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, needs: Callable[[str, str], str]) -> Iterator[Path]:
    """All that the link needs; the runner is fetched unless this user has it already."""
    from edgeforge.fetchers.android_runner import SHA256, AndroidRunner

    needs("qemu-aarch64", "qemu-user")
    needs("aarch64-linux-gnu-gcc", CROSS)
    needs("gcc", "gcc libc6-dev")
    folder, known = tmp_path_factory.mktemp("runners"), _runner.folder()
    for name in SHA256:
        if (known / name).is_file():
            (folder / name).symlink_to(known / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_runner, "folder", lambda: folder)
        AndroidRunner().fetch(folder, say=lambda text: None)
        yield folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.real
def test_int8_products_on_two_processors(tmp_path, runner, temporary, workload, monkeypatch) -> None:
    """Answers are this machine's; each processor uses its own instructions, as many as the products need.

    Every process counts the same to the last instruction: nothing else runs in it (ONNX Runtime's telemetry would).
    """
    assert link_of("qemu").missing() is None
    subject = Subject(runtime="onnxruntime", folder=make_int8(tmp_path / "model"))
    work = workload(tmp_path, {"model": subject.folder}, starts={"model": 2})
    x = np.random.default_rng(1).uniform(-1.27, 1.27, (4, ROWS, DEPTH)).astype(np.float32)
    np.savez(work.inputs, x=x)
    here = link_of("local").outputs(subject, work.inputs, Said())
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    products = ROWS * WIDTH * DEPTH
    found = {}
    for cpu in ("cortex-a76", "i8mm"):
        link = link_of("qemu", {"cpu": cpu})
        answers = link.outputs(subject, work.inputs, Said())
        assert answers.shape == here.shape
        assert np.abs(answers - here).max() <= 0.5, "one step of the output's scale: halves may be rounded either way"
        assert (answers == here).mean() > 0.99
        found[cpu], again = link.measure(work, Said()).counts["model"]
        assert again == found[cpu]
    # SDOT and UDOT make 16 products, SMMLA and UMMLA 32.
    assert products <= 16 * found["cortex-a76"]["instructions_dot_product"] < 1.5 * products
    assert found["cortex-a76"]["instructions_int8_matrix"] == 0
    assert products <= 32 * found["i8mm"]["instructions_int8_matrix"] < 1.5 * products
    assert found["i8mm"]["instructions_dot_product"] == 0
    assert list(home.iterdir()) == []
    assert list(temporary.glob("edgeforge-*")) == []


@pytest.mark.real
@pytest.mark.parametrize("cpu", ["cortex-a76", "i8mm"])
def test_int4_products_are_those_of_the_weights(tmp_path, runner, temporary, workload, cpu) -> None:
    """In integers on that processor too, whose activations are rounded to 8 bits; counts repeat to the instruction."""
    folder, weights = make_int4(tmp_path / "model")
    work = workload(tmp_path, {"model": folder}, starts={"model": 2})
    x = np.random.default_rng(1).uniform(-1, 1, (4, ROWS, DEPTH)).astype(np.float32)
    np.savez(work.inputs, x=x)
    link, subject = link_of("qemu", {"cpu": cpu}), Subject(runtime="onnxruntime", folder=folder)
    answers = link.outputs(subject, work.inputs, Said())
    exact = x @ weights
    assert np.abs(answers - exact).max() <= 0.01 * np.ptp(exact)
    here = link_of("local").outputs(subject, work.inputs, Said())
    assert np.abs(answers - here).max() <= 0.01 * np.ptp(exact)
    found, again = link.measure(work, Said()).counts["model"]
    assert again == found
    products = ROWS * WIDTH * DEPTH
    known = 16 * found["instructions_dot_product"] + 32 * found["instructions_int8_matrix"]
    assert products <= known < 1.5 * products


@pytest.mark.real
def test_a_program_that_really_crashes(tmp_path, runner, temporary, workload, dense, monkeypatch) -> None:
    """ONNX Runtime does where it finds an x86 processor's description."""
    monkeypatch.setattr(_emulator, "_seen_by_linux", lambda processor: {"proc/cpuinfo": "vendor_id\t: AuthenticAMD\n"})
    with pytest.raises(DeviceProblem, match="crashed in the count of model: Segmentation fault"):
        link_of("qemu").measure(workload(tmp_path, {"model": dense(tmp_path / "model", 16)}), Said())
    assert list(temporary.glob("edgeforge-*")) == []


@pytest.mark.real
def test_a_runtime_of_another_processor(tmp_path, runner, temporary, workload, dense, monkeypatch) -> None:
    other = tmp_path / "runners"
    other.mkdir()
    for path in runner.iterdir():
        (other / path.name).symlink_to(path)
    (other / _runner.library("aarch64")).unlink()
    (other / _runner.library("aarch64")).symlink_to(runner / _runner.library("x86_64"))
    monkeypatch.setattr(_runner, "folder", lambda: other)
    with pytest.raises(DeviceProblem, match="ONNX Runtime does not load on this device"):
        link_of("qemu").measure(workload(tmp_path, {"model": dense(tmp_path / "model", 16)}), Said())
    assert list(temporary.glob("edgeforge-*")) == []
