"""Language models in the worker: with sessions whose costs are known, and with tiny files on their own runtimes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge.links import Subject, Workload, _memory, _speculation, _text_worker, link_of
from edgeforge.links._memory import Memory
from edgeforge.links._speculation import Drafting, summarised
from edgeforge.links._worker import Clock

if TYPE_CHECKING:
    from tests.conftest import Tales


class FakeClock:
    """A clock that a fake session moves."""

    def __init__(self) -> None:
        self.time = 0

    def now_ns(self) -> int:
        return self.time


class FakeSession:
    """Takes 2 ms for each token of a prompt, and 10 ms for each one that it reads alone."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.length, self.room = clock, 0, 0
        self.heard: list[int] = []

    def prefill(self, tokens: Any, *, room: int = 256) -> int:
        self.clock.time += 2_000_000 * len(tokens)
        self.length, self.room = len(tokens), room
        return 5

    def decode(self, token: int) -> int:
        assert self.length > 0 and self.room > 0, "written from a memory that holds one token"
        self.heard.append(token)
        self.clock.time += 10_000_000
        self.length, self.room = self.length + 1, self.room - 1
        return 5

    def clear(self) -> None:
        self.length = 0


def test_a_prompt_and_a_token_have_their_own_times() -> None:
    clock = FakeClock()
    session = FakeSession(clock)
    lap = _text_worker.TextLap(session, [1, 2, 3], {"new_tokens": 7}, clock)  # type: ignore[arg-type]
    assert lap.sample() == pytest.approx((6.0, 10.0))
    assert session.heard == [2, 3, 1, 2, 3, 1, 2], "the prompt's tokens in turn, the same for every model"
    assert lap.sample() == pytest.approx((6.0, 10.0))


def test_a_block_of_memory_is_read_whole_and_in_huge_pages_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "BLOCK_BYTES", 16 * 2**20)
    seen: list[int] = []
    monkeypatch.setattr(_memory, "_read", lambda block: seen.append(block.nbytes))

    class Ticking:
        time = 0

        def now_ns(self) -> int:
            self.time += 2_000_000
            return self.time

    memory = Memory(1, Ticking())  # type: ignore[arg-type]
    assert memory.gb_per_s() == pytest.approx(16 * 2**20 / 2e6)
    assert seen == [16 * 2**20] * _memory.READS
    described = memory.described()
    assert described["block_bytes"] == 16 * 2**20
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if enabled.exists():
        assert described["huge_pages"] == ("[never]" not in enabled.read_text())


def test_every_thread_reads_a_block_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "BLOCK_BYTES", 4 * 2**20)
    memory = Memory(3, Clock())
    assert len({block.ctypes.data for block in memory._blocks}) == 3
    assert 0.1 < memory.gb_per_s() < 10_000


# -- with tiny models


@pytest.fixture(scope="module")
def files(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny Llama as float16 GGUF."""
    pytest.importorskip("llama_cpp")
    from edgeforge.exporters.gguf import Gguf

    folder = tmp_path_factory.mktemp("gguf")
    Gguf(type="f16").export(tales.torch("llama"), tales.job(folder))
    return {"gguf": folder}


@pytest.fixture
def workload(tmp_path: Path) -> Callable[..., Workload]:
    def make(subjects: dict[str, Subject], **changes: Any) -> Workload:
        path = tmp_path / "inputs.npz"
        np.savez(path, input_ids=np.arange(3, 63)[None])
        settings: dict[str, Any] = {"threads": 1, "samples": 3, "warmup": 1, "min_sample_ms": 1, "new_tokens": 8}
        return Workload(subjects=subjects, inputs=path, starts={"model": 1}, **{**settings, **changes})

    return make


def test_language_models_take_turns_in_a_process_of_their_own(files, workload, silent) -> None:
    subject = Subject(runtime="llama_cpp", folder=files["gguf"])
    work = workload({"model": subject, "baseline": subject}, sustained={"model": 0.2})
    found = link_of("local").measure(work, silent)
    assert {name: len(values) for name, values in found.latency_ms.items()} == {"model": 3, "baseline": 3}
    assert {name: len(values) for name, values in found.prefill_ms.items()} == {"model": 3, "baseline": 3}
    assert len(found.memory_gb_per_s) == 3 and min(found.memory_gb_per_s) > 0.1
    (start,) = found.starts["model"]
    assert start.load_ms > 0 and start.first_inference_ms > 0 and 30 < start.peak_rss_mb < 1000
    assert (found.conditions["prompt_tokens"], found.conditions["new_tokens"]) == (60, 8)
    assert found.sustained["model"]
    json.dumps(found.model_dump(mode="json"), allow_nan=False)


def test_drafts_are_measured_in_turns_with_plain_writing(files) -> None:
    prompts = ((5, 9, 200, 31), (40, 41, 42))
    work = Drafting(
        teacher=files["gguf"], draft=files["gguf"], prompts=prompts, new_tokens=12, rounds=2, lengths=(1, 3)
    )
    found = _speculation.measure(work)
    assert set(found["costs"]["verify_ms"]) == {"1", "2", "3", "4"}
    assert len(found["runs"]) == 2 * 2 * 3
    assert [row["length"] for row in found["drafts"]] == [1, 3]
    for row in found["drafts"]:
        assert row["same_texts"] == 2
        assert row["acceptance"][0] in (1.0, None), "a model drafts for itself"
    json.dumps(found, allow_nan=False)


def test_a_damaged_file_is_named(files, tmp_path, workload, silent) -> None:
    from edgeforge.core.errors import EnvironmentProblem

    (tmp_path / "model.gguf").write_bytes((files["gguf"] / "model.gguf").read_bytes()[:5000])
    with pytest.raises(EnvironmentProblem, match=r"start of model.*cannot open"):
        link_of("local").measure(workload({"model": Subject(runtime="llama_cpp", folder=tmp_path)}), silent)


# -- what is made of the runs


def run(number: int, length: int, ms: float, tokens: list[int], drafts: list[tuple[int, int]] = []) -> dict[str, Any]:  # noqa: B006
    return {"round": number, "prompt": 0, "length": length, "ms": ms, "tokens": tokens, "drafts": drafts}


def test_measured_and_projected_are_apart() -> None:
    costs = {"draft_ms": 2.0, "verify_ms": {"1": 10.0, "2": 12.0}}
    runs = [
        run(0, 0, 40, [1, 2, 3, 4]),
        run(0, 1, 80, [1, 2, 3, 4], [(1, 1), (1, 0)]),
        run(1, 0, 60, [1, 2, 3, 4]),
        run(1, 1, 100, [1, 2, 3, 5], [(1, 1), (1, 1)]),
    ]
    found = summarised(runs, costs, [1])
    (row,) = found["drafts"]
    assert row["acceptance"] == [0.75]
    assert row["tokens_per_verification"] == 1.75
    assert row["projected"] == pytest.approx(1.75 * 10 / (2 + 12))
    assert row["measured"]["median"] == pytest.approx((0.5 + 0.6) / 2), "each round against its own plain text"
    assert row["same_texts"] == 0, "one of its texts was another"
    assert found["plain_ms_per_token"]["median"] == pytest.approx(12.5)
