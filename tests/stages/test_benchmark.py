from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeforge import environment
from edgeforge import links as links_package
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import DeviceProblem, IncompatiblePlanError
from edgeforge.core.report import MeasurementRow
from edgeforge.core.spec import digest_of
from edgeforge.core.stage import Job
from edgeforge.core.task import Input, Interface, Pixels
from edgeforge.links import Link, Start, Timings, Workload
from edgeforge.links.local import Local
from edgeforge.quantizers.gguf_k import GgufK
from edgeforge.runtimes import _llama as llama_package
from edgeforge.stages import benchmark
from edgeforge.stages.benchmark import Benchmark, compare

ROUNDS = 40


class Data:
    """Twenty test images, each filled with its own number; the other splits may not be read."""

    interface = Interface((Input("pixel_values", (1, 4, 4)),), "logits", ("a", "b"), Pixels((0.0,), (1.0,)))

    def size(self, split: str) -> int:
        assert split == "test"
        return 20

    def batch(self, split: str, indices: Any) -> dict[str, Any]:
        images = np.stack([np.full((1, 4, 4), index, np.float32) for index in indices])
        return {"pixel_values": SimpleNamespace(numpy=lambda: images), "labels": None}


class FakeLink(Link):
    """Answers at once: the baseline takes `ratio` times as long as the model, with noise common to both."""

    kind: str = "fake"
    ratio: float = 4.0
    refuses: str | None = None

    def unavailable(self, runtime: str) -> str | None:
        return self.refuses

    def measure(self, workload: Workload, progress: Any) -> Timings:
        seen.append(workload)
        arrays.append(dict(np.load(workload.inputs)))
        rng = np.random.default_rng(0)
        machine = rng.lognormal(0, 0.5, ROUNDS)  # the same disturbance for all files of a round
        cost = {"model": 0.05, "baseline": 0.05 * self.ratio, "parent": 0.04, "floor": 0.004}
        return Timings(
            starts={
                name: (Start(load_ms=9, first_inference_ms=1, peak_rss_mb=70),) * count
                for name, count in workload.starts.items()
            },
            latency_ms={
                name: tuple(cost[name] * machine * rng.lognormal(0, 0.02, ROUNDS)) for name in workload.subjects
            },
            calls_per_sample=dict.fromkeys(workload.subjects, 100),
            waiting_share=0.25,
            conditions={"other_programs": []},
        )


seen: list[Workload] = []
arrays: list[dict[str, np.ndarray]] = []


class Progress:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def artifact(folder: Path, format: str = "onnx") -> Artifact:
    return Artifact(key="k", kind="export", format=format, path=folder, digest="", files={}, parents={}, recipe={})


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: FakeLink, **inputs: Artifact) -> dict[str, Any]:
    seen.clear()
    arrays.clear()
    monkeypatch.setattr(benchmark, "link_of", lambda kind, connection: link)
    task: Any = SimpleNamespace(open=lambda model: Data())
    job = Job(task, tmp_path, 7, lambda: None, Progress())  # type: ignore[arg-type, return-value]
    facts = dict(Benchmark(device="host_cpu").run(inputs, job))
    assert json.loads((tmp_path / "measurements.json").read_text()) == facts, "plain JSON, kept beside"
    return facts


def test_file_baseline_and_floor_take_turns_on_real_inputs(tmp_path, monkeypatch) -> None:
    inputs = {"model": artifact(tmp_path / "a"), "baseline": artifact(tmp_path / "b")}
    facts = run(tmp_path, monkeypatch, FakeLink(), **inputs)
    (workload,) = seen
    assert set(workload.subjects) == {"model", "baseline", "floor"}
    assert workload.starts == {"model": 3, "floor": 1}
    assert workload.seed == 7
    assert not workload.inputs.exists(), "what was made for the measurement is removed"
    assert arrays[0]["pixel_values"].shape == (16, 1, 4, 4)
    assert arrays[0]["pixel_values"][:, 0, 0, 0].tolist() == list(range(16))
    rows = {row["metric"]: MeasurementRow.model_validate(row) for row in facts["measurements"]}
    assert {name: row.n for name, row in rows.items()} == {
        "latency_ms": 40,
        "load_ms": 3,
        "first_inference_ms": 3,
        "peak_rss_mb": 3,
    }
    assert all(row.origin == "measured" and row.threads == 1 for row in rows.values())
    assert [row["metric"] for row in facts["baseline"]] == ["latency_ms"]
    assert facts["conditions"]["waiting_share"] == 0.25
    assert facts["latency"]["verdict"] == "faster"
    # Noise that both share cancels in the ratio of a round; the medians of the two alone would be far less certain.
    low, high = facts["latency"]["ci95"]
    assert low < 4 < high
    assert high - low < 0.1


def test_the_file_it_came_from_is_measured_in_the_same_rounds(tmp_path, monkeypatch) -> None:
    inputs = {name: artifact(tmp_path / name) for name in ("model", "baseline", "parent")}
    facts = run(tmp_path, monkeypatch, FakeLink(), **inputs)
    assert set(seen[0].subjects) == {"model", "baseline", "parent", "floor"}
    assert facts["latency"]["verdict"] == "faster"
    assert facts["parent_latency"]["verdict"] == "slower"
    assert facts["parent_latency"]["ratio"] == pytest.approx(0.8, rel=0.02)
    assert [row["metric"] for row in facts["parent"]] == ["latency_ms"]


def test_without_a_baseline_there_is_no_comparison(tmp_path, monkeypatch) -> None:
    facts = run(tmp_path, monkeypatch, FakeLink(), model=artifact(tmp_path))
    assert facts["latency"] is facts["parent_latency"] is None
    assert facts["baseline"] == facts["parent"] == []
    assert facts["floor"]


def test_what_cannot_run_here_has_a_reason_and_no_numbers(tmp_path, monkeypatch) -> None:
    facts = run(tmp_path, monkeypatch, FakeLink(refuses="needs a Mac"), model=artifact(tmp_path, "coreml"))
    assert facts["measurements"] == []
    assert facts["reason"] == "needs a Mac"
    monkeypatch.setattr(benchmark, "runtime_for", lambda format: None)
    facts = run(tmp_path, monkeypatch, FakeLink(), model=artifact(tmp_path, "gguf"))
    assert facts["measurements"] == []
    assert facts["reason"] == "nothing here runs this format"
    assert not seen


def test_the_verdict_needs_the_interval_to_exclude_one() -> None:
    rng = np.random.default_rng(1)
    noise = rng.lognormal(0, 0.1, 40)
    on = ("host_cpu", "onnxruntime", Local())
    same = compare(tuple(noise), tuple(noise[::-1]), on=on)
    assert same.verdict == "no difference shown"
    assert same.ci95[0] < 1 < same.ci95[1]
    assert compare(tuple(1.5 * noise), tuple(rng.permutation(noise)), on=on).verdict == "faster"
    assert compare(tuple(noise), tuple(1.5 * rng.permutation(noise)), on=on).verdict == "slower"


def test_a_few_rounds_of_a_lost_device_show_no_difference() -> None:
    found = compare((4.0,), (1.0,), on=("phone", "onnxruntime", Local()))
    assert (found.ratio, found.verdict) == (4.0, "no difference shown")
    assert compare((4.0,) * 10, (1.0,) * 10, on=("phone", "onnxruntime", Local())).verdict == "faster"


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    baseline, target = rng.lognormal(1.0, 0.2, 40), rng.lognormal(0.0, 0.2, 40)
    found = compare(tuple(baseline), tuple(target), on=("host_cpu", "onnxruntime", Local()))
    expected = stats.bootstrap((baseline / target,), np.median, method="percentile", rng=rng).confidence_interval
    assert found.ratio == pytest.approx(np.median(baseline / target))
    assert found.ci95 == pytest.approx((expected.low, expected.high), rel=0.03)


def test_another_host_is_another_key(monkeypatch) -> None:
    here = Benchmark(device="host_cpu")
    key = digest_of(here.identity())
    assert digest_of(Benchmark(device="host_cpu", name="bench").identity()) == key
    monkeypatch.setattr(environment.platform, "node", lambda: "elsewhere")
    assert digest_of(here.identity()) != key


def test_a_device_nobody_can_reach_is_refused() -> None:
    Benchmark(device="host_cpu").check()
    with pytest.raises(IncompatiblePlanError, match="cannot be reached"):
        Benchmark(device="iphone_15_pro").check()


def test_thirty_samples_are_the_least() -> None:
    with pytest.raises(ValueError, match="30"):
        Benchmark(device="host_cpu", samples=29)


def test_the_empty_graph_returns_its_input(tmp_path) -> None:
    from edgeforge.runtimes import runtime_for

    folder = benchmark._empty_graph(tmp_path / "floor", Data.interface)
    runtime = runtime_for("onnx")
    assert runtime is not None
    image = np.random.default_rng(0).random((1, 1, 4, 4), np.float32)
    assert np.array_equal(runtime.open(folder, threads=1).run({"pixel_values": image}), image)


def test_a_device_that_throttles_is_seen() -> None:
    rng = np.random.default_rng(3)
    times = np.linspace(0, 60, 200)
    noise = rng.lognormal(0, 0.03, 200)
    hot = benchmark.throttling([(t, 2.0 * (1 + 0.5 * (t > 20)) * n) for t, n in zip(times, noise, strict=True)])
    assert hot["verdict"] == "slows down"
    assert hot["ratio"] == pytest.approx(1.5, rel=0.02)
    assert hot["first_quarter_ms"] == pytest.approx(2, rel=0.02)
    assert hot["ci95"][0] < 1.5 < hot["ci95"][1]
    assert len(hot["series"]) == 200 and hot["seconds"] == 60
    json.dumps(hot, allow_nan=False)
    cool = benchmark.throttling([(t, 2.0 * n) for t, n in zip(times, noise, strict=True)])
    assert cool["verdict"] == "steady"
    assert benchmark.throttling([(0.0, 2.0)])["verdict"] == "steady"


class Answering(FakeLink):
    """A device whose answers are wrong for every fourth sample, or that is lost."""

    lost: bool = False

    def outputs(self, subject: Any, inputs: Path, progress: Any) -> np.ndarray:
        if self.lost:
            raise DeviceProblem("the device was lost", where="phone")
        images = np.load(inputs)["pixel_values"]
        right = np.eye(2, dtype=np.float32)[images[:, 0, 0, 0].astype(int) % 2]
        right[::4] = right[::4, ::-1]
        return right


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """Facts of a benchmark that also asks a device for answers; a sample's label is its number's parity."""
    torch = pytest.importorskip("torch")

    def make(link: FakeLink, samples: int) -> dict[str, Any]:
        class Labelled(Data):
            def batch(self, split: str, indices: Any) -> dict[str, Any]:
                return {**super().batch(split, indices), "labels": torch.tensor([index % 2 for index in indices])}

        def metrics(logits: Any, labels: Any) -> dict[str, float]:
            return {"accuracy": float((logits.argmax(-1) == labels).float().mean())}

        monkeypatch.setattr(benchmark, "link_of", lambda kind, connection=None: link)
        task: Any = SimpleNamespace(open=lambda model: Labelled(), metrics=metrics)
        job = Job(task, tmp_path, 7, lambda: None, Progress())  # type: ignore[arg-type, return-value]
        inputs = {"model": artifact(tmp_path / "a")}
        return dict(Benchmark(device="host_cpu", accuracy_samples=samples).run(inputs, job))

    return make


def test_the_devices_own_accuracy_is_scored_here(scored) -> None:
    found = scored(Answering(), 12)["on_device"]
    assert found["samples"] == 12
    assert found["metrics"] == {"accuracy": 0.75}
    assert found["agreement_with_host"] == 1.0
    assert scored(Answering(), 1000)["on_device"]["samples"] == 20, "no more than there are"


def test_timings_are_kept_where_the_device_is_lost_afterwards(scored) -> None:
    facts = scored(Answering(lost=True), 12)
    assert facts["measurements"]
    assert facts["on_device"] == {"samples": 12, "metrics": None, "reason": "the device was lost"}


def test_a_change_of_any_link_or_of_what_asks_a_gguf_file_measures_again() -> None:
    """What a key leaves out is taken from the store though it would be another number now."""
    links = {module.name for module in pkgutil.walk_packages(links_package.__path__, "edgeforge.links.")}
    assert links - set(Benchmark.uses) == {"edgeforge.links._speculation"}  # a command of its own
    llama = {module.name for module in pkgutil.walk_packages(llama_package.__path__, "edgeforge.runtimes._llama.")}
    timed = {name for name in llama if name.rpartition(".")[2] in ("model", "session")}
    assert len(timed) == 2 and timed <= set(Benchmark.uses) and timed <= set(GgufK.uses)
