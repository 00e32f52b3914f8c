"""What benchmarks/loss_cost trains: for each of two tasks a teacher, its kept answers, a student, and the losses."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.stage import Job
from edgeforge.core.task import Task
from edgeforge.data.jsonl import Jsonl
from edgeforge.models import loading
from edgeforge.models.config import Config
from edgeforge.stages.cache import Cache
from edgeforge.stages.distill import Distill
from edgeforge.students import Student
from edgeforge.students.layers import Layers
from edgeforge.students.width import Width
from edgeforge.tasks.image_classification import ImageClassification
from edgeforge.tasks.text_classification import TextClassification
from edgeforge.teachers import LOGITS, TEACHER

CACHED = "soft_targets, cached"
ON_LOGITS = ("soft_targets", "hard_labels", "decoupled", "dist", "reverse_kl", "jensen_shannon")
ON_LAYERS = ("hidden_states", "attention_transfer", "contrastive")
ON_TOKENS = ("cosine_embedding", "attention_maps", "value_relations")
WORDS, TEXTS, LENGTH = 2000, 600, 128


class Silent:
    """Progress that says nothing."""

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


@dataclass(frozen=True)
class Subject:
    """A task with its teacher and student; `folder` has the models and the kept answers once they are prepared."""

    folder: Path
    task: Task
    shape: Mapping[str, Any]
    student: Student
    batch_size: int
    rows: tuple[str, ...]

    def prepare(self) -> None:
        """Write teacher, student and the teacher's answers."""
        torch.manual_seed(0)
        data = self.task.open()
        teacher = Config.model_validate({"kind": "config", **self.shape}).build(self.task, data.interface)
        loading.save(teacher, self.folder / TEACHER)
        data.write_reader(self.folder / TEACHER)
        student = self.student.build(teacher, self.task, data.interface)
        loading.save(student, self.folder / "student", tokenizer_from=self.folder / TEACHER)
        (self.folder / LOGITS).mkdir()
        Cache().run({"model": _artifact(self.folder / TEACHER)}, self.job(self.folder / LOGITS))

    def job(self, folder: Path) -> Job:
        """What a stage that works in `folder` is given."""
        return Job(self.task, folder, 0, functools.cache(Accelerator), Silent(), model=self.folder / TEACHER)

    def inputs(self) -> dict[str, Artifact]:
        """What teachers read."""
        return {role: _artifact(self.folder / role) for role in (TEACHER, LOGITS)}

    def stage(self, row: str, steps: int) -> Distill:
        """The row as a pipeline would say it."""
        loss, _, teacher = row.partition(", ")
        said = {"kind": "distill", "losses": [loss], "steps": steps, "batch_size": self.batch_size, "warmup": 0}
        return Distill.model_validate({**said, "student": self.student, "teacher": teacher or "model"})


def images(folder: Path) -> Subject:
    """Digits of 32 x 32 pixels; a ResNet of 2.2 M parameters teaches one of half its width."""
    shape = {"embedding_size": 48, "hidden_sizes": [48, 96, 240], "depths": [2, 2, 2], "layer_type": "basic"}
    return Subject(
        folder,
        ImageClassification(image_size=32),
        {"architecture": "resnet", **shape},
        Width(multiple=0.5),
        batch_size=32,
        rows=(*ON_LOGITS, *ON_LAYERS, CACHED),
    )


def texts(folder: Path) -> Subject:
    """Made-up texts of 128 tokens; a BERT of 6 layers and width 192 teaches one of every second layer."""
    if not (folder / "train.jsonl").exists():
        _write_texts(folder)
    data = Jsonl(train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"))
    shape = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768}
    return Subject(
        folder,
        TextClassification(data=data, tokenizer=str(folder / "tokenizer"), max_length=LENGTH),
        {"architecture": "bert", **shape},
        Layers(every=2),
        batch_size=16,  # for less, losses on logits ask a teacher about 16 all the same
        rows=(*ON_LOGITS, *ON_LAYERS, *ON_TOKENS, CACHED),
    )


SUBJECTS = {"images": images, "texts": texts}


def _artifact(folder: Path) -> Artifact:
    files = hash_folder(folder)
    return Artifact(folder.name, "", "torch", folder, digest_files(files), files, {}, {})


def _write_texts(folder: Path) -> None:
    """Every text is longer than the task reads; the label is whether its first word is an even one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    chance = random.Random(0)
    for part in ("train", "test"):
        found = []
        for _ in range(TEXTS):
            numbers = chance.choices(range(WORDS), k=LENGTH)
            text = " ".join(f"w{number}" for number in numbers)
            found.append(json.dumps({"text": text, "label": ("odd", "even")[numbers[0] % 2]}))
        (folder / f"{part}.jsonl").write_text("\n".join(found) + "\n", encoding="utf-8")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: number for number, word in enumerate([*special, *(f"w{number}" for number in range(WORDS))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder / "tokenizer")
