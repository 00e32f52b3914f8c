"""Byte-level vocabularies of decoders: every text can still be written, and the cut model answers as the whole one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from edgeforge.core.errors import ModelError
from edgeforge.models import loading, tokenizer, vocabulary
from edgeforge.models.vocabulary import Cut

TEXTS = ["The whale is grey.", "The fox ran 12 miles to the forest."]
OTHERS = [
    f"A {colour} {animal} was in a {place}, yellow as wheat; nobody could remember why or when it wandered there."
    for colour in ("yellow", "brown", "orange")
    for animal in ("raven", "lion", "mouse", "whale")
    for place in ("garden", "harbour", "forest", "café")
]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # tied, untied, untied, tied


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer like SmolLM2's with 352 tokens, in all the files that a published model has."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, *OTHERS], trainer)
    assert made.get_vocab_size() == 352
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    reader = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    reader.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(content["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{left} {right}\n" for left, right in content["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    return folder


def load(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def counts_of(folder: Path, texts: Sequence[str], size: int = 352) -> np.ndarray:
    counts = np.zeros(size, dtype=np.int64)
    for text in texts:
        np.add.at(counts, load(folder).encode(text).ids, 1)
    return counts


def cut(folder: Path, target: Path, texts: Sequence[str], fixed: Sequence[int] = (), **said: Any) -> Cut:
    chosen: dict[str, Any] = {"max_size": None, "characters": "all", **said}
    made = vocabulary.choose(folder, counts_of(folder, texts), fixed, **chosen)
    vocabulary.write(folder, target, made)
    return made


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(unseen=st.text(max_size=60), max_size=st.sampled_from([None, 290]))
def test_every_text_can_be_written(source: Path, tmp_path: Path, unseen: str, max_size: int | None) -> None:
    target = tmp_path / str(max_size)
    if not target.exists():
        cut(source, target, TEXTS, max_size=max_size)
    old, new = load(source), load(target)
    assert new.decode(new.encode(unseen).ids) == old.decode(old.encode(unseen).ids)
    if max_size is None:
        for text in TEXTS:
            assert new.encode(text).tokens == old.encode(text).tokens


def test_what_must_stay_does(source: Path, tmp_path: Path) -> None:
    made = cut(source, tmp_path, TEXTS)
    kept = set(load(tmp_path).get_vocab())
    assert set(ByteLevel.alphabet()) | {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} <= kept
    assert 256 < len(made.kept) < 352
    assert len(kept) == len(made.kept)


def test_merges_agree_in_all_files(source: Path, tmp_path: Path) -> None:
    cut(source, tmp_path, TEXTS)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    before = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert [merge for merge in before if merge in model["merges"]] == model["merges"] != before
    for left, right in model["merges"]:
        assert {left, right, left + right} <= model["vocab"].keys()
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert lines == [f"{left} {right}" for left, right in model["merges"]]
    assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == model["vocab"]


@pytest.mark.parametrize("inside", [True, False])
def test_the_chat_template_is_written_as_before(source: Path, tmp_path: Path, inside: bool) -> None:
    """From its own file, or from within the configuration; quoted or bare."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    template = (
        "{% if messages[0]['role'] != 'system' %}{{ 'whale forest\\n' }}{% endif %}miles{{ messages[0]['content'] }}"
    )
    if inside:
        settings_ = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings_["chat_template"] = template
        (folder / "tokenizer_config.json").write_text(json.dumps(settings_), encoding="utf-8")
    else:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    cut(folder, tmp_path / "new", [])
    old, new = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tmp_path / "new")
    message = [{"role": "user", "content": "x"}]
    for text in ("whale forest\n", "miles", "system"):
        assert new.tokenize(text) == old.tokenize(text), text
    assert len(new.tokenize("grey yellow")) > len(old.tokenize("grey yellow"))
    said = [one.apply_chat_template(message, tokenize=False) for one in (old, new)]
    assert said[0] == said[1] == "whale forest\nmilesx"
    tokens = [one.convert_ids_to_tokens(one.apply_chat_template(message, return_dict=False)) for one in (old, new)]
    assert tokens[0] == tokens[1]


def test_a_template_that_is_none_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ 'never closed }}", encoding="utf-8")
    with pytest.raises(ModelError, match="no Jinja template"):
        cut(tmp_path, tmp_path / "new", [])


def test_less_than_bytes_and_special_tokens_is_refused(source: Path, tmp_path: Path) -> None:
    least = len(cut(source, tmp_path / "least", []).kept)
    assert least >= 259
    for size in (1, 256, least - 1):
        with pytest.raises(ModelError, match=rf"a vocabulary of {size} would lose(.|\n)*at least {least}"):
            cut(source, tmp_path / "none", TEXTS, max_size=size)
    assert len(cut(source, tmp_path / "some", TEXTS, max_size=least + 5).kept) <= least + 5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_model_answers_as_the_whole_one(
    family: str, source: Path, tmp_path: Path, tiny_lm: Callable[[str], PreTrainedModel]
) -> None:
    model = tiny_lm(family)
    writing = model.generation_config
    writing.eos_token_id = [0, 2]
    counts = counts_of(source, TEXTS[:1])
    long = sorted(index for token, index in load(source).get_vocab().items() if len(token) > 3 and not counts[index])
    long = long[-2:]  # no step on the way to another token
    writing.suppress_tokens, writing.bad_words_ids = [long[0], 5], [[long[1], 5], [5, 6]]
    whole = copy.deepcopy(model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied is model.config.tie_word_embeddings is (family in ("llama", "qwen3"))
    made = vocabulary.choose(source, counts, vocabulary.fixed_ids(model), max_size=None, characters="all")
    vocabulary.write(source, tmp_path, made)
    vocabulary.shrink(model, made)
    loading.save(model, tmp_path)
    assert not (tmp_path / "shapes.json").exists()

    readers = [AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path)]
    old, new = (one(TEXTS[:1], return_tensors="pt", return_token_type_ids=False) for one in readers)
    assert not torch.equal(old["input_ids"], new["input_ids"])
    with torch.no_grad():
        wanted = whole(**old).logits[..., list(made.kept)]
    for one in (model, loading.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()):
        with torch.no_grad():
            torch.testing.assert_close(one(**new).logits, wanted, rtol=0, atol=1e-6)
        words, head = one.get_input_embeddings(), one.get_output_embeddings()
        assert (head.weight is words.weight) is tied
        assert one.config.vocab_size == len(made.kept) == words.num_embeddings == head.out_features
        assert (one.config.bos_token_id, one.config.eos_token_id, one.config.pad_token_id) == (1, 2, 2)
        assert one.generation_config.eos_token_id == [0, 2]
        assert one.generation_config.suppress_tokens == [made.new_ids[5]]
        assert one.generation_config.bad_words_ids == [[made.new_ids[5], made.new_ids[6]]]
        said = one.generate(**new, max_new_tokens=5, do_sample=False)
        assert said.shape[1] > new["input_ids"].shape[1]


def test_special_ids_move_with_their_tokens(
    source: Path, tmp_path: Path, tiny_lm: Callable[[str], PreTrainedModel]
) -> None:
    """Where they come last, as in Qwen's and Llama 3's vocabularies, and the table has rows behind them."""
    folder = tmp_path / "source"
    folder.mkdir()
    made = load(source)
    made.add_special_tokens(["<|turn|>"])
    made.add_tokens(["<think>"])
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    turn = made.token_to_id("<|turn|>")
    assert turn == 352
    model = tiny_lm("llama")
    model.resize_token_embeddings(384)
    model.config.eos_token_id = model.generation_config.eos_token_id = turn
    counts = counts_of(folder, ["<think> fox"], 384)
    cut_ = vocabulary.choose(folder, counts, vocabulary.fixed_ids(model), max_size=None, characters="all")
    vocabulary.write(folder, tmp_path / "new", cut_)
    vocabulary.shrink(model, cut_)
    new = load(tmp_path / "new")
    assert new.get_vocab_size() == len(cut_.kept) == model.config.vocab_size < 352
    assert new.token_to_id("<|turn|>") == model.config.eos_token_id == model.generation_config.eos_token_id
    assert new.encode("<think> fox").tokens == made.encode("<think> fox").tokens
    assert tokenizer.translation(tmp_path / "new", folder).tolist() == list(cut_.kept)  # type: ignore[union-attr]


def test_a_decoder_that_classifies_has_no_head_to_cut(source: Path, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    model = LlamaForSequenceClassification(tiny_lm("llama").config)
    cut_ = vocabulary.choose(
        source, counts_of(source, TEXTS), vocabulary.fixed_ids(model), max_size=None, characters="all"
    )
    vocabulary.shrink(model, cut_)
    assert model.get_input_embeddings().num_embeddings == len(cut_.kept) == model.config.vocab_size
