"""The vocabulary through the prune stage: counts of the task's texts, files beside the weights, equal answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Input, Interface, Tokens
from edgeforge.criteria.random import Random
from edgeforge.models import loading, tokenizer
from edgeforge.stages.prune import Prune
from edgeforge.structures.vocabulary import BATCH, Vocabulary

TRAIN = ["the first mail", "a mail that was second"] * 3
UNLABELLED = ["another thing, never labelled"] * BATCH  # more than one batch
UNUSED = ["zebra crossing", "validation only"]


def a_tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    texts = [*TRAIN, *UNLABELLED, *(UNUSED * 9)]
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


class Texts:
    """What a task opens: its texts as the tokenizer in a folder reads them."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = tokenizer.read(folder)
        size = len(self.tokenizer)
        self.interface = Interface(
            inputs=tuple(
                Input(name, (16,), "int64", variable=True, fill=1) for name in ("input_ids", "attention_mask")
            ),
            output_name="logits",
            labels=("ham", "spam"),
            tokens=Tokens(size, 16, 0),
        )
        self.texts = {"transfer": [*TRAIN, *UNLABELLED], "validation": UNUSED}

    def size(self, split: str) -> int:
        return len(self.texts[split])

    def batch(self, split: str, indices: Sequence[int]) -> Mapping[str, torch.Tensor]:
        assert split == "transfer"
        texts = [self.texts[split][index] for index in indices]
        found = self.tokenizer(texts, padding=True, return_tensors="pt", truncation=True, max_length=16)
        return {name: found[name] for name in ("input_ids", "attention_mask")}


class Progress:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        assert 0 < done <= total

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The artifact of a BERT with its tokenizer."""
    made = a_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=made.get_vocab_size(),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        num_labels=2,
    )
    folder = tmp_path / "source"
    loading.save(BertForSequenceClassification(config), folder)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",'
        ' "tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    return folder


def job(source: Path | None, target: Path, folder: Path) -> Job:
    task: Any = SimpleNamespace(open=lambda model=None: Texts(model or folder))
    return Job(task, target, 0, lambda: pytest.fail("no device is needed"), Progress(), source)  # type: ignore[arg-type,return-value]


def prune(source: Path, target: Path, said: Mapping[str, Any]) -> Mapping[str, Any]:
    stage = Prune.model_validate({"kind": "prune", "structure": {"kind": "vocabulary", **said}})
    stage.check()
    artifact = Artifact("key", "train", "torch", source, "", {}, {}, {})
    return stage.run({"model": artifact}, job(source, target, source))


def answers(folder: Path, texts: Sequence[str]) -> torch.Tensor:
    """By the library alone."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return logits


def test_training_and_unlabelled_texts_are_answered_as_before(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    facts = prune(source, target, {})
    before, after = facts["removed"]["tokens"]
    assert after < before == loading.load(source).config.vocab_size
    assert loading.load(target).config.vocab_size == after == len(tokenizer.tokens(target))
    assert facts["removed"]["params"] == [facts["params"] + 8 * (before - after), facts["params"]]
    texts = [*TRAIN[:2], UNLABELLED[0]]
    assert (answers(target, texts) - answers(source, texts)).abs().max().item() == 0.0
    assert (answers(target, [*texts, "ünseen, words!"])[:3] - answers(source, texts)).abs().max() < 1e-6
    assert not {"zebra", "validation"} & set(tokenizer.tokens(target))
    assert tokenizer.read(target).tokenize("zebra") != ["zebra"] == tokenizer.read(source).tokenize("zebra")


def test_twice_is_once(source: Path, tmp_path: Path) -> None:
    prune(source, tmp_path / "once", {})
    facts = prune(tmp_path / "once", tmp_path / "twice", {})
    assert facts["removed"]["tokens"][0] == facts["removed"]["tokens"][1]
    assert (tmp_path / "once" / "tokenizer.json").read_bytes() == (tmp_path / "twice" / "tokenizer.json").read_bytes()


def test_less_can_be_asked_for(source: Path, tmp_path: Path) -> None:
    whole = prune(source, tmp_path / "whole", {})["removed"]["tokens"][1]
    assert prune(source, tmp_path / "less", {"max_size": whole - 4})["removed"]["tokens"][1] == whole - 4
    assert prune(source, tmp_path / "seen", {"characters": "seen"})["removed"]["tokens"][1] < whole
    with pytest.raises(ModelError, match="would lose special tokens"):
        prune(source, tmp_path / "none", {"max_size": 3})


def test_it_takes_no_criterion() -> None:
    stage = Prune.model_validate({"kind": "prune", "structure": "vocabulary"})
    assert stage.criterion is None
    with pytest.raises(IncompatiblePlanError, match="vocabulary asks how often tokens occur, not taylor"):
        Prune.model_validate({"kind": "prune", "structure": "vocabulary", "criterion": "taylor"}).check()


def test_a_rehearsal_changes_nothing_and_reads_no_text(source: Path, tmp_path: Path) -> None:
    model = loading.load(source)
    removed = Vocabulary().prune(model, Random(), job(None, tmp_path / "target", source))
    assert removed["tokens"] == [model.config.vocab_size] * 2
    assert not (tmp_path / "target").exists()


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(source: Path, tmp_path: Path) -> None:
    model = loading.load(source)
    model.resize_token_embeddings(20)
    with pytest.raises(ModelError, match="the model embeddings for 20"):
        Vocabulary().prune(model, Random(), job(source, tmp_path, source))
