"""What a benchmark of language models says, on a link that answers at once; and the facts of files that it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.report import ArtifactRow, BenchmarkConditions, MeasurementRow
from edgeforge.links import Link, Start, Timings, Workload
from edgeforge.renderers import _text
from edgeforge.stages import _text_benchmark, benchmark
from edgeforge.stages.benchmark import Benchmark

if TYPE_CHECKING:
    from tests.conftest import Tales

WINDOW = 32
CONTEXT = 256


class FakeLink(Link):
    """Reads a token in 0.1 ms and writes one in 2 ms, the baseline in 3 ms; memory is read at 50 GB/s."""

    kind: str = "fake"
    times_texts: ClassVar[bool] = True

    def unavailable(self, runtime: str) -> str | None:
        return None

    def measure(self, workload: Workload, progress: Any) -> Timings:
        seen.append((workload, dict(np.load(workload.inputs))))
        tokens = np.load(workload.inputs)["input_ids"].shape[1]
        machine = np.random.default_rng(0).lognormal(0, 0.3, workload.samples)
        return Timings(
            starts={"model": (Start(load_ms=9, first_inference_ms=60, peak_rss_mb=70),) * workload.starts["model"]},
            latency_ms={name: tuple({"model": 2.0, "baseline": 3.0}[name] * machine) for name in workload.subjects},
            prefill_ms={name: tuple(0.1 * tokens * machine) for name in workload.subjects},
            memory_gb_per_s=tuple(50 / machine),
            calls_per_sample={},
            waiting_share=0.25,
            conditions={
                "prompt_tokens": tokens,
                "new_tokens": workload.new_tokens,
                "memory": {"block_bytes": 2**28, "threads": 1, "huge_pages": True},
            },
        )


class OtherLink(FakeLink):
    """A link to devices that take classifiers only."""

    kind: str = "other"
    times_texts: ClassVar[bool] = False


seen: list[tuple[Workload, dict[str, np.ndarray]]] = []


@pytest.fixture(scope="module")
def file(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from edgeforge.exporters.gguf import Gguf

    folder = tmp_path_factory.mktemp("benchmarked")
    Gguf(type="f16").export(tales.torch("llama"), tales.job(folder))
    return tales.artifact(folder, "gguf")


def run(tales: Tales, folder: Path, monkeypatch: pytest.MonkeyPatch, link: Link, **settings: Any) -> dict[str, Any]:
    seen.clear()
    monkeypatch.setattr(benchmark, "link_of", lambda kind, connection: link)
    inputs = settings.pop("inputs")
    facts = dict(Benchmark(device="host_cpu", **settings).run(inputs, tales.job(folder)))
    assert json.loads((folder / "measurements.json").read_text()) == facts
    return facts


def test_speeds_have_their_units_in_their_names(tales, file, tmp_path, monkeypatch) -> None:
    facts = run(tales, tmp_path, monkeypatch, FakeLink(), inputs={"model": file, "baseline": file}, prompt_tokens=100)
    ((workload, arrays),) = seen
    assert workload.samples == 10 and workload.new_tokens == 128 and workload.starts == {"model": 3}
    assert set(workload.subjects) == {"model", "baseline"}, "an empty graph is no floor for a language model"
    batch = tales.data.batch("test", [0, 1, 2, 3])
    real = batch["input_ids"][batch["attention_mask"].bool()].tolist()[:100]
    assert arrays["input_ids"].tolist() == [real]
    rows = {row["metric"]: MeasurementRow.model_validate(row) for row in facts["measurements"]}
    medians = {name: row.median for name, row in rows.items()}
    machine = float(np.median(np.random.default_rng(0).lognormal(0, 0.3, 10)))
    assert medians["latency_ms"] == pytest.approx(2 * machine, rel=1e-4)
    assert medians["decode_tokens_per_s"] == pytest.approx(np.median([1000 / v for v in rows["latency_ms"].samples]))
    assert medians["first_token_ms"] == pytest.approx(10 * machine, rel=1e-4)
    assert rows["prefill_tokens_per_s"].samples[0] == pytest.approx(
        100_000 / rows["first_token_ms"].samples[0], rel=1e-4
    )
    assert medians["load_ms"] == 9 and medians["peak_rss_mb"] == 70
    assert facts["latency"]["ratio"] == pytest.approx(1.5) and facts["latency"]["verdict"] == "faster"
    assert "decode_tokens_per_s" in {row["metric"] for row in facts["baseline"]}
    assert "min_sample_ms" not in facts


def test_the_share_of_bandwidth_is_of_the_same_round(tales, file, tmp_path, monkeypatch) -> None:
    """What slowed the machine slowed both, so that the share does not move with it."""
    facts = run(tales, tmp_path, monkeypatch, FakeLink(), inputs={"model": file})
    (row,) = [row for row in facts["measurements"] if row["metric"] == "memory_bandwidth_percent"]
    # Tied: the whole table of embeddings is read as the output's weights. Norms are float32.
    weights = 2 * (352 * 64 + 3 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128)) + 4 * (7 * 64)
    assert row["samples"] == pytest.approx([100 * weights * 500 / 50e9] * 10, rel=1e-5)


def test_texts_are_no_longer_than_the_model_takes(tales, file, tmp_path, monkeypatch) -> None:
    facts = run(tales, tmp_path, monkeypatch, FakeLink(), inputs={"model": file}, prompt_tokens=5000, new_tokens=900)
    ((workload, arrays),) = seen
    assert arrays["input_ids"].shape == (1, CONTEXT)
    assert workload.new_tokens == CONTEXT - 1
    assert facts["conditions"]["prompt_tokens"] == CONTEXT
    said = _text.conditions(BenchmarkConditions.model_validate({**facts["conditions"], "device": "host_cpu"}))
    assert "a prompt of 256 tokens; 255 written one by one" in said
    assert any(line.startswith("memory was read at ") and "256 MiB a thread, in huge pages" in line for line in said)


def test_where_a_link_takes_no_texts_there_is_a_reason(tales, file, tmp_path, monkeypatch) -> None:
    facts = run(tales, tmp_path, monkeypatch, OtherLink(), inputs={"model": file}, accuracy_samples=8)
    assert facts["measurements"] == [] and "not measured over the link other" in facts["reason"]
    facts = run(tales, tmp_path, monkeypatch, FakeLink(), inputs={"model": file}, accuracy_samples=8)
    assert facts["on_device"]["metrics"] is None and facts["measurements"]


def test_few_tokens_are_repeated(tales) -> None:
    size = tales.data.size("test") * WINDOW
    found = _text_benchmark.prompt(tales.data, 2 * size)
    assert len(found) == 2 * size
    assert found[: size // 2] * 2 == [*found[: size // 2], *found[: size // 2]]
    first = found.index(found[0])
    assert first == 0 and set(found) <= set(range(352))


# -- what runtimes know of their files


def test_an_embedding_that_is_looked_up_is_one_row(tales, tmp_path) -> None:
    """Mistral's is not tied: the table is there twice, and one row of the first is read."""
    from edgeforge.exporters.gguf import Gguf
    from edgeforge.exporters.onnx import Onnx
    from edgeforge.runtimes.llama_cpp import LlamaCpp
    from edgeforge.runtimes.onnxruntime import Onnxruntime

    matrices = 352 * 64 + 3 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128)
    Gguf(type="f32").export(tales.torch("mistral"), tales.job(tmp_path / "gguf"))
    assert LlamaCpp().bytes_per_token(tmp_path / "gguf") == 4 * (matrices + 7 * 64 + 64)
    assert LlamaCpp().context_length(tmp_path / "gguf") == CONTEXT
    Onnx().export(tales.torch("mistral"), tales.job(tmp_path / "onnx"))
    found = Onnxruntime().bytes_per_token(tmp_path / "onnx")
    assert found == pytest.approx(4 * (matrices + 7 * 64), rel=0.03), "and some small constants"
    assert Onnxruntime().context_length(tmp_path / "onnx") == CONTEXT
    session = Onnxruntime().open(tmp_path / "onnx", threads=1)
    prompt, text = [5, 9, 200, 31], list[int]()
    token = session.prefill(prompt)
    while len(text) < 6:
        text.append(token)
        token = session.decode(token)
    (expected,) = session.generate([prompt], 6)
    assert text[: len(expected)] == expected
    session.clear()
    assert session.prefill(prompt) == text[0]


@pytest.mark.slow
def test_a_core_ml_package_says_how_much_it_remembers_and_reads_step_by_step(tales, tmp_path) -> None:
    pytest.importorskip("coremltools")
    from edgeforge.exporters.coreml import Coreml as Exporter
    from edgeforge.runtimes.coreml import Coreml
    from edgeforge.runtimes.coreml_reference import CoremlReference

    facts = Exporter().export(tales.torch("llama"), tales.job(tmp_path))
    session: Any = CoremlReference().open(tmp_path)
    assert Coreml().context_length(tmp_path) == session.context > 0, facts
    prompt = [5, 9, 200, 31]
    text = [session.prefill(prompt)]
    while len(text) < 3:
        text.append(session.decode(text[-1]))
    (expected,) = session.generate([prompt], 3)
    assert text[: len(expected)] == expected
    session.clear()
    with pytest.raises(ModelError, match="call prefill"):
        session.decode(5)


# -- how it is shown


def test_units_are_read_from_names() -> None:
    names = ("decode_tokens_per_s", "prefill_tokens_per_s", "first_token_ms", "memory_bandwidth_percent", "peak_rss_mb")
    assert [_text.quantity(name) for name in names] == [
        "decode, tokens/s",
        "prefill, tokens/s",
        "first token, ms",
        "memory bandwidth, %",
        "peak RSS, MB",
    ]


def test_a_token_is_no_call() -> None:
    def row(**medians: float) -> ArtifactRow:
        measured = [
            {"device": "host_cpu", "runtime": "x", "origin": "measured", "n": 3, "p90": 1, "ci95": [1, 1]}
            | {"metric": metric, "median": median}
            for metric, median in medians.items()
        ]
        return ArtifactRow.model_validate(
            {"name": "phone", "status": "shipped", "format": "gguf", "measurements": measured}
        )

    assert _text.latency(row(latency_ms=12.5, decode_tokens_per_s=80.0)) == "12.5 ms a token, 80.0 tokens/s"
    assert _text.latency(row(latency_ms=12.5)) == "12.5 ms"
    assert _text.latency(row(load_ms=12.5)) == _text.NONE
