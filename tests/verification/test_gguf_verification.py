"""Sound GGUF files pass; what is broken in one is found, and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge import gguf_file, gguf_names
from edgeforge.core.artifact import Artifact
from edgeforge.exporters.gguf import Gguf
from edgeforge.gguf_file import MODEL
from edgeforge.quantizers.gguf_k import GgufK
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.runtimes.llama_cpp import LlamaCpp
from edgeforge.verification import gguf as verification
from edgeforge.verification._gguf_weights import GRIDS, _off_the_grid, _rounding

pytest.importorskip("llama_cpp")

if TYPE_CHECKING:
    from tests.conftest import Tales


@pytest.fixture(scope="module")
def floats(tales: Tales) -> Callable[..., Artifact]:
    """(family, type) -> the float file of its tiny model, made once."""

    def make(family: str = "llama", kind: str = "f16") -> Artifact:
        folder = tales.root / f"{family}.{kind}.verified"
        if not folder.is_dir():
            Gguf(type=kind).export(tales.torch(family), tales.job(folder))
        return tales.artifact(folder, "gguf")

    return make


@pytest.fixture(scope="module")
def quantized(tales: Tales, floats: Callable[..., Artifact]) -> Callable[..., Artifact]:
    """(type, family) -> a quantized file, made once, without importance."""

    def make(word: str, family: str = "llama") -> Artifact:
        folder = tales.root / f"{family}.{word}.verified"
        if not folder.is_dir():
            GgufK(type=word, importance=False).quantize(floats(family), tales.job(folder))
        return tales.artifact(folder, "gguf")

    return make


@pytest.fixture
def verified(tales: Tales, tmp_path: Path) -> Callable[..., Mapping[str, Any]]:
    """A file, the float file it was made from if it is quantized, and the family -> what verification says."""

    def verify(file: Artifact, unquantized: Artifact | None = None, family: str = "llama") -> Mapping[str, Any]:
        model = tales.torch(family)
        inputs = {"file": file, "model": model, "reference": model}
        if unquantized is not None:
            inputs["unquantized"] = unquantized
        return verification.verify(inputs, replace(tales.job(tmp_path / "job"), model=model.path))

    return verify


def failed(facts: Mapping[str, Any]) -> dict[str, str]:
    """Name -> detail of the checks that failed."""
    assert facts["passed"] is False
    return {check["name"]: check["detail"] for check in facts["checks"] if check["passed"] is False}


# -- sound files


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_float16_file_passes(
    verified: Callable[..., Any], floats: Callable[..., Artifact], tales: Tales, family: str
) -> None:
    facts = verified(floats(family), family=family)
    assert facts["passed"], facts["reason"]
    assert facts["parity"]["mean_kld"] < facts["parity"]["max_mean_kld"] == 1e-4
    assert facts["parity"]["agreement"] > 0.99
    windows = tales.data.size("validation") * tales.data.interface.text.max_length
    assert facts["parity"]["samples"] == min(2048, windows)
    assert facts["fidelity"] is None
    assert [check["name"] for check in facts["checks"]] == [
        "the file is whole",
        "the metadata say the config's sizes",
        "the tensors are the model's, by name and shape",
        "the metadata list the tokenizer's tokens",
        "the special tokens are the tokenizer's",
        "the chat template is the tokenizer's",
        "no build paths",
        "every tensor in floats is the model's, rounded",
        "llama.cpp opens the file",
        "llama.cpp and the tokenizer make the same ids of a text",
        "every answer is a number",
        "torch and the file find the same token likeliest for more than 99% of tokens",
    ]


@pytest.mark.parametrize(("kind", "limit"), [("f32", 1e-5), ("bf16", 1e-3)])
def test_other_floats_have_limits_of_their_own(
    verified: Callable[..., Any], floats: Callable[..., Artifact], kind: str, limit: float
) -> None:
    facts = verified(floats(kind=kind))
    assert facts["parity"]["max_mean_kld"] == limit
    assert facts["parity"]["passed"]


@pytest.mark.parametrize("word", ["q8_0", "q4_k_m", "q4_0", "iq4_nl"])
def test_a_quantized_file_passes_and_its_fidelity_is_measured(
    verified: Callable[..., Any], floats: Callable[..., Artifact], quantized: Callable[..., Artifact], word: str
) -> None:
    facts = verified(quantized(word), floats())
    assert facts["passed"], facts["reason"]
    assert facts["parity"]["reference"] == "the torch model with the same quantized weights"
    assert 0 < facts["parity"]["mean_kld"] < facts["parity"]["max_mean_kld"]
    fidelity = facts["fidelity"]
    assert fidelity["metric"] == "next_token_accuracy"
    assert fidelity["mean_kld"] > facts["parity"]["mean_kld"] or word == "q8_0"
    assert 0.3 < fidelity["agreement"] <= 1
    assert 0.8 < fidelity["cosine"] <= 1
    assert fidelity["perplexity"] > 1
    # Every tensor of the three blocks, and the table; rounding with b bits gains 6 dB with each.
    noise = [layer["weight_db"] for layer in facts["layers"]]
    assert len(noise) == 3 * 7 + 1 and noise == sorted(noise)
    assert "model.embed_tokens" in {layer["name"] for layer in facts["layers"]}
    low, high = {"q8_0": (35, 55), "q4_k_m": (15, 40), "q4_0": (15, 30), "iq4_nl": (15, 30)}[word]
    assert low < noise[0]
    assert np.median(noise) < high


def test_the_integers_of_a_quantizer_of_models_pass(tales: Tales, tmp_path: Path) -> None:
    """Nothing rewrote this file: it holds another quantizer's integers, which must be the very same."""
    model = tales.torch("llama")
    for name in ("quantized", "file", "job"):
        (tmp_path / name).mkdir()
    quantizer = Int4Weights(block_size=32)
    job = replace(tales.job(tmp_path / "quantized"), model=model.path)
    reference = tales.artifact(tmp_path / "quantized", "torch", quantizer.quantize(model, job))
    Gguf().export(reference, tales.job(tmp_path / "file"))
    file = tales.artifact(tmp_path / "file", "gguf")
    assert "Q4_0" in gguf_file.read(file.path / MODEL).types()
    inputs = {"file": file, "model": model, "reference": reference}
    job = replace(tales.job(tmp_path / "job"), model=model.path)
    facts = verification.verify(inputs, job)
    assert facts["passed"], facts["reason"]
    assert facts["fidelity"]["mean_kld"] > facts["parity"]["mean_kld"]
    assert "integers are the float weights" in {check["name"] for check in facts["checks"]}
    other = verification.verify({**inputs, "reference": model}, job)
    assert "every tensor in floats is the model's, rounded" in failed(other)


def test_without_the_library_what_it_would_say_is_unknown(
    verified: Callable[..., Any], floats: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaCpp, "available", lambda self: "llama-cpp-python is not installed")
    facts = verified(floats())
    assert facts["passed"]
    assert facts["parity"]["passed"] is None
    assert {check["name"]: check["passed"] for check in facts["checks"]}["llama.cpp opens the file"] is None


# -- broken files


@pytest.fixture
def broken(tales: Tales, tmp_path: Path) -> Callable[..., Artifact]:
    """A copy of a file with other metadata or other bytes in some tensors."""

    def make(
        file: Artifact,
        *,
        metadata: Mapping[str, Any] | None = None,
        tensors: Mapping[str, np.ndarray] | None = None,
    ) -> Artifact:
        import gguf

        folder = tmp_path / "broken"
        folder.mkdir()
        for name in file.files:
            (folder / name).write_bytes((file.path / name).read_bytes())
        source = gguf_file.read(file.path / MODEL)
        reader = gguf.GGUFReader(file.path / MODEL)
        writer = gguf.GGUFWriter(folder / MODEL, source.architecture)
        for key, field in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture":
                continue
            value = (metadata or {}).get(key, field.contents())
            if field.types[0] == gguf.GGUFValueType.ARRAY:
                writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1])
            else:
                writer.add_key_value(key, value, field.types[0])
        for name, tensor in source.tensors.items():
            stored = np.ascontiguousarray((tensors or {}).get(name, source.stored(name)))
            kind = gguf.GGMLQuantizationType[tensor.type]
            writer.add_tensor(name, stored.view(np.uint8), raw_shape=stored.shape, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tales.artifact(folder, "gguf")

    return make


def test_a_copy_that_changes_nothing_passes(
    verified: Callable[..., Any], floats: Callable[..., Artifact], broken: Callable[..., Artifact]
) -> None:
    facts = verified(broken(floats()))
    assert facts["passed"], facts["reason"]


@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_file_cut_short(
    verified: Callable[..., Any], floats: Callable[..., Artifact], broken: Callable[..., Artifact], kept: float
) -> None:
    file = broken(floats())
    content = (file.path / MODEL).read_bytes()
    (file.path / MODEL).write_bytes(content[: int(kept * len(content))])
    assert failed(verified(file)) == {"the file is whole": "the file is cut short"}


def test_rows_in_hugging_faces_order(
    verified: Callable[..., Any], floats: Callable[..., Artifact], broken: Callable[..., Artifact]
) -> None:
    """What llama.cpp would turn is not what it takes it for."""
    source = gguf_file.read(floats().path / MODEL)
    name = "blk.1.attn_k.weight"
    file = broken(floats(), tensors={name: gguf_names.unpaired(source.stored(name), 16)})
    (detail,) = failed(verified(file)).values()
    assert detail.startswith(f"{name} (F16)")


def test_two_rows_of_a_quantized_table_in_each_others_place(
    verified: Callable[..., Any],
    floats: Callable[..., Artifact],
    quantized: Callable[..., Artifact],
    broken: Callable[..., Artifact],
) -> None:
    stored = gguf_file.read(quantized("q4_0").path / MODEL).stored("token_embd.weight").copy()
    stored[[40, 41]] = stored[[41, 40]]
    found = failed(verified(broken(quantized("q4_0"), tensors={"token_embd.weight": stored}), floats()))
    assert "row 40" in found["every quantized tensor is as near as its type can be"]


@pytest.mark.parametrize("word", ["q8_0", "q4_0", "iq4_nl"])
def test_scales_in_each_others_place(
    verified: Callable[..., Any],
    floats: Callable[..., Artifact],
    quantized: Callable[..., Artifact],
    broken: Callable[..., Artifact],
    word: str,
) -> None:
    """The first two bytes of a block are its scale; the two blocks of every row swap theirs."""
    source = gguf_file.read(quantized(word).path / MODEL)
    name = "blk.0.ffn_up.weight"
    stored = source.stored(name).copy()
    blocks = stored.reshape(stored.shape[0], 2, -1)
    blocks[:, :, :2] = blocks[:, ::-1, :2].copy()
    found = failed(verified(broken(quantized(word), tensors={name: stored}), floats()))
    assert name in found["every quantized tensor is as near as its type can be"]


@pytest.mark.parametrize("word", [None, "q4_0"])
def test_one_tensor_of_garbage(
    verified: Callable[..., Any],
    floats: Callable[..., Artifact],
    quantized: Callable[..., Artifact],
    broken: Callable[..., Artifact],
    word: str | None,
) -> None:
    file = quantized(word) if word else floats()
    name = "blk.2.ffn_down.weight"
    stored = np.random.RandomState(0).permutation(gguf_file.read(file.path / MODEL).stored(name))
    found = failed(verified(broken(file, tensors={name: stored}), floats() if word else None))
    assert len(found) == 1
    assert name in next(iter(found.values()))


def test_a_number_that_is_none(
    verified: Callable[..., Any], floats: Callable[..., Artifact], broken: Callable[..., Artifact]
) -> None:
    name = "blk.0.attn_v.weight"
    stored = gguf_file.read(floats().path / MODEL).stored(name).copy()
    stored[0, :2] = np.array([np.nan], dtype=np.float16).view(np.uint8)
    (detail,) = failed(verified(broken(floats(), tensors={name: stored}))).values()
    assert "NaN or Infinity" in detail


METADATA = [
    ("llama.rope.freq_base", 1234.0, "the metadata say the config's sizes", "rope.freq_base is"),
    ("llama.context_length", 512, "the metadata say the config's sizes", "context_length is 512, expected 256"),
    ("llama.attention.head_count", 2, "the metadata say the config's sizes", "attention.head_count is"),
    ("llama.attention.head_count_kv", 4, "the metadata say the config's sizes", "attention.head_count_kv is"),
    ("llama.attention.layer_norm_rms_epsilon", 0.1, "the metadata say the config's sizes", "epsilon"),
    ("llama.block_count", 2, "the metadata say the config's sizes", "block_count is 2, expected 3"),
    ("tokenizer.ggml.eos_token_id", 5, "the special tokens are the tokenizer's", "eos_token_id is 5, expected 2"),
    ("tokenizer.ggml.bos_token_id", 5, "the special tokens are the tokenizer's", "bos_token_id is 5, expected 1"),
    ("tokenizer.chat_template", "{{ messages }}", "the chat template is the tokenizer's", "the chat template is"),
    (
        "tokenizer.ggml.pre",
        "default",
        "the metadata list the tokenizer's tokens",
        "how texts are cut into words is 'default', expected 'smollm'",
    ),
]


@pytest.mark.parametrize(("key", "value", "check", "detail"), METADATA, ids=[entry[0] for entry in METADATA])
def test_metadata_that_are_another_models(
    verified: Callable[..., Any],
    floats: Callable[..., Artifact],
    broken: Callable[..., Artifact],
    key: str,
    value: Any,
    check: str,
    detail: str,
) -> None:
    found = failed(verified(broken(floats(), metadata={key: value})))
    assert detail in found[check]


def test_tokens_in_another_order(
    verified: Callable[..., Any], floats: Callable[..., Artifact], broken: Callable[..., Artifact]
) -> None:
    tokens = list(gguf_file.read(floats().path / MODEL).metadata["tokenizer.ggml.tokens"])
    tokens[300], tokens[301] = tokens[301], tokens[300]
    found = failed(verified(broken(floats(), metadata={"tokenizer.ggml.tokens": tokens})))
    assert found["the metadata list the tokenizer's tokens"].startswith("the token 300 is")


def test_merges_that_are_lost(
    verified: Callable[..., Any], floats: Callable[..., Artifact], broken: Callable[..., Artifact]
) -> None:
    merges = gguf_file.read(floats().path / MODEL).metadata["tokenizer.ggml.merges"]
    found = failed(verified(broken(floats(), metadata={"tokenizer.ggml.merges": merges[:40]})))
    assert list(found) == ["llama.cpp and the tokenizer make the same ids of a text"]


def test_a_tokenizer_beside_the_file_that_is_another(
    verified: Callable[..., Any], floats: Callable[..., Artifact], broken: Callable[..., Artifact], tales: Tales
) -> None:
    folder = broken(floats()).path
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("<|im_end|>", "<|im_stop|>"), encoding="utf-8")
    found = failed(verified(tales.artifact(folder, "gguf")))
    assert "the tokenizer beside the file is the model's" in found


def test_answers_too_far_from_torchs_fail_whatever_the_tensors_say(
    verified: Callable[..., Any], floats: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a kernel is wrong: every answer is that to the token before."""
    import edgeforge.verification._gguf_answers as answers

    honest = answers._asked
    monkeypatch.setattr(answers, "_asked", lambda session, window: np.roll(honest(session, window), 1, axis=0))
    facts = verified(floats())
    assert facts["parity"]["passed"] is False
    assert "mean divergence" in facts["reason"] or "likeliest" in facts["reason"]
    assert facts["parity"]["mean_kld"] > 0.1


def test_answers_that_are_no_numbers_fail(
    verified: Callable[..., Any], floats: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    import edgeforge.verification._gguf_answers as answers

    monkeypatch.setattr(answers, "_asked", lambda session, window: session.run(window)[0] * np.nan)
    assert "every answer is a number" in failed(verified(floats()))


# -- how near a type can be


def test_plain_rounding_is_rounding_to_the_nearest_step() -> None:
    weight = np.array([[1.0, -0.4, 0.1, 0.0] * 8], dtype=np.float32)
    # Three bits: steps of 1/3 up to the largest number.
    expected = np.array([[0.0, 0.4 - 1 / 3, -0.1, 0.0] * 8])
    np.testing.assert_allclose(_rounding(weight, 3, 32), expected, atol=1e-6)
    assert not _rounding(np.zeros((2, 32), dtype=np.float32), 4, 32).any()


@pytest.mark.parametrize("kind", sorted(GRIDS))
def test_only_what_rounding_explains_is_on_the_grid(kind: str) -> None:
    chance = np.random.RandomState(0)
    weight = chance.laplace(size=(64, 256)).astype(np.float32)
    rounding = _rounding(weight, *GRIDS[kind])
    assert _off_the_grid(rounding, weight, kind) is None
    assert _off_the_grid(3 * rounding, weight, kind) is not None
    assert _off_the_grid(-weight, weight, kind) is not None
    shuffled = weight[chance.permutation(64)]
    assert _off_the_grid(shuffled - weight, weight, kind) is not None
    one = weight.copy()
    one[7] = weight[8]
    assert "row 7" in (_off_the_grid(one - weight, weight, kind) or "")


def test_weights_that_lie_on_a_grid_already_move_with_the_rounding_of_its_scale() -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    integers = np.random.RandomState(0).randint(-126, 127, size=(64, 256)).astype(np.float32)
    integers[:, ::32] = -127  # so that every block's scale is that of its row
    weight = integers * np.linspace(0.01, 0.02, 64, dtype=np.float32)[:, None]  # no numbers of float16
    error = dequantize(quantize(weight, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0) - weight
    assert 1e-4 < np.linalg.norm(error) / np.linalg.norm(weight) < 2**-11
    assert _off_the_grid(error, weight, "Q8_0") is None
    assert _off_the_grid(0.002 * weight, weight, "Q8_0") is not None
