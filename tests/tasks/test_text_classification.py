"""The text classification task: batches, splits, tokenizers, metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from edgeforge.architectures import Architecture
from edgeforge.core.errors import ConfigurationError, DataError, ModelError
from edgeforge.core.kinds import discover
from edgeforge.core.task import NO_LABEL
from edgeforge.data.jsonl import Jsonl
from edgeforge.data.sklearn_digits import SklearnDigits
from edgeforge.models import tokenizer
from edgeforge.models.pretrained import Pretrained
from edgeforge.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from tests.conftest import Mails

LABELS = ["ham", "spam"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_batch_is_what_the_tokenizer_of_transformers_makes(mails: Mails) -> None:
    texts = [line["text"] for line in lines(mails.root / "test.jsonl")]
    reference = AutoTokenizer.from_pretrained(mails.root / "tokenizer")
    wanted = reference(
        [texts[index] for index in (5, 0, 17)], truncation=True, max_length=16, padding=True, return_tensors="pt"
    )
    batch = mails.data.batch("test", [5, 0, 17])
    assert torch.equal(batch["input_ids"], wanted["input_ids"])
    assert torch.equal(batch["attention_mask"], wanted["attention_mask"])
    assert batch["labels"].tolist() == [1, 0, 1]
    assert batch["rows"].tolist() == [5, 0, 17]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_a_batch_is_as_long_as_its_longest_text(mails: Mails) -> None:
    lengths = [mails.data.batch("test", [index])["input_ids"].shape[1] for index in range(mails.data.size("test"))]
    assert max(lengths) == 16 > min(lengths)
    together = mails.data.batch("test", range(mails.data.size("test")))
    assert together["attention_mask"].sum(1).tolist() == lengths
    assert (together["input_ids"][together["attention_mask"] == 0] == 0).all()


def test_what_a_file_promises(mails: Mails) -> None:
    interface = mails.data.interface
    assert [(value.name, value.shape, value.dtype, value.variable) for value in interface.inputs] == [
        ("input_ids", (16,), "int64", True),
        ("attention_mask", (16,), "int64", True),
    ]
    assert interface.labels == ("ham", "spam")
    assert interface.text.vocabulary_size == len(tokenizer.tokens(mails.root / "tokenizer"))
    with pytest.raises(ModelError, match="takes images, and the task's data are texts"):
        assert interface.image_shape


def test_splits(mails: Mails) -> None:
    sizes = {split: mails.data.size(split) for split in ("train", "validation", "test", "transfer")}
    assert sizes == {"train": 234, "validation": 26, "test": 80, "transfer": 234 + 40}
    taught = mails.data.batch("transfer", range(274))["labels"]
    assert (taught == NO_LABEL).sum() == 40
    assert set(mails.data.batch("train", range(234))["labels"].tolist()) == {0, 1}
    kept = mails.data.batch("validation", range(26))["input_ids"]
    assert kept.shape[0] == 26


def test_few_labels(mails: Mails) -> None:
    data = mails.task.model_copy(update={"labelled": 20}).open()
    assert (data.size("train"), data.size("validation"), data.size("transfer")) == (20, 26, 274)
    labels = data.batch("train", range(20))["labels"].numpy()
    assert np.bincount(labels).tolist() == [10, 10]
    assert (data.batch("transfer", range(274))["labels"] != NO_LABEL).sum() == 20
    with pytest.raises(DataError, match="only 234 training texts have a label"):
        mails.task.model_copy(update={"labelled": 235}).open()


def test_metrics_are_scikit_learns(mails: Mails) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 2, generator=generator), torch.randint(0, 2, (200,), generator=generator)
    found = mails.task.metrics(logits, labels)
    predicted = logits.argmax(1)
    assert next(iter(found)) == "macro_f1"
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef(labels, predicted))
    assert found["accuracy"] == pytest.approx((predicted == labels).double().mean().item())
    assert found["per_class_accuracy"]["spam"] == pytest.approx((predicted[labels == 1] == 1).double().mean().item())
    with pytest.raises(ModelError, match="answers for 3 labels and the data has 2"):
        mails.task.metrics(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))


def test_a_model_is_read_with_its_own_tokenizer(mails: Mails, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(mails.root / "tokenizer", folder)
    content = json.loads((folder / tokenizer.MAIN).read_text(encoding="utf-8"))
    words = [word for word in content["model"]["vocab"] if word != "prize"]
    content["model"]["vocab"] = {word: index for index, word in enumerate(words)}
    (folder / tokenizer.MAIN).write_text(json.dumps(content), encoding="utf-8")
    own = mails.task.open(folder)
    assert own.interface.text.vocabulary_size == mails.data.interface.text.vocabulary_size - 1
    batch = own.batch("test", range(8))
    translated = own.for_model(mails.root / "tokenizer")(batch)
    reader = tokenizer.read(mails.root / "tokenizer")
    assert reader.batch_decode(translated["input_ids"]) == tokenizer.read(folder).batch_decode(batch["input_ids"])
    assert mails.data.for_model(mails.root / "tokenizer")(batch) is batch
    with pytest.raises(ModelError, match="different tokenizers"):
        mails.data.for_model(folder)


def test_where_the_tokenizer_comes_from(mails: Mails, tmp_path: Path) -> None:
    alone = mails.task.model_copy(update={"tokenizer": None})
    with pytest.raises(ModelError, match=r"brings no tokenizer(.|\n)*hub id"):
        alone.open()
    with pytest.raises(ModelError, match="brings no tokenizer"):
        alone.completed(tmp_path).digest()
    with pytest.raises(ModelError, match=r"no folder .*gone/tokenizer, and '\./gone/tokenizer' is no hub id"):
        alone.model_copy(update={"tokenizer": "./gone/tokenizer"}).digest()
    completed = alone.completed(mails.root / "tokenizer")
    assert completed.digest() == mails.task.digest()
    assert mails.task.completed(tmp_path) == mails.task
    data = completed.open()
    data.write_reader(tmp_path)
    assert tokenizer.digest(tmp_path) == tokenizer.digest(mails.root / "tokenizer")


def test_the_digest_covers_texts_tokenizer_and_choices(mails: Mails, tmp_path: Path) -> None:
    before = mails.task.digest()
    assert mails.task.model_copy(update={"max_length": 17}).digest() != before
    assert mails.task.model_copy(update={"labelled": 20}).digest() != before
    moved = tmp_path / "elsewhere"
    shutil.copytree(mails.root / "tokenizer", moved)
    assert mails.task.model_copy(update={"tokenizer": str(moved)}).digest() == before
    content = (moved / tokenizer.MAIN).read_text(encoding="utf-8").replace('"lowercase": true', '"lowercase": false')
    (moved / tokenizer.MAIN).write_text(content, encoding="utf-8")
    assert mails.task.model_copy(update={"tokenizer": str(moved)}).digest() != before
    other = Jsonl(train=str(mails.root / "test.jsonl"), test=str(mails.root / "train.jsonl"))
    assert mails.task.model_copy(update={"data": other}).digest() != before


@pytest.mark.parametrize("asked", ["digest", "open"])
def test_images_are_refused_when_a_run_is_planned_and_when_it_begins(mails: Mails, asked: str) -> None:
    task = TextClassification(data=SklearnDigits(), tokenizer=str(mails.root / "tokenizer"))
    with pytest.raises(ConfigurationError, match="images"):
        getattr(task, asked)()


@pytest.mark.parametrize(("family", "rows", "most"), [("bert", 12, 12), ("roberta", 12, 11), ("distilbert", 12, 12)])
def test_texts_longer_than_a_model_reads(mails: Mails, tmp_path: Path, family: str, rows: int, most: int) -> None:
    """The limit that is named is the model's: there it works."""
    cls = discover("edgeforge.architectures", Architecture)[family]
    spec = cls.model_validate({"kind": family, **mails.tiny[family], "max_position_embeddings": rows})
    config = spec.config(mails.task.model_copy(update={"max_length": 4}).open().interface)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "short")
    model = Pretrained(path=str(tmp_path / "short"))
    with pytest.raises(ModelError, match=rf"reads up to {most} tokens, and the task's texts have up to 16") as caught:
        model.build(mails.task, mails.data.interface)
    assert f"`max_length` to {most} or less" in str(caught.value)
    fitting = mails.task.model_copy(update={"max_length": most})
    model.build(fitting, fitting.open().interface)
