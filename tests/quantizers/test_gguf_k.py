"""GGUF files that llama.cpp quantizes: what is in them, what is said of them, and what is left when it fails."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeforge import gguf_file
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ConfigurationError, ModelError
from edgeforge.exporters.gguf import Gguf
from edgeforge.gguf_file import MODEL
from edgeforge.models import loading, tokenizer
from edgeforge.quantizers import _importance
from edgeforge.quantizers._gguf_mix import rows_of
from edgeforge.quantizers._gguf_types import MIXES
from edgeforge.quantizers.gguf_k import GgufK
from edgeforge.runtimes._llama.quantization import Recipe, planned_types, quantize
from edgeforge.runtimes._llama.session import LlamaCppSession
from edgeforge.stages.importance import Importance

pytest.importorskip("llama_cpp")

if TYPE_CHECKING:
    from tests.conftest import Notes, Tales

Quantized = Callable[..., tuple[Mapping[str, Any], Path, "Notes"]]


@pytest.fixture(scope="module")
def wide(tales: Tales) -> Artifact:
    """A Llama whose feed-forward width is 256, so that some weights can be k-quants."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tales.root / "wide.torch"
    config = LlamaConfig(
        vocab_size=352,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_normal_(parameter)
    model.get_input_embeddings().weight.data.normal_(0, 0.2)
    loading.save(model.eval(), folder)
    tales.data.write_reader(folder)
    return tales.artifact(folder, "torch")


@pytest.fixture(scope="module")
def floats(tales: Tales, wide: Artifact) -> Artifact:
    folder = tales.root / "wide.gguf"
    return tales.artifact(folder, "gguf", Gguf().export(wide, tales.job(folder)))


@pytest.fixture(scope="module")
def importance(tales: Tales, wide: Artifact) -> Artifact:
    folder = tales.root / "wide.importance"
    job = replace(tales.job(folder), model=wide.path)
    return tales.artifact(folder, "measurements", Importance(tokens=512).run({"model": wide}, job))


@pytest.fixture
def quantized(tales: Tales, floats: Artifact, importance: Artifact, tmp_path: Path) -> Quantized:
    """The fields of a GgufK -> its facts, the folder it wrote, and what it warned of."""

    def make(**fields: Any) -> tuple[Mapping[str, Any], Path, Notes]:
        folder = tmp_path / f"made-{len(list(tmp_path.iterdir()))}"
        job = replace(tales.job(folder), model=floats.path)
        facts = GgufK(**fields).quantize_with({"model": floats, "importance": importance}, job)
        return facts, folder, job.progress  # type: ignore[return-value]

    return make


def types_in(folder: Path) -> dict[str, str]:
    """Tensor -> type, as the gguf package reads them."""
    from gguf import GGUFReader

    return {str(tensor.name): tensor.tensor_type.name.lower() for tensor in GGUFReader(folder / MODEL).tensors}


# -- what a spec says


def test_importance_is_measured_for_types_below_six_bits() -> None:
    assert GgufK(type="q8_0").calibration_tokens() == 0
    assert GgufK(type="q6_k").calibration_tokens() == 0
    assert GgufK(type="q5_k_m").calibration_tokens() == 16384
    assert GgufK(type="q4_0", importance_tokens=99).calibration_tokens() == 99
    assert GgufK().calibration_tokens() == 16384
    assert GgufK(type="q4_0", importance=False).calibration_tokens() == 0
    assert GgufK(type="q8_0", importance=True).calibration_tokens() == 16384
    assert GgufK(type="q8_0", tensors={"blk.*": "q4_0"}).calibration_tokens() == 16384
    assert GgufK(target_bpw=5).calibration_tokens() == 16384


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "q4_0", "target_bpw": 5},
        {"target_bpw": 5, "target_size_mb": 1},
        {"target_bpw": 5, "importance": False},
        {"target_bpw": 0},
        {"type": "q4_1"},
        {"tensors": {"blk.*": "q5_1"}},
        {"candidates": ["q4_1"]},
        {"candidates": []},
    ],
)
def test_wishes_that_contradict_and_types_that_are_barred(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GgufK(**fields)


# -- fixed types


@pytest.mark.parametrize("word", ["q8_0", "q4_k_m", "q4_0", "iq4_nl"])
def test_facts_are_what_is_in_the_file(quantized: Quantized, floats: Artifact, word: str) -> None:
    facts, folder, _ = quantized(type=word)
    found = types_in(folder)
    matrices = {name: kind for name, kind in found.items() if not name.endswith("_norm.weight")}
    assert facts["tensors"] == matrices
    assert sum(facts["types"].values()) == len(matrices)
    assert {kind for name, kind in found.items() if name.endswith("_norm.weight")} == {"f32"}
    size = (folder / MODEL).stat().st_size
    tensors = gguf_file.read(folder / MODEL).tensors.values()
    count = sum(tensor.count for tensor in tensors)
    assert facts["bytes"] == size < (floats.path / MODEL).stat().st_size
    assert facts["file_bits_per_weight"] == pytest.approx(8 * size / count, abs=1e-3)
    assert facts["bits_per_weight"] == pytest.approx(8 * sum(t.size_bytes for t in tensors) / count, abs=1e-3)
    assert 99 < facts["coverage_percent"] < 100


def test_rows_that_a_type_does_not_divide_are_listed_and_warned_of_once(quantized: Quantized) -> None:
    facts, folder, notes = quantized(type="q4_k_m")
    found = types_in(folder)
    narrow = {name for name in found if name.endswith(".weight") and "norm" not in name and "ffn_down" not in name}
    assert facts["fallbacks"] == {name: found[name] for name in narrow}
    assert {found[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1)} <= {"q4_k", "q5_k", "q6_k"}
    assert len(notes.warnings) == 1
    assert "13 of 15 weights have rows of 64, no multiple of 256" in notes.warnings[0]
    assert "\n" not in notes.warnings[0]
    assert f"{facts['bits_per_weight']:.2f} bits per weight" in notes.warnings[0]


@pytest.mark.parametrize("word", ["q4_0", "iq4_nl", "q5_0"])
def test_a_table_that_was_to_be_q6_k_is_a_fallback_of_a_mix_in_blocks_of_32(quantized: Quantized, word: str) -> None:
    """llama.cpp gives a table that is the output's too more bits, in a type that rows of 64 do not divide."""
    facts, _, notes = quantized(type=word)
    assert facts["fallbacks"] == {"token_embd.weight": "q8_0"}
    assert facts["types"] == {word: 14, "q8_0": 1}
    (warning,) = notes.warnings
    assert warning.startswith(f"{word}: 1 of 15 weights have rows of 64, no multiple of 256, so llama.cpp made them 1")
    assert warning.endswith(f"{facts['bits_per_weight']:.2f} bits per weight")


@pytest.mark.parametrize("fields", [{"type": "q8_0"}, {"type": "q4_0", "tensors": {"token_embd.weight": "q4_0"}}])
def test_types_that_divide_every_row_warn_of_nothing(quantized: Quantized, fields: dict[str, Any]) -> None:
    facts, _, notes = quantized(**fields)
    assert facts["fallbacks"] == {}
    assert notes.warnings == []


def test_tensors_have_types_of_their_own_and_the_longest_pattern_counts(quantized: Quantized) -> None:
    own = {"blk.*": "q8_0", "blk.*.ffn_down.weight": "q3_k", "blk.1.ffn_down.weight": "q6_k", "token_embd.*": "f16"}
    facts, folder, _ = quantized(type="q4_0", tensors=own)
    found = types_in(folder)
    assert found["token_embd.weight"] == "f16"
    assert found["blk.0.ffn_down.weight"] == "q3_k"
    assert found["blk.1.ffn_down.weight"] == "q6_k"
    assert found["blk.0.attn_q.weight"] == found["blk.1.ffn_up.weight"] == "q8_0"
    assert found["blk.0.attn_norm.weight"] == "f32"
    assert facts["coverage_percent"] < 90


@pytest.mark.parametrize("word", ["q4_0", "q4_k_m", "q3_k_m"])
def test_a_tensors_own_type_leaves_the_others_as_they_were(quantized: Quantized, word: str) -> None:
    """llama.cpp counts the layers with more bits among the tensors that have no type of their own."""
    _, folder, _ = quantized(type=word)
    _, other, _ = quantized(type=word, tensors={"blk.0.ffn_down.weight": "q8_0", "blk.0.attn_v.weight": "q8_0"})
    before, after = types_in(folder), types_in(other)
    assert {name for name in before if before[name] != after[name]} <= {"blk.0.ffn_down.weight", "blk.0.attn_v.weight"}
    assert after["blk.0.ffn_down.weight"] == "q8_0"


def test_types_are_planned_as_they_are_then_made(quantized: Quantized, floats: Artifact) -> None:
    file = gguf_file.read(floats.path / MODEL)
    for word in MIXES:
        _, folder, _ = quantized(type=word, importance=False)
        assert planned_types(file, Recipe(word)) == types_in(folder)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"blk.9.*": "q8_0"}, "'blk.9.*' matches no weight"),
        ({"blk.0.attn_norm.weight": "q8_0"}, "matches no weight"),
        ({"blk.0.attn_q.weight": "q4_k"}, "cannot be q4_k: its rows have 64 weights, no multiple of 256"),
    ],
)
def test_types_that_tensors_cannot_have(quantized: Quantized, tensors: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        quantized(type="q8_0", tensors=tensors)


def test_the_tokenizer_goes_along_and_nothing_else(quantized: Quantized, floats: Artifact) -> None:
    _, folder, _ = quantized(type="q8_0")
    assert {path.name for path in folder.iterdir()} == set(floats.files)
    assert tokenizer.digest(folder) == tokenizer.digest(floats.path)


# -- importance


def weighted_errors(floats: Artifact, folder: Path, measured: _importance.Importance) -> dict[str, float]:
    """Sum over a weight of squared error times the mean square of its column's input."""
    exact, rounded = gguf_file.read(floats.path / MODEL), gguf_file.read(folder / MODEL)
    return {
        name: float((((rounded.dequantized(name) - exact.dequantized(name)) ** 2) @ values).sum())
        for name, values in measured.inputs.items()
    }


def test_with_importance_what_matters_is_rounded_better(
    quantized: Quantized, floats: Artifact, importance: Artifact
) -> None:
    measured = _importance.read(importance.path)
    facts, folder, _ = quantized(type="iq4_nl")
    plain_facts, plain_folder, _ = quantized(type="iq4_nl", importance=False)
    assert (facts["importance_tokens"], plain_facts["importance_tokens"]) == (512, None)
    found, plain = (weighted_errors(floats, one, measured) for one in (folder, plain_folder))
    assert facts["tensors"]["token_embd.weight"] == "q8_0"  # where importance changes nothing
    assert {name for name in found if found[name] < plain[name]} == set(found) - {"token_embd.weight"}


def test_without_what_it_wants_it_says_so(tales: Tales, floats: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nothing was measured"):
        GgufK(type="q4_0").quantize(floats, tales.job(tmp_path / "made"))
    GgufK(type="q4_0", importance=False).quantize(floats, tales.job(tmp_path / "plain"))


def test_importance_of_another_model_is_refused(
    tales: Tales, floats: Artifact, importance: Artifact, tmp_path: Path
) -> None:
    measured = _importance.read(importance.path)
    shorter = {name: values[:32] if "ffn_up" in name else values for name, values in measured.inputs.items()}
    _importance.write(replace(measured, inputs=shorter), tmp_path)
    other = tales.artifact(tmp_path, "measurements")
    with pytest.raises(ModelError, match=r"another model: blk\.0\.ffn_up\.weight"):
        GgufK(type="q4_0").quantize_with({"model": floats, "importance": other}, tales.job(tmp_path / "made"))


# -- targets


@pytest.mark.parametrize(("bpw", "least"), [(6.0, 5.9), (4.9, 4.8), (8.0, 7.9)])
def test_a_target_in_bits_is_kept_and_nearly_used(quantized: Quantized, bpw: float, least: float) -> None:
    facts, folder, _ = quantized(target_bpw=bpw)
    tensors = gguf_file.read(folder / MODEL).tensors.values()
    found = 8 * sum(tensor.size_bytes for tensor in tensors) / sum(tensor.count for tensor in tensors)
    assert least < found <= bpw
    assert set(types_in(folder).values()) & {"q4_1", "q5_1"} == set()
    assert facts["allocation"]["taken"] in facts["allocation"]["measured_kld"]
    assert set(folder.iterdir()) == {folder / name for name in ["model.gguf", *_beside(folder)]}


def _beside(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name in tokenizer.FILES]


def test_a_target_in_megabytes_counts_the_whole_file(quantized: Quantized, floats: Artifact) -> None:
    target = 0.45 * (floats.path / MODEL).stat().st_size / 1e6
    _, folder, _ = quantized(target_size_mb=target)
    assert 0.93 * target < (folder / MODEL).stat().st_size / 1e6 <= target


def test_the_mix_is_nearer_to_the_model_than_a_fixed_type_of_no_fewer_bytes(quantized: Quantized) -> None:
    fixed, _, _ = quantized(type="q5_0", importance=True)
    facts, _, _ = quantized(target_bpw=fixed["bits_per_weight"] + 1e-4)
    measured = facts["allocation"]["measured_kld"]
    assert facts["bits_per_weight"] <= fixed["bits_per_weight"]
    assert measured["mixed"] < measured["q5_0"]
    assert facts["allocation"]["predicted_kld"] == pytest.approx(measured["mixed"], rel=0.7)


def test_answers_are_compared_window_by_window(quantized: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large vocabulary, what the float file answers to all windows would fill the memory."""
    asked: list[LlamaCppSession] = []
    run = LlamaCppSession.run

    def watched(session: LlamaCppSession, inputs: dict[str, np.ndarray]) -> np.ndarray:
        asked.append(session)
        return run(session, inputs)

    monkeypatch.setattr(LlamaCppSession, "run", watched)
    facts, _, _ = quantized(target_bpw=6.0)
    windows = facts["allocation"]["measured_tokens"] // 32
    assert len(asked) == 2 * windows * len(facts["allocation"]["measured_kld"]) > 2
    assert all(one is not other for one, other in zip(asked[::2], asked[1::2], strict=True))


def test_a_target_nothing_reaches_names_the_smallest_and_that_one_works(quantized: Quantized) -> None:
    with pytest.raises(ConfigurationError, match="no choice of types is so small") as raised:
        quantized(target_bpw=2.0)
    megabytes, bits = re.findall(r"([0-9.]+) (?:MB|bits)", raised.value.what)
    facts, _, _ = quantized(target_bpw=float(bits) + 0.001)
    assert facts["bits_per_weight"] <= float(bits) + 0.001
    assert facts["bytes"] / 1e6 == pytest.approx(float(megabytes), rel=0.05)


def test_only_candidates_are_chosen_and_own_types_stay(quantized: Quantized) -> None:
    _, folder, _ = quantized(target_bpw=7.0, candidates=["q8_0", "q4_0"], tensors={"token_embd.weight": "q5_0"})
    found = types_in(folder)
    assert found.pop("token_embd.weight") == "q5_0"
    assert {kind for name, kind in found.items() if "norm" not in name} == {"q8_0", "q4_0"}


def test_rows_are_multiplied_out_as_by_the_package(quantized: Quantized, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeforge.quantizers._gguf_mix.CHUNK_VALUES", 1000)
    _, folder, _ = quantized(type="q4_k_m")
    file = gguf_file.read(folder / MODEL)
    for name in ("token_embd.weight", "blk.0.ffn_down.weight"):
        parts = list(rows_of(file, name))
        assert len(parts) > 1
        np.testing.assert_array_equal(np.concatenate(parts), file.dequantized(name))


# -- when it fails


def test_a_quantized_file_is_not_quantized_again(quantized: Quantized, tales: Tales, tmp_path: Path) -> None:
    _, folder, _ = quantized(type="q8_0")
    again = tales.artifact(folder, "gguf")
    made = tmp_path / "again"
    with pytest.raises(ModelError, match="is Q8_0 already"):
        GgufK(type="q4_0", importance=False).quantize(again, tales.job(made))
    assert list(made.iterdir()) == []


def test_what_llama_cpp_refuses_leaves_nothing_behind(
    quantized: Quantized, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, folder, _ = quantized(type="q8_0")
    made = tmp_path / "refused"
    made.mkdir()
    with pytest.raises(ModelError, match="requantizing from type q8_0 is disabled"):
        quantize(folder / MODEL, made / MODEL, Recipe("q4_0"))
    assert list(made.iterdir()) == []
    assert capfd.readouterr() == ("", "")


FULL = """
import resource, sys
from pathlib import Path
from edgeforge.core.errors import EnvironmentProblem
from edgeforge.runtimes._llama.quantization import Recipe, planned_types, quantize
source, target, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    quantize(source, target, Recipe("q8_0"))
except EnvironmentProblem as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX's")
@pytest.mark.parametrize("limit", [10_000, 60_000])
def test_a_full_disk_is_said_and_nothing_is_left(floats: Artifact, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for the full disk: writing past it fails the same way."""
    command = [sys.executable, "-c", FULL, str(floats.path / MODEL), str(tmp_path / MODEL), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert "cannot be written" in done.stdout
    assert "make room on the disk" in done.stdout
    assert list(tmp_path.iterdir()) == []
