"""`edgeforge bench` and `edgeforge speculate` on GGUF files that belong to no run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgeforge import cli
from edgeforge.commands import bench, speculate
from edgeforge.core.errors import ConfigurationError
from edgeforge.pipeline import parse

if TYPE_CHECKING:
    from tests.conftest import Tales

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def teacher(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    from edgeforge.exporters.gguf import Gguf

    folder = tmp_path_factory.mktemp("teacher")
    Gguf(type="f16").export(tales.torch("llama"), tales.job(folder))
    return folder


def call(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, [*arguments], env={"COLUMNS": "200"})


def test_a_file_of_any_name_is_measured(teacher, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        bench, "stage_for", lambda device, **_: bench.Benchmark(device=device, text_rounds=3, new_tokens=4, starts=1)
    )
    shutil.copy(teacher / "model.gguf", tmp_path / "small.gguf")
    done = call("bench", "small.gguf")
    assert done.exit_code == 0, done.output
    head, values, *_ = done.output.splitlines()
    assert head.split()[:3] == ["tokens/s", "read", "written"]
    assert values.split()[0] == "small.gguf"
    read, written = (float(word.replace(",", "")) for word in values.split()[1:3])
    assert read > written > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf"]


def test_what_is_no_gguf_file_is_said(tmp_path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    done = call("bench", str(tmp_path / "broken.gguf"))
    assert done.exit_code == 2
    assert "not a GGUF file" in done.output + done.stderr
    with pytest.raises(ConfigurationError, match="no GGUF file is there"):
        bench.measure_file(tmp_path / "absent.gguf", stage=bench.Benchmark(device="host_cpu"), console=Console())


def test_drafts_are_counted_and_kept(teacher, tales, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speculate, "ROUNDS", 1)
    prompts = str(tales.root / "prompts.jsonl")
    done = call("speculate", str(teacher), str(teacher), "--prompts", prompts, "--new-tokens", "12")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "speculation.json").read_text())
    assert found["schema"] == "edgeforge.speculation/1"
    assert [row["length"] for row in found["drafts"]] == [1, 2, 3, 4]
    assert all(row["same_texts"] == found["prompts"] == 2 for row in found["drafts"])
    assert all(share in (1.0, None) for row in found["drafts"] for share in row["acceptance"])
    assert "measured" in done.output and "projected" in done.output


def test_without_a_tokenizer_beside_it_the_files_own_is_taken(teacher, tmp_path) -> None:
    from edgeforge import gguf_file

    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(teacher / "model.gguf", lone)
    files = [gguf_file.read(lone / "model.gguf")] * 2
    assert speculate._encoded(None, lone, files, 8) == speculate._encoded(None, teacher, files, 8)
    with pytest.raises(ConfigurationError, match="more than the 256"):
        speculate._encoded(None, lone, files, 250)


def test_other_vocabularies_are_refused(teacher, tmp_path) -> None:
    """One token has another spelling: the file is the same in length."""
    content = (teacher / "model.gguf").read_bytes()
    place = content.index(b"tokenizer.ggml.tokens")
    at = content.index(b"<|im_end|>", place)
    other = tmp_path / "other.gguf"
    other.write_bytes(content[:at] + b"<|im_and|>" + content[at + 10 :])
    with pytest.raises(ConfigurationError, match=r"the token 2 differs: '<\|im_end\|>' and '<\|im_and\|>'"):
        speculate.measure(teacher, other, prompts=None, new_tokens=8, threads=1, console=Console())


def drafted(median: float, low: float, high: float) -> dict[str, Any]:
    row = {"length": 2, "measured": {"n": 12, "median": median, "ci95": [low, high]}}
    return {"drafts": [row], "prompts": 4, "rounds": 3}


def test_no_gain_is_claimed_that_was_not_measured() -> None:
    assert speculate.verdict(drafted(1.3, 1.2, 1.4)).startswith("Writing was 1.30\u00d7 as fast")
    assert speculate.verdict(drafted(0.6, 0.5, 0.7)).startswith("No drafts made it faster: at best 0.600\u00d7")
    assert speculate.verdict(drafted(1.05, 0.9, 1.2)).startswith("No difference was shown")
    nothing = {"drafts": [{"length": 1, "measured": {"n": 0, "median": None, "ci95": None}}], "prompts": 1, "rounds": 1}
    assert speculate.verdict(nothing) == "No text was written, so nothing was measured."


def test_the_pipeline_in_the_page_loads() -> None:
    page = (ROOT / "docs" / "language_models.md").read_text(encoding="utf-8")
    whole, others = (block.partition("```")[0] for block in page.split("```yaml\n")[1:])
    assert [target.name for target in parse(whole.encode(), "docs").targets] == ["phone"]
    before = whole.partition("targets:")[0]
    assert [target.name for target in parse((before + others).encode(), "docs").targets] == ["fixed", "bits", "size"]
