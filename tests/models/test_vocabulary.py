"""Cut tokenizers split what they were cut for as before, split anything else somehow, and fit the cut model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from edgeforge.core.errors import ModelError
from edgeforge.models import tokenizer, vocabulary
from edgeforge.models.folder import read_json
from edgeforge.models.vocabulary import Cut

SYLLABLES = ("ban", "do", "ki", "lu", "mer", "no", "ra", "sti", "ta", "zu")
WORDS = [f"{a}{b}{c}" for a in SYLLABLES for b in SYLLABLES for c in ("", "s", "ing")]
CORPUS = [" ".join(WORDS[start : start + 7]) + ", ok!" for start in range(0, len(WORDS), 3)]
SPECIAL = {
    "wordpiece": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "bpe": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}
KINDS = sorted(SPECIAL)


def wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The mask comes last here, so that ids above it must close up.
    made.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL["wordpiece"][:4]))
    made.add_special_tokens(["[MASK]"])
    cls, sep = made.token_to_id("[CLS]"), made.token_to_id("[SEP]")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    made.decoder = decoders.WordPiece()
    return made


def bpe() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=SPECIAL["bpe"][:4],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    made.add_special_tokens(["<mask>"])
    made.post_processor = processors.RobertaProcessing(
        ("</s>", made.token_to_id("</s>")), ("<s>", made.token_to_id("<s>"))
    )
    made.decoder = decoders.ByteLevel()
    return made


def written(made: Tokenizer, kind: str, folder: Path) -> Path:
    """All the files that a published model has."""
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    words = made.get_vocab(with_added_tokens=False)
    in_order = sorted(words, key=words.__getitem__)
    special = SPECIAL[kind]
    names = ["pad_token", "unk_token", "cls_token", "sep_token", "mask_token"]
    if kind == "bpe":
        names = ["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"]
        model = json.loads(made.to_str())["model"]
        pairs = [" ".join(pair) for pair in model["merges"]]
        (folder / "vocab.json").write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    else:
        (folder / "vocab.txt").write_text("\n".join([*in_order, ""]), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(dict(zip(names, special, strict=True))))
    decoder = {str(made.token_to_id(token)): {"content": token, "special": True} for token in special}
    settings_ = {**dict(zip(names, special, strict=True)), "added_tokens_decoder": decoder, "model_max_length": 99}
    settings_["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: written({"wordpiece": wordpiece, "bpe": bpe}[kind](), kind, root / kind) for kind in KINDS}


def load(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def counts_of(folder: Path, texts: Sequence[str]) -> np.ndarray:
    made = load(folder)
    counts = np.zeros(made.get_vocab_size(), dtype=np.int64)
    for text in texts:
        np.add.at(counts, made.encode(text).ids, 1)
    return counts


def cut(folder: Path, target: Path, texts: Sequence[str], **said: Any) -> Cut:
    chosen: dict[str, Any] = {"max_size": None, "characters": "all", **said}
    made = vocabulary.choose(folder, counts_of(folder, texts), (), **chosen)
    vocabulary.write(folder, target, made)
    return made


# -- the property


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(KINDS), characters=st.sampled_from(["all", "seen"]))
def test_the_texts_are_split_as_before_and_others_somehow(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, data: Any, kind: str, characters: str
) -> None:
    texts = data.draw(
        st.lists(st.one_of(st.sampled_from(CORPUS), st.text("bandokilumer xé!", max_size=20)), max_size=8)
    )
    target = tmp_path_factory.mktemp("cut")
    made = cut(folders[kind], target, texts, characters=characters)
    old, new = load(folders[kind]), load(target)
    for text in texts:
        was, now = old.encode(text), new.encode(text)
        assert now.tokens == was.tokens
        assert [made.kept[index] for index in now.ids] == was.ids
    unseen = data.draw(st.text(max_size=30))
    ids = new.encode(unseen).ids
    assert all(0 <= index < len(made.kept) for index in ids)
    if kind == "bpe":
        assert new.decode(ids) == old.decode(old.encode(unseen).ids)
    assert {load(target).id_to_token(index) for index in range(len(made.kept))} >= set(SPECIAL[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_used_and_needed_stays(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    texts = [CORPUS[0]]
    made = cut(folders[kind], tmp_path, texts)
    old = load(folders[kind])
    held = {token for text in texts for token in old.encode(text).tokens}
    kept = {old.id_to_token(index) for index in made.kept}
    assert held | set(SPECIAL[kind]) <= kept
    single = {token for token in old.get_vocab() if len(token.removeprefix("##")) == 1}
    assert single <= kept
    others = kept - held - single - set(SPECIAL[kind])
    # What else there is are the steps by which pairs become the longer tokens that are used.
    assert kind == "bpe" or not others
    assert all(any(token in longer for longer in held) for token in others)
    assert made.used == len(held - set(SPECIAL[kind]))
    assert len(kept) < old.get_vocab_size() / 1.5
    assert list(made.kept) == sorted(made.kept)


def test_merges_that_are_gone_are_gone_and_the_others_keep_their_order(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    cut(folders["bpe"], tmp_path, CORPUS[:2])
    old, new = (read_json(folder / "tokenizer.json")["model"] for folder in (folders["bpe"], tmp_path))
    assert 0 < len(new["merges"]) < len(old["merges"])
    assert [merge for merge in old["merges"] if merge in new["merges"]] == new["merges"]
    for left, right in new["merges"]:
        assert {left, right, left + right} <= new["vocab"].keys()
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["#version: 0.2", *(f"{left} {right}" for left, right in new["merges"])]


def test_merges_written_as_one_text_each(folders: dict[str, Path], tmp_path: Path) -> None:
    """As tokenizers before 0.20 wrote them."""
    content = read_json(folders["bpe"] / "tokenizer.json")
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]
    old = tmp_path / "old"
    old.mkdir()
    (old / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (old / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>"}))
    cut(old, tmp_path / "new", CORPUS[:2])
    assert load(tmp_path / "new").encode(CORPUS[1]).tokens == load(old).encode(CORPUS[1]).tokens
    assert all(isinstance(merge, str) for merge in read_json(tmp_path / "new" / "tokenizer.json")["model"]["merges"])


# -- every file says the same


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_agree(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    made = cut(folders[kind], tmp_path, CORPUS[:5])
    new = load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in folders[kind].iterdir())
    ids = new.get_vocab()
    assert sorted(ids.values()) == list(range(len(made.kept)))
    settings_ = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert {token["content"]: int(index) for index, token in settings_["added_tokens_decoder"].items()} == {
        token: ids[token] for token in SPECIAL[kind]
    }
    assert settings_["model_max_length"] == 99
    if kind == "wordpiece":
        assert (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines() == sorted(
            new.get_vocab(with_added_tokens=False), key=ids.__getitem__
        )
    else:
        assert json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == new.get_vocab(
            with_added_tokens=False
        )
    assert tokenizer.read(tmp_path).all_special_tokens == tokenizer.read(folders[kind]).all_special_tokens
    assert tokenizer.translation(tmp_path, folders[kind]).tolist() == list(made.kept)  # type: ignore[union-attr]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert auto(CORPUS[3])["input_ids"] == new.encode(CORPUS[3]).ids


@pytest.mark.skipif(not transformers.__version__.startswith("4."), reason="version 5 has no tokenizers of its own")
@pytest.mark.parametrize("kind", KINDS)
def test_programs_that_read_only_the_older_files_split_alike(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """transformers' own tokenizers in Python share no code with the library that made the files."""
    cut(folders[kind], tmp_path, CORPUS[:5])
    if kind == "wordpiece":
        own: Any = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    else:
        own = transformers.RobertaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in (*CORPUS[:5], CORPUS[30], "Doki unseen words"):
        assert own.tokenize(text) == load(tmp_path).encode(text, add_special_tokens=False).tokens


def test_ids_inside_padding_and_processors_follow(folders: dict[str, Path], tmp_path: Path) -> None:
    content = read_json(folders["wordpiece"] / "tokenizer.json")
    content["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": max(content["model"]["vocab"].values()),  # a word, and not a special token
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    mask = next(token["id"] for token in content["added_tokens"] if token["content"] == "[MASK]")
    content["post_processor"] = {
        "type": "Sequence",
        "processors": [{"type": "BertProcessing", "sep": ["[MASK]", mask], "cls": ["[CLS]", 2]}],
    }
    old = tmp_path / "old"
    old.mkdir()
    (old / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (old / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    made = cut(old, tmp_path / "new", [])
    encoded = load(tmp_path / "new").encode_batch([CORPUS[0], "do"])
    assert encoded[0].tokens[-1] == "[MASK]"
    assert encoded[0].ids[-1] == len(made.kept) - 1 < mask
    assert encoded[1].ids[-1] == made.new_ids[max(content["model"]["vocab"].values())]


# -- how much stays


def test_the_most_frequent_stay_where_there_is_a_limit(folders: dict[str, Path], tmp_path: Path) -> None:
    texts = ["bando bando bando bando", "bandos bandos", "kiluing"]
    old = load(folders["wordpiece"])
    by_count = counts_of(folders["wordpiece"], texts)
    least = cut(folders["wordpiece"], tmp_path / "least", [])
    whole = cut(folders["wordpiece"], tmp_path / "whole", texts)
    for size in range(len(least.kept), len(whole.kept) + 1):
        made = vocabulary.choose(folders["wordpiece"], by_count, (), max_size=size, characters="all")
        assert len(made.kept) == size
        chosen = set(made.kept) - set(least.kept)
        left = set(whole.kept) - set(made.kept)
        assert min((by_count[index] for index in chosen), default=9) >= max((by_count[i] for i in left), default=0)
        vocabulary.write(folders["wordpiece"], tmp_path / str(size), made)
        for text in texts:  # split further, never unknown
            tokens = load(tmp_path / str(size)).encode(text, add_special_tokens=False).tokens
            assert "".join(token.removeprefix("##") for token in tokens) == text.replace(" ", "")
    assert old.encode("bando").tokens == load(tmp_path / "whole").encode("bando").tokens


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(extra=st.integers(0, 80))
def test_a_limit_on_merged_tokens_counts_their_steps(folders: dict[str, Path], extra: int) -> None:
    counts = counts_of(folders["bpe"], CORPUS[:20])
    least = len(vocabulary.choose(folders["bpe"], counts * 0, (), max_size=None, characters="all").kept)
    made = vocabulary.choose(folders["bpe"], counts, (), max_size=least + extra, characters="all")
    assert least <= len(made.kept) <= least + extra


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_that_would_lose_special_tokens_is_refused(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    least = len(cut(folders[kind], tmp_path, []).kept)
    with pytest.raises(ModelError, match=rf"a vocabulary of 4 would lose special tokens.*: 5 and {least - 5} of them"):
        cut(folders[kind], tmp_path / "a", CORPUS, max_size=4)
    with pytest.raises(ModelError, match=f"at least {least}"):
        cut(folders[kind], tmp_path / "b", CORPUS, max_size=least - 1)


def test_special_tokens_are_found_wherever_they_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """In the configuration beside it, as the unknown token, in the post-processor, or by the model."""
    content = read_json(folders["wordpiece"] / "tokenizer.json")
    words = content["model"]["vocab"]
    long = [token for token in words if len(token) > 4 and not token.startswith("[")]
    content["added_tokens"] = []
    content["model"]["unk_token"] = long[0]
    content["post_processor"]["special_tokens"]["[SEP]"] = {"id": "[SEP]", "ids": [words[long[1]]], "tokens": [long[1]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": long[2]}))
    counts = np.zeros(len(words) + 1, dtype=np.int64)
    made = vocabulary.choose(tmp_path, counts, [words[long[3]]], max_size=None, characters="seen")
    assert set(made.kept) == {words[token] for token in (*long[:4], "[CLS]")}


def test_characters_that_no_text_holds_may_go(folders: dict[str, Path], tmp_path: Path) -> None:
    made = cut(folders["wordpiece"], tmp_path, ["bando"], characters="seen")
    kept = {load(folders["wordpiece"]).id_to_token(index) for index in made.kept} - set(SPECIAL["wordpiece"])
    assert {token.removeprefix("##") for token in kept if len(token.removeprefix("##")) == 1} == set("bando")
    tokens = load(tmp_path).encode("bando kilu dona", add_special_tokens=False).tokens
    assert tokens[0] == load(folders["wordpiece"]).encode("bando", add_special_tokens=False).tokens[0]
    assert "[UNK]" in tokens  # kilu


# -- what cannot be cut


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.update(type="Unigram"), "a Unigram vocabulary cannot be cut"),
        (lambda model: model.update(type="WordLevel"), "a WordLevel vocabulary cannot be cut"),
        (lambda model: model.update(unk_token="nowhere"), "no token for unknown words"),
    ],
)
def test_other_vocabularies_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    content = read_json(folders["wordpiece"] / "tokenizer.json")
    change(content["model"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        vocabulary.choose(tmp_path, np.ones(300, dtype=np.int64), (), max_size=None, characters="all")


def test_sentencepiece_is_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folders["bpe"] / "tokenizer.json").read_bytes())
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ModelError, match="a SentencePiece vocabulary cannot be cut"):
        vocabulary.choose(tmp_path, np.ones(600, dtype=np.int64), (), max_size=None, characters="all")


# -- the model


def classifier(family: str, folder: Path) -> transformers.PreTrainedModel:
    names = {"bert": "Bert", "distilbert": "DistilBert", "electra": "Electra", "roberta": "Roberta"}
    own = tokenizer.read(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if family == "distilbert":
        sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}
    config = getattr(transformers, f"{names[family]}Config")(
        **sizes,
        vocab_size=len(own) + 3,  # more rows than tokens, as some models have
        max_position_embeddings=60,
        pad_token_id=own.pad_token_id,
        eos_token_id=own.mask_token_id,
    )
    torch.manual_seed(0)
    made: transformers.PreTrainedModel = getattr(transformers, f"{names[family]}ForSequenceClassification")(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", "wordpiece"), ("distilbert", "wordpiece"), ("electra", "wordpiece"), ("roberta", "bpe")],
)
def test_the_cut_model_answers_the_new_ids_as_the_old_one_the_old(
    family: str, kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = classifier(family, folders[kind])
    old = tokenizer.read(folders[kind])(CORPUS[:4], padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        wanted = model(**old).logits
    counts = counts_of(folders[kind], CORPUS[:4])
    made = vocabulary.choose(folders[kind], counts, vocabulary.fixed_ids(model), max_size=None, characters="all")
    vocabulary.write(folders[kind], tmp_path, made)
    vocabulary.shrink(model, made)
    new = tokenizer.read(tmp_path)(CORPUS[:4], padding=True, return_tensors="pt", return_token_type_ids=False)
    assert not torch.equal(new["input_ids"], old["input_ids"])
    with torch.no_grad():
        assert (model(**new).logits - wanted).abs().max().item() == 0.0
    own = tokenizer.read(tmp_path)
    assert model.config.vocab_size == len(made.kept) == model.get_input_embeddings().num_embeddings
    assert model.config.pad_token_id == own.pad_token_id == model.get_input_embeddings().padding_idx
    assert model.config.eos_token_id == own.mask_token_id
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert (type(model).from_pretrained(tmp_path).eval()(**new).logits - wanted).abs().max().item() == 0.0


def test_roberta_keeps_all_ids_up_to_the_padding(folders: dict[str, Path]) -> None:
    """Its positions are counted from that id."""
    model = classifier("roberta", folders["bpe"])
    model.config.pad_token_id = 9
    model.roberta.embeddings.position_embeddings.padding_idx = 9
    assert vocabulary.fixed_ids(model) >= set(range(10))
    assert 8 not in vocabulary.fixed_ids(classifier("bert", folders["wordpiece"]))


def test_only_classifiers_of_tokens_have_a_vocabulary_to_cut(tiny_model: Any, folders: dict[str, Path]) -> None:
    for family, name in (("vit", "ViT"), ("resnet", "ResNet")):
        with pytest.raises(ModelError, match=f"a {name}ForImageClassification reads no tokens"):
            vocabulary.check_model(tiny_model(family))
    config = classifier("bert", folders["wordpiece"]).config
    with pytest.raises(ModelError, match="a BertForMaskedLM writes tokens too"):
        vocabulary.check_model(transformers.BertForMaskedLM(config))
