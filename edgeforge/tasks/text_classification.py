"""Text classification: one label per text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.errors import DataError
from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import digest_of
from edgeforge.core.task import NO_LABEL, Batch, Input, Interface, Places, Samples, Split, Tokens
from edgeforge.data import DataSource, LabelledTexts, _probe
from edgeforge.models import tokenizer
from edgeforge.tasks._classification import (
    Classification,
    calibration_error,
    check_label_count,
    per_class_accuracy,
    stratified_split,
)

if TYPE_CHECKING:
    import torch

OPENED_AT_ONCE = 4


class TextClassification(Classification):
    """Texts to one of several labels. Metrics: macro F1, accuracy, Matthews correlation, calibration, per class.

    Every model reads texts with its own tokenizer, which is shipped beside it. Batches are padded to their longest
    text; longer ones than `max_length` are cut at the end.
    """

    kind: Literal["text_classification"] = "text_classification"
    data: Annotated[DataSource, OneOf("edgeforge.data")] = Field(description="Where the texts come from.")
    tokenizer: str | None = Field(
        default=None,
        description="A folder with tokenizer.json, or a hub id; for models that bring none. Absent: the model's own.",
    )
    max_length: int = Field(default=128, ge=2, le=8192, description="Most tokens of a text; what follows is cut off.")
    validation: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of the training part kept apart for choices made on the way."
    )
    labelled: int | None = Field(
        default=None,
        ge=2,
        description="Use the labels of only this many training texts (the same share of every class); the others "
        "count as unlabelled, for distillation.",
    )

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    reads: ClassVar[Literal["images", "texts"]] = "texts"
    needs: ClassVar[tuple[str, ...]] = ("tokenizers",)
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.models.tokenizer", "edgeforge.tasks._classification")

    def completed(self, model: Path | None) -> TextClassification:
        own = self.tokenizer is None and model is not None and tokenizer.present(model)
        return self.model_copy(update={"tokenizer": str(model)}) if own else self

    def digest(self) -> str:
        self.data.check_holds("texts")
        choices = self.model_dump(mode="json", exclude={"data", "tokenizer"})
        data = {"kind": self.data.kind, "content": self.data.digest()}
        reader = tokenizer.digest(tokenizer.located(self.tokenizer))
        return digest_of({"task": choices, "data": data, "tokenizer": reader})

    def open(self, model: Path | None = None) -> TextData:
        """See Task. Raises ModelError where neither the model nor the task has a tokenizer."""
        folder = model if model is not None and tokenizer.present(model) else tokenizer.located(self.tokenizer)
        return _open(self, self.data.digest(), folder, tokenizer.digest(folder))

    def tested(self) -> Samples:
        texts = _texts(self, self.data.digest()).parts["test"].texts
        return Samples(len(texts), self.data.column, texts=texts)

    def open_probe(self, path: str, model: Path | None = None) -> TextData:
        data, texts = self.open(model), _probe.texts(path)
        part = LabelledTexts(texts, np.full(len(texts), NO_LABEL, dtype=np.int64))
        only = _Texts(data.texts.label_names, parts={"test": part}, rows={"test": np.arange(len(texts))})
        return TextData(data.interface, only, data.tokenizer)

    def metrics(self, logits: torch.Tensor, labels: torch.Tensor) -> Mapping[str, Any]:
        """`macro_f1`, `accuracy`, `matthews_correlation`, `expected_calibration_error`, `per_class_accuracy` by label.

        logits: shape (N, labels); labels: int64, shape (N,). F1 is the plain mean over all labels; one that is neither
        there nor predicted counts as 0, as in scikit-learn. A class without samples has accuracy None.
        """
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        names = _texts(self, self.data.digest()).label_names
        check_label_count(logits, names)
        truth = labels.cpu().numpy()
        predicted = logits.argmax(dim=-1).cpu().numpy()
        known = np.arange(len(names))
        return {
            "macro_f1": float(f1_score(truth, predicted, labels=known, average="macro", zero_division=0)),
            "accuracy": float(accuracy_score(truth, predicted)),
            "matthews_correlation": float(matthews_corrcoef(truth, predicted)),
            "expected_calibration_error": calibration_error(logits.double().softmax(dim=-1).cpu().numpy(), truth),
            "per_class_accuracy": per_class_accuracy(truth, predicted, names),
        }


@dataclass(frozen=True)
class _Texts:
    """The data's texts by part, with what each split takes of them."""

    label_names: tuple[str, ...]
    parts: Mapping[str, LabelledTexts]
    rows: Mapping[Split, np.ndarray]


@functools.lru_cache(maxsize=OPENED_AT_ONCE)
def _texts(task: TextClassification, data_digest: str) -> _Texts:
    # The digest is in the cache's key, so data that changed on disk is read again.
    parts = task.data.texts()
    train, validation = stratified_split(parts.train.labels, task.validation)
    unlabelled = np.full(len(parts.unlabelled), NO_LABEL, dtype=np.int64)
    known = parts.train.labels
    transfer = np.concatenate([known, unlabelled])
    if task.labelled is not None:
        if task.labelled > len(train):
            raise DataError(
                f"only {len(train)} training texts have a label",
                where="task.labelled",
                remedy=f"give at most {len(train)}; {len(validation)} more are kept apart for validation",
            )
        others, chosen = stratified_split(known[train], task.labelled / len(train))
        transfer[train[others]] = NO_LABEL
        train = train[chosen]
    taught = np.setdiff1d(np.arange(len(transfer)), validation)
    return _Texts(
        parts.label_names,
        parts={
            "train": parts.train,
            "transfer": LabelledTexts((*parts.train.texts, *parts.unlabelled), transfer),
            "test": parts.test,
        },
        rows={
            "train": train,
            "validation": validation,
            "test": np.arange(len(parts.test.labels)),
            "transfer": taught,
        },
    )


@functools.lru_cache(maxsize=OPENED_AT_ONCE)
def _open(task: TextClassification, data_digest: str, folder: Path, tokenizer_digest: str) -> TextData:
    texts = _texts(task, data_digest)
    reader = tokenizer.read(folder)
    length = (task.max_length,)
    interface = Interface(
        inputs=(
            Input("input_ids", length, "int64", variable=True, fill=0),
            Input("attention_mask", length, "int64", variable=True, fill=1),
        ),
        output_name="logits",
        labels=texts.label_names,
        tokens=Tokens(len(tokenizer.tokens(folder)), task.max_length, int(reader.pad_token_id)),
    )
    return TextData(interface, texts, folder)


@dataclass
class TextData:
    """Opened texts, as one tokenizer reads them."""

    interface: Interface
    texts: _Texts
    tokenizer: Path
    _ids: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def size(self, split: Split) -> int:
        return len(self.texts.rows[split])

    def batch(self, split: Split, indices: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """``input_ids``, ``attention_mask``: int64, (N, L), L the longest of these; ``labels``, ``rows``: int64, (N,).

        Texts are not augmented.
        """
        import torch

        part = "train" if split == "validation" else split
        rows = self.texts.rows[split][np.asarray(indices, dtype=np.int64)]
        found = self.ids(part)
        ids = [found[row] for row in rows]
        longest = max(map(len, ids))
        padded = np.full((len(ids), longest), self.interface.text.pad_id, dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, values in enumerate(ids):
            padded[row, : len(values)] = values
            mask[row, : len(values)] = 1
        return {
            "input_ids": torch.from_numpy(padded),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(self.texts.parts[part].labels[rows]),
            "rows": torch.tensor(indices, dtype=torch.int64),
        }

    def places(self, split: Split) -> Places:
        """See Placed."""
        rows = self.texts.rows[split]
        labels = self.texts.parts["train" if split == "validation" else split].labels
        return Places(rows, labels[rows], len(labels))

    def for_model(self, folder: Path) -> Callable[[Batch], Batch]:
        """See TaskData. Ids are translated where one vocabulary was cut out of the other."""
        import torch

        table = tokenizer.translation(self.tokenizer, folder) if tokenizer.present(folder) else None
        if table is None:
            return lambda batch: batch
        ids = torch.from_numpy(table)
        return lambda batch: {**batch, "input_ids": ids.to(batch["input_ids"].device)[batch["input_ids"]]}

    def write_reader(self, folder: Path) -> None:
        """See TaskData: the tokenizer's files."""
        tokenizer.carry(self.tokenizer, folder)

    def ids(self, part: str) -> list[np.ndarray]:
        """The ids of every text of a part, cut at the greatest length; made at first use."""
        if part not in self._ids:
            found = tokenizer.read(self.tokenizer)(
                list(self.texts.parts[part].texts),
                truncation=True,
                max_length=self.interface.text.max_length,
                padding=False,
                return_attention_mask=False,
            )
            self._ids[part] = [np.asarray(ids, dtype=np.int32) for ids in found["input_ids"]]
        return self._ids[part]
