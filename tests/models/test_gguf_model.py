"""`{kind: gguf}`: what is found before any work, its tokenizer's folder, and language models on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge import gguf_file
from edgeforge.core.errors import EnvironmentProblem, MissingExtraError, ModelError
from edgeforge.core.task import Input, Interface, Tokens
from edgeforge.exporters._gguf_writer import Stored, write
from edgeforge.exporters.gguf import Gguf as Exporter
from edgeforge.models import gguf as kind
from edgeforge.models import loading, tokenizer
from edgeforge.models.footprint import footprint
from edgeforge.models.gguf import Gguf
from edgeforge.models.pretrained import Pretrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Tales = Any

package = pytest.importorskip("gguf")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kind, "_cache", lambda: tmp_path / "cache" / "gguf")
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def path(tales: Tales, tmp_path: Path) -> Path:
    """A tiny Llama in float16."""
    Exporter().export(tales.torch("llama"), tales.job(tmp_path / "exported"))
    return tmp_path / "exported" / gguf_file.MODEL


def rewritten(path: Path, target: Path, *, drop: tuple[str, ...] = (), **changes: Any) -> Gguf:
    """The same file with other metadata (None: without an entry), and without some tensors."""
    file = gguf_file.read(path)
    said = {key: value for key, value in {**file.metadata, **changes}.items() if value is not None}
    architecture = said.pop("general.architecture")
    tensors = {
        name: Stored(tensor.type, tensor.shape, lambda name=name: file.stored(name))
        for name, tensor in file.tensors.items()
        if name not in drop
    }
    write(target, architecture, said, tensors)
    return Gguf(path=str(target))


def test_the_folder_is_there_before_the_model(path: Path, cache: Path, tales: Tales) -> None:
    model = Gguf(path=str(path))
    folder = model.folder()
    assert folder.parent == cache
    assert json.loads((folder / "config.json").read_text()) == {
        "model_type": "llama",
        "vocab_size": 352,
        "max_position_embeddings": 256,
    }
    data = tales.task.completed(folder).open(folder)
    assert data.interface.text.vocabulary_size == 352
    written = (folder / "tokenizer.json").stat().st_mtime_ns
    assert model.folder() == folder
    assert (folder / "tokenizer.json").stat().st_mtime_ns == written
    assert [item.name for item in cache.iterdir()] == [folder.name]


def test_the_digest_is_of_the_content(path: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.gguf").write_bytes(path.read_bytes())
    before = Gguf(path=str(path)).digest()
    assert Gguf(path=str(tmp_path / "copy.gguf")).digest() == before
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    assert Gguf(path=str(path)).digest() != before


def test_another_tokenizer_has_another_folder(path: Path, tmp_path: Path) -> None:
    other = rewritten(path, tmp_path / "other.gguf", **{"tokenizer.chat_template": "{{ messages }}"})
    assert other.folder() != Gguf(path=str(path)).folder()


def test_a_cache_that_cannot_be_written(path: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        Gguf(path=str(path)).folder()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16"])
def test_quantized_weights_are_multiplied_out(path: Path, tales: Tales, tmp_path: Path, name: str) -> None:
    """Against the package's own numbers, rows of queries and keys put in order by hand."""
    file = gguf_file.read(path)
    ggml = package.GGMLQuantizationType[name]
    expected, tensors = {}, {}
    for own, tensor in file.tensors.items():
        values = file.dequantized(own)
        if len(tensor.shape) == 2:
            stored = package.quants.quantize(values, ggml)
            values = package.quants.dequantize(stored, ggml)
            tensors[own] = Stored(name, tensor.shape, lambda stored=stored: stored)
        else:
            tensors[own] = Stored("F32", tensor.shape, lambda values=values: values)
        expected[own] = values
    said = {key: value for key, value in file.metadata.items() if key != "general.architecture"}
    write(tmp_path / "quantized.gguf", "llama", said, tensors)
    model = Gguf(path=str(tmp_path / "quantized.gguf")).build(tales.task, tales.data.interface)
    layer = model.model.layers[1]
    assert np.array_equal(layer.mlp.down_proj.weight.detach().numpy(), expected["blk.1.ffn_down.weight"])
    heads = expected["blk.1.attn_q.weight"].reshape(4, 16, 64)
    in_order = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(64, 64)
    assert np.array_equal(layer.self_attn.q_proj.weight.detach().numpy(), in_order)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


# -- what is found before any work


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gemma3"}, "its architecture is 'gemma3'; known are deci, llama"),
        ({"general.architecture": None}, "architecture"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.block_count": 2}, "is no tensor of this architecture"),
        ({"llama.block_count": 4}, "is missing"),
        ({"llama.block_count": 10**6}, "layers are not whole"),
        ({"llama.embedding_length": 128}, "not of the shape that its sizes say"),
        ({"llama.attention.head_count": [4, 4]}, "does not give each of 3 layers a width"),
        ({"llama.attention.head_count_kv": 4}, "not of the shape"),
        ({"llama.rope.dimension_count": 8}, "turned in part"),
        ({"llama.rope.scaling.type": "yarn"}, "stretched by 'yarn'"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "this epsilon"),
        ({"llama.context_length": None}, "context_length is None"),
        ({"tokenizer.ggml.pre": "tekken"}, "in the way 'tekken'"),
    ],
)
def test_files_that_are_refused_when_planned(path: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    if changes.get("general.architecture", "") is None:
        (tmp_path / "x.gguf").write_bytes(b"GGUF\x03" + bytes(19))
        model = Gguf(path=str(tmp_path / "x.gguf"))
    else:
        model = rewritten(path, tmp_path / "x.gguf", **changes)
    with pytest.raises(ModelError, match=message) as caught:
        model.folder()
    assert caught.value.remedy
    assert caught.value.exit_code == 2
    if "tokenizer" not in next(iter(changes)):
        with pytest.raises(ModelError, match=message):
            model.digest()


def test_a_file_cut_short_or_of_another_kind(path: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-1000])
    (tmp_path / "zip.gguf").write_bytes(b"PK\x03\x04")
    for name, message in (("cut.gguf", "cut short"), ("zip.gguf", "not a GGUF"), ("none.gguf", "cannot be read")):
        with pytest.raises(ModelError, match=message):
            Gguf(path=str(tmp_path / name)).digest()
    with pytest.raises(ModelError, match="a folder"):
        Gguf(path=str(tmp_path)).digest()


def test_a_missing_tensor_is_named_as_in_the_file(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight is missing"):
        rewritten(path, tmp_path / "x.gguf", drop=("blk.1.ffn_up.weight",)).digest()


def test_a_type_that_cannot_be_multiplied_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(package.quants, "dequantize", refuse)
    with pytest.raises(ModelError, match="of type F16 cannot be multiplied out"):
        Gguf(path=str(path)).digest()


def test_without_the_library(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError) as caught:
        Gguf(path=str(path)).digest()
    assert "edgeforge[gguf]" in str(caught.value.remedy)


# -- language models on disk


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_table_is_written_once(tales: Tales, family: str) -> None:
    from safetensors import safe_open

    folder = tales.torch(family).path
    model = loading.load(folder)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert ("lm_head.weight" in file.keys()) != model.config.tie_word_embeddings  # noqa: SIM118 (no mapping)
    table = model.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is table) == model.config.tie_word_embeddings


def test_a_narrowed_model_keeps_its_ties_and_how_it_ends(
    tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    from edgeforge.models.surgery import keep_channels

    model = tiny_lm("llama")
    model.generation_config.eos_token_id = [2, 0]
    part = model.model.layers[0].mlp
    for layer in (part.gate_proj, part.up_proj):
        keep_channels(layer, range(96), outputs=True)
    keep_channels(part.down_proj, range(96), outputs=False)
    loading.save(model, tmp_path)
    assert (tmp_path / "shapes.json").is_file()
    back = loading.load(tmp_path)
    assert back.lm_head.weight is back.model.embed_tokens.weight
    assert back.generation_config.eos_token_id == [2, 0]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(back(input_ids=ids).logits, model(input_ids=ids).logits)
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(ModelError, match="not a JSON object"):
        loading.load(tmp_path)


def test_a_pretrained_language_model(tales: Tales, tmp_path: Path) -> None:
    folder = tales.torch("qwen3").path
    copied = tmp_path / "model"
    copied.mkdir()
    for item in folder.iterdir():
        (copied / item.name).write_bytes(item.read_bytes())
    said = {"do_sample": True, "temperature": 0.6, "eos_token_id": [2, 0], "pad_token_id": 2}
    (copied / "generation_config.json").write_text(json.dumps(said))
    spec = Pretrained(path=str(copied))
    model = spec.build(tales.task, tales.data.interface)
    assert not model.generation_config.do_sample
    assert model.generation_config.eos_token_id == [2, 0]
    loading.save(model, tmp_path / "again", tokenizer_from=spec.folder())
    assert tokenizer.present(tmp_path / "again")
    with pytest.raises(ModelError, match="no classifier to replace"):
        Pretrained(path=str(copied), new_head=True).build(tales.task, tales.data.interface)


def test_a_backbone_alone_writes_nothing(tales: Tales, tmp_path: Path) -> None:
    backbone = loading.load(tales.torch("llama").path).model
    loading.save(backbone, tmp_path)
    with pytest.raises(ModelError, match="it is a LlamaModel, the task needs a LlamaForCausalLM"):
        Pretrained(path=str(tmp_path)).build(tales.task, tales.data.interface)


def test_windows_longer_than_the_model_reads(tales: Tales) -> None:
    inputs = tuple(Input(name, (512,), "int64", variable=True) for name in ("input_ids", "attention_mask"))
    long = Interface(inputs, "logits", (), tokens=Tokens(352, 512, 2))
    with pytest.raises(ModelError, match="reads up to 256 tokens, the task's windows have 512"):
        Pretrained(path=str(tales.torch("llama").path)).build(tales.task, long)


@pytest.mark.parametrize(("window", "refused"), [(31, True), (32, False), (None, False)])
def test_windows_longer_than_what_a_token_sees(
    tales: Tales, tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path, window: int | None, refused: bool
) -> None:
    """torch attends to so many tokens, the written files to all."""
    model = tiny_lm("mistral")
    model.config.sliding_window = window
    loading.save(model, tmp_path)
    if not refused:
        Pretrained(path=str(tmp_path)).build(tales.task, tales.data.interface)
        return
    with pytest.raises(ModelError, match="sees 31 tokens, the task's windows have 32") as caught:
        Pretrained(path=str(tmp_path)).build(tales.task, tales.data.interface)
    assert "`max_length` to 31 or less" in str(caught.value)


def test_multiply_accumulates_by_hand(tiny_lm: Callable[[str], PreTrainedModel], tales: Tales) -> None:
    """Three layers of 64, 4 heads of 16 on 2; 128 neurons; 352 tokens; windows of 32."""
    per_token = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 64 * 352
    per_pair = 3 * 2 * 64  # scores and mixtures
    rotation = 8  # inverse frequencies times positions
    found = footprint(tiny_lm("llama"), tales.data.interface)
    assert found["macs"] == (per_token + rotation) * 32 + per_pair * 32**2
    assert found["params"] == 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 128) + 64 + 64 * 352
