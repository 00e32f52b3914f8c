"""Tokenizers through GGUF and back: ids equal llama.cpp's, whatever the text."""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge import gguf_file
from edgeforge.core.errors import ModelError
from edgeforge.exporters import _gguf_writer
from edgeforge.models import chat, gguf_tokenizer, tokenizer

if TYPE_CHECKING:
    LlamaFile = Any

pytest.importorskip("gguf")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SCRIPTS = {
    "latin": (0xA0, 0x250),
    "greek and cyrillic": (0x370, 0x530),
    "hebrew and arabic": (0x590, 0x700),
    "devanagari": (0x900, 0x980),
    "thai": (0xE00, 0xE80),
    "hangul": (0xAC00, 0xD7A4),
    "kana": (0x3040, 0x3100),
    "han": (0x4E00, 0xA000),
    "emoji": (0x1F300, 0x1F700),
    "symbols": (0x2000, 0x2C00),
    "all": (0x20, 0xD800),
}


def texts(size: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(name, about `size` characters) of code, digits, spaces, control characters, special tokens, other scripts."""
    chance = random.Random(seed)
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = "".join(
        (library / f"{name}.py").read_text(encoding="utf-8") for name in ("typing", "inspect", "argparse")
    )
    yield "code", sources[: 4 * size]
    yield "digits", " ".join(str(chance.randrange(10 ** chance.randint(1, 20))) for _ in range(size // 10)) + " ٣४²Ⅷ½"
    spaces = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "   ", "a", "1", ".", "\u00a0", "\u3000"]
    yield "spaces", "".join(chance.choice(spaces) for _ in range(size))
    control = [*map(chr, range(1, 32)), *"abcsTdLlRVmE ''"]
    yield "control characters", "".join(chance.choice(control) for _ in range(size))
    contractions = ["I'm", "we'LL", "'s", "can't", "D'", "''re", " 'Ve", "o'clock ", "\n"]
    yield "contractions", "".join(chance.choice(contractions) for _ in range(size // 4))
    special = [*SPECIAL, "user\n", " hi", "<|im", "|>", "<"]
    yield "special tokens", "".join(chance.choice(special) for _ in range(size // 4))
    for name, (low, high) in SCRIPTS.items():
        characters = (
            chr(chance.randrange(low, high)) if chance.random() > 0.2 else chance.choice(" \n1") for _ in range(size)
        )
        yield name, "".join(characters)


def trained(folder: Path, way: str, *, alphabet: int = 256, normalizer: str | None = None, bos: bool = False) -> Path:
    """A tokenizer that cuts texts in one of the known ways, written as Hugging Face does."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    known = gguf_tokenizer.WAYS[way]
    made = Tokenizer(models.BPE(ignore_merges=known.ignore_merges))
    parts = [gguf_tokenizer._made(part) for part in known.parts]
    made.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())[:alphabet],
        show_progress=False,
    )
    made.train_from_iterator([text for _, text in texts(300, seed=1)][: 2 if alphabet < 256 else None], trainer)
    made.add_tokens(["NewWord"])
    if normalizer:
        made.normalizer = getattr(normalizers, normalizer)()
    if bos:
        around = {"single": "<|im_start|> $A", "special_tokens": [("<|im_start|>", 1)]}
        made.post_processor = processors.TemplateProcessing(**around)
    names = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    fast.chat_template = "{{ messages[0]['content'] }}"
    fast.save_pretrained(folder)
    return folder


def packed(folder: Path, target: Path) -> gguf_file.GgufFile:
    """A GGUF file of the tokenizer alone."""
    size = len(tokenizer.tokens(folder))
    _gguf_writer.write(target, "llama", gguf_tokenizer.describe(folder, size), {})
    return gguf_file.read(target)


@pytest.mark.parametrize("way", sorted(gguf_tokenizer.WAYS))
@pytest.mark.parametrize("alphabet", [256, 150])
def test_ids_are_llama_cpps(tmp_path: Path, way: str, alphabet: int, llama_file: Callable[..., LlamaFile]) -> None:
    folder = trained(tmp_path / "original", way, alphabet=alphabet, bos=way == "llama-bpe")
    file = packed(folder, tmp_path / "model.gguf")
    assert file.metadata["tokenizer.ggml.pre"] == way
    theirs = llama_file(file.path, vocabulary_only=True)
    gguf_tokenizer.write(file, (tmp_path / "rebuilt"))
    original, rebuilt = tokenizer.read(folder), tokenizer.read(tmp_path / "rebuilt")
    for name, text in [*texts(400), ("a new word", "a NewWord, NewWords")]:
        ids = rebuilt(text)["input_ids"]
        assert ids == theirs.ids(text), name
        if alphabet == 256:
            assert ids == original(text)["input_ids"], name
            assert rebuilt.decode(ids, skip_special_tokens=True) == original.decode(ids, skip_special_tokens=True)
    # And once more: what was rebuilt is written as the same metadata.
    again = gguf_tokenizer.describe(tmp_path / "rebuilt", len(tokenizer.tokens(folder)))
    assert again == {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}


def test_the_settings_travel(tmp_path: Path) -> None:
    folder = trained(tmp_path / "original", "smollm")
    gguf_tokenizer.write(packed(folder, tmp_path / "model.gguf"), tmp_path / "rebuilt")
    one, other = tokenizer.read(folder), tokenizer.read(tmp_path / "rebuilt")
    assert other.special_tokens_map == one.special_tokens_map
    assert chat.template(tmp_path / "rebuilt") == "{{ messages[0]['content'] }}"
    said = json.loads((tmp_path / "rebuilt" / "tokenizer_config.json").read_text())
    assert said["model_input_names"] == ["input_ids", "attention_mask"]
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tmp_path / "rebuilt")
    assert plain("The fox")["input_ids"] == one("The fox")["input_ids"]
    assert set(plain("The fox")) == {"input_ids", "attention_mask"}


def test_what_ends_a_text(tmp_path: Path) -> None:
    file = packed(trained(tmp_path / "original", "gpt-2"), tmp_path / "model.gguf")
    assert gguf_tokenizer.ending_ids(file) == [2, 0]
    assert gguf_tokenizer.special_ids(file) == {"bos_token": 1, "eos_token": 2, "pad_token": 0}


# -- what is refused, in files


def altered(file: gguf_file.GgufFile, **changes: Any) -> gguf_file.GgufFile:
    said = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    kept = {key: value for key, value in {**file.metadata, **said}.items() if value is not None}
    return gguf_file.GgufFile(file.path, kept, file.tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "a SentencePiece tokenizer"),
        ({"model": "bert"}, "of the kind 'bert'"),
        ({"model": None}, "no tokenizer"),
        ({"pre": "tekken"}, "in the way 'tekken'; known are .*smollm"),
        ({"token_type": [1, 1]}, "list of tokens is not whole"),
        ({"tokens": None}, "list of tokens is not whole"),
        ({"merges": ["nothing here"]}, "merges do not fit"),
        ({"merges": ["alone"]}, "merges do not fit"),
        ({"merges": None}, "merges do not fit"),
        ({"eos_token_id": None, "bos_token_id": 10**6, "padding_token_id": None}, "no token that ends a text"),
    ],
)
def test_metadata_without_a_known_tokenizer(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = packed(trained(tmp_path / "original", "smollm"), tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=message) as caught:
        gguf_tokenizer.write(altered(file, **changes), tmp_path / "rebuilt")
    assert caught.value.remedy


# -- and in folders


def test_a_composing_normalizer_is_left_out(tmp_path: Path) -> None:
    folder = trained(tmp_path / "original", "qwen2", normalizer="NFC")
    assert packed(folder, tmp_path / "model.gguf").metadata["tokenizer.ggml.pre"] == "qwen2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "uses Lowercase"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
            "no name for how",
        ),
        ({"pre_tokenizer": None}, "BPE on characters"),
        ({"post_processor": ("<|im_end|> $A", 2)}, r"puts the tokens \[2\] around a text"),
    ],
)
def test_tokenizers_that_llama_cpp_does_not_have(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = trained(tmp_path / "original", "smollm")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if "post_processor" in changes:
        from tokenizers import processors

        single, index = changes["post_processor"]
        made = processors.TemplateProcessing(single=single, special_tokens=[(SPECIAL[2], index)])
        changes = {"post_processor": json.loads(made.__getstate__())}
    (folder / "tokenizer.json").write_text(json.dumps(content | changes), encoding="utf-8")
    with pytest.raises(ModelError, match=message) as caught:
        gguf_tokenizer.describe(folder, 1000)
    assert caught.value.remedy


def test_other_kinds_of_tokenizers(tmp_path: Path) -> None:
    folder = trained(tmp_path / "original", "smollm")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"type": "Unigram"}, "Unigram"),
        ({"dropout": 0.1}, "dropout"),
        ({"merges": []}, "nothing"),
    ):
        with pytest.raises(ModelError, match=message):
            gguf_tokenizer.way_named({**content, "model": {**content["model"], **change}}, where="x")


def test_more_tokens_than_the_model_has(tmp_path: Path) -> None:
    folder = trained(tmp_path / "original", "smollm")
    with pytest.raises(ModelError, match="the model embeddings for 10"):
        gguf_tokenizer.describe(folder, 10)


# -- the real one


@pytest.mark.real
def test_ids_of_the_real_model_on_300_000_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_file: Callable[..., LlamaFile]
) -> None:
    from edgeforge.fetchers.smollm2_135m import Smollm2135m
    from edgeforge.models.gguf import Gguf

    monkeypatch.setattr("edgeforge.models.gguf._cache", lambda: tmp_path / "cache")
    path = Smollm2135m(kind="smollm2_135m").fetch(tmp_path, say=lambda _: None)
    theirs = llama_file(path, vocabulary_only=True)
    reader = tokenizer.read(Gguf(path=str(path)).folder())
    counted = 0
    for name, text in texts(20_000):
        ids = reader(text)["input_ids"]
        assert ids == theirs.ids(text), name
        counted += len(ids)
    assert counted > 300_000
    assert (reader.bos_token, reader.eos_token, reader.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert reader("hi")["input_ids"] == [6004]
