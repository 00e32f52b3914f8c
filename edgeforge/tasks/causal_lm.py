"""Language modelling: after each token of a text, which one comes next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from edgeforge.core.errors import DataError
from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import digest_of
from edgeforge.core.task import (
    NO_LABEL,
    Answers,
    Batch,
    Evaluation,
    Input,
    Interface,
    Split,
    Task,
    TaskData,
    Tokens,
)
from edgeforge.data import DataSource
from edgeforge.models import tokenizer
from edgeforge.models.folder import CONFIG, read_json
from edgeforge.tasks import _token_scores, _windows
from edgeforge.tasks._prompts import Prompted
from edgeforge.tasks._spec_answers import Specified

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

OPENED_AT_ONCE = 4
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


class CausalLm(Task, Prompted, Specified):
    """Texts and chats, for models that write. Metrics: perplexity, bits per byte, next token accuracy; and see below.

    Documents are joined by the token that ends a text and cut into windows of `max_length` tokens; what is left over at
    the end of a part is not used. A tokenizer that puts a token before every text puts it before every window. Chats
    are rendered with the tokenizer's own template. Validation windows come from training documents kept apart; where
    there are few documents, from the end.

    Perplexity is over the windows of the test part: a token is predicted from those before it in its window, and the
    first one, which has none, does not count. With a `stride` below `max_length` windows overlap, and a token counts
    in the first window that holds it. Compared with the model that the chain began with, on the same tokens:
    `mean_kld` and `p99_kld`, the Kullback-Leibler divergence from it (nats), and `top1_agreement`.
    """

    kind: Literal["causal_lm"] = "causal_lm"
    data: Annotated[DataSource, OneOf("edgeforge.data")] = Field(description="Where the texts and chats come from.")
    tokenizer: str | None = Field(
        default=None,
        description="A folder with tokenizer.json, or a hub id; for models that bring none. Absent: the model's own.",
    )
    max_length: int = Field(default=512, ge=2, le=131072, description="Tokens of a window.")
    stride: int | None = Field(
        default=None,
        ge=1,
        description="Tokens from one window of the test part to the next; absent: max_length, so that none overlap. "
        "Smaller ones give every token more to be predicted from, and take longer.",
    )
    validation: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of the training part kept apart for choices made on the way."
    )
    answers_only: bool = Field(
        default=False,
        description="Of chats, learn and score only what the assistant says. Of texts, everything as usual.",
    )
    whole_documents: bool = Field(
        default=False,
        description="Begin every window with a document, and count in it only those that fit whole. For short chats "
        "that are answered one at a time: cut anywhere, hardly a window begins with a question, and a small model "
        "answers well only behind another chat.",
    )
    evaluation_windows: int | None = Field(
        default=None,
        ge=1,
        description="Evaluate on at most this many windows of the test part, evenly spread; absent: on all.",
    )

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    reads: ClassVar[Literal["images", "texts"]] = "texts"
    answers_per: ClassVar[Literal["sample", "token"]] = "token"
    baseline_format: ClassVar[str] = "gguf"
    wants_reference: ClassVar[bool] = True
    families: ClassVar[tuple[str, ...] | None] = FAMILIES
    needs: ClassVar[tuple[str, ...]] = ("jinja2", "tokenizers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.chat",
        "edgeforge.models.tokenizer",
        "edgeforge.tasks._prompts",
        "edgeforge.tasks._spec_answers",
        "edgeforge.tasks._token_scores",
        "edgeforge.tasks._windows",
    )

    @model_validator(mode="after")
    def _no_gaps(self) -> Self:
        if self.stride is not None and self.stride > self.max_length:
            raise ValueError(f"stride {self.stride} is above max_length {self.max_length}: texts would have gaps")
        if self.stride is not None and self.whole_documents:
            raise ValueError("with `whole_documents` windows begin where documents do: leave `stride` out")
        return self

    def completed(self, model: Path | None) -> CausalLm:
        """See Task. Raises IncompatiblePlanError for a model of a family that is not supported."""
        if model is None:
            return self
        if (model / CONFIG).is_file():
            self.check_family(read_json(model / CONFIG).get("model_type"), str(model / CONFIG))
        own = self.tokenizer is None and tokenizer.present(model)
        return self.model_copy(update={"tokenizer": str(model)}) if own else self

    def digest(self) -> str:
        self.data.check_holds("documents")
        # Of a user's checker its source counts, not its place.
        apart: dict[str, Any] = {
            "data": True,
            "tokenizer": True,
            "prompts": True,
            "checker": {"function"},
            "spec": True,
        }
        choices = self.model_dump(mode="json", exclude=apart)
        return digest_of(
            {
                "task": choices,
                "data": {"kind": self.data.kind, "content": self.data.digest()},
                "prompts": self.prompts_digest(),
                "spec": self.spec_digest(),
                "tokenizer": tokenizer.digest(tokenizer.located(self.tokenizer)),
            }
        )

    def open(self, model: Path | None = None) -> TokenData:
        """See Task. Raises ModelError where neither the model nor the task has a tokenizer."""
        own = model is not None and tokenizer.present(model)
        folder = model if model is not None and own else tokenizer.located(self.tokenizer)
        reader = _Reader(tokenizer.digest(folder), folder)
        said = read_json(folder / CONFIG).get("vocab_size") if (folder / CONFIG).is_file() else None
        return _open(self, self.data.digest(), folder, reader, said if isinstance(said, int) else 0)

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean cross entropy over the tokens that have a label; 0 where none has. logits: (N, L, vocabulary)."""
        from torch.nn import functional

        labels = batch["labels"]
        total = functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        return total / (labels != NO_LABEL).sum().clamp(min=1)

    def evaluate(
        self,
        answers: Answers,
        data: TaskData,
        split: Split,
        *,
        reference: Answers | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Evaluation:
        """See Task. Arrays of shape (windows, length): ``nll``, ``kld`` (float32, nats, NaN where nothing was
        predicted), ``scored``, ``right`` and ``top1`` (bool: predicted at all, likeliest, likeliest for the reference
        too), ``likeliest`` (int32: which token); and those of `Prompted.ask` and
        `Specified.ask_of_spec`.

        `evaluated` says on what; `reasons` why a metric is None. Prompts are asked with the test split only.
        """
        opened = cast(TokenData, data)  # or what stands for it, such as its first windows
        scores = _token_scores.score(answers, data, split, reference, progress)
        arrays = _token_scores.arrays(scores)
        if scores.reason is not None:
            return Evaluation({"reason": scores.reason}, arrays)
        counted = int(opened.splits[split].label_bytes(range(data.size(split))).sum())
        metrics = _token_scores.metrics(scores, counted)
        reasons = dict.fromkeys(_token_scores.COMPARED, scores.reference_reason) if scores.reference_reason else {}
        if split == "test" and self.prompts is not None:
            if answers.generate is None:
                metrics |= dict.fromkeys(self.prompt_metrics())
                reasons |= dict.fromkeys(self.prompt_metrics(), "what runs this format here writes no texts")
            else:
                asked = self.ask(answers.generate, opened.tokenizer)
                metrics |= asked.metrics
                arrays |= asked.arrays
        if split == "test" and self.spec is not None:
            if answers.generate is None:
                metrics |= dict.fromkeys(self.spec_metrics())
                reasons |= dict.fromkeys(self.spec_metrics(), "what runs this format here writes no texts")
            else:
                judged = self.ask_of_spec(answers.generate, opened.tokenizer, self.max_new_tokens)
                metrics |= judged.metrics
                arrays |= judged.arrays
        metrics["evaluated"] = {
            "windows": data.size(split),
            "window": self.max_length,
            "stride": (self.stride if split == "test" else None) or self.max_length,
            "tokens": int(scores.scored.sum()),
            "bytes": counted,
        }
        return Evaluation({**metrics, "reasons": reasons} if reasons else metrics, arrays)


@dataclass(frozen=True)
class _Reader:
    """A tokenizer, by its content: many models have the same one, each in its own folder."""

    digest: str
    folder: Path = field(compare=False)


@functools.lru_cache(maxsize=4 * OPENED_AT_ONCE)
def _open(task: CausalLm, data_digest: str, folder: Path, reader: _Reader, vocabulary_size: int) -> TokenData:
    """`vocabulary_size`: how many tokens the model has; often more than its tokenizer, rounded up."""
    length, read = (task.max_length,), tokenizer.read(folder)
    interface = Interface(
        inputs=(
            Input("input_ids", length, "int64", variable=True, fill=0),
            Input("attention_mask", length, "int64", variable=True, fill=1),
        ),
        output_name="logits",
        labels=(),
        tokens=Tokens(
            max(vocabulary_size, len(tokenizer.tokens(folder))),
            task.max_length,
            int(read.pad_token_id),
            end_id=tokenizer.end_of_text(folder) if read.eos_token_id is None else int(read.eos_token_id),
        ),
    )
    return TokenData(interface, _splits(task, data_digest, reader), folder)


@functools.lru_cache(maxsize=OPENED_AT_ONCE)
def _splits(task: CausalLm, data_digest: str, reader: _Reader) -> Mapping[Split, _windows.Windows]:
    # The digests are in the cache's key, so what changed on disk is read again.
    parts = task.data.documents()
    read = functools.partial(_windows.streams, folder=reader.folder, answers_only=task.answers_only)
    before = tokenizer.beginning(reader.folder)
    train, validation = _train_and_validation(read(parts.train), task, before)
    stride = task.stride or task.max_length
    test = read(parts.test)
    if task.whole_documents:
        tested = _windows.of_documents(test, length=task.max_length, before=before, part="test")
    else:
        tested = _windows.cut(_windows.joined(test), length=task.max_length, stride=stride, before=before, part="test")
    tested = _with_labels(tested, "test")
    train = _with_labels(train, "train")
    return {
        "train": train,
        "validation": _with_labels(validation, "validation"),
        "test": tested.chosen(_windows.spread(len(tested), task.evaluation_windows)),
        "transfer": train,
    }


def _train_and_validation(
    parts: Sequence[_windows.Stream], task: CausalLm, before: int | None
) -> tuple[_windows.Windows, _windows.Windows]:
    length = task.max_length
    content = length - (before is not None)

    def cut(some: Sequence[_windows.Stream]) -> _windows.Windows:
        if task.whole_documents:
            return _windows.of_documents(some, length=length, before=before, part="training")
        return _windows.cut(_windows.joined(some), length=length, stride=length, before=before, part="training")

    held = _windows.validation_documents(parts, task.validation, content)
    if held is not None:
        kept, apart = (
            [part for part, is_held in zip(parts, held, strict=True) if is_held == side] for side in (False, True)
        )
        return cut(kept), cut(apart)
    size = sum(map(len, parts))
    if size < 2 * content:  # one window to train on, and one to validate with
        raise _windows.too_short("training", size, 2 * content)
    found = cut(parts)
    first = len(found) - max(1, round(task.validation * len(found)))
    return found.chosen(np.arange(first)), found.chosen(np.arange(first, len(found)))


def _with_labels(split: _windows.Windows, name: str) -> _windows.Windows:
    found = split.with_labels()
    if not len(found):
        raise DataError(
            f"no window of the {name} split holds anything that the assistant says",
            where="task.data",
            remedy="give chats with answers, raise `max_length`, or set `answers_only: false`",
        )
    return found


@dataclass
class TokenData:
    """Windows of tokens, as one tokenizer reads the texts."""

    interface: Interface
    splits: Mapping[Split, _windows.Windows]
    tokenizer: Path

    def size(self, split: Split) -> int:
        return len(self.splits[split])

    def batch(self, split: Split, indices: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """``input_ids``, ``attention_mask`` and ``labels``: int64, (N, max_length); ``rows``: int64, (N,).

        Every window is full, so nothing is padding. Texts are not augmented.
        """
        import torch

        ids, labels = self.splits[split].at(indices)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.ones(ids.shape, dtype=torch.int64),
            "labels": torch.from_numpy(labels),
            "rows": torch.tensor(indices, dtype=torch.int64),
        }

    def for_model(self, folder: Path) -> Callable[[Batch], Batch]:
        """See TaskData. Ids, of inputs and labels, are translated where one vocabulary was cut out of the other."""
        import torch

        table = tokenizer.translation(self.tokenizer, folder) if tokenizer.present(folder) else None
        if table is None:
            return lambda batch: batch
        ids = torch.from_numpy(table)

        def translated(batch: Batch) -> Batch:
            known, found = ids.to(batch["input_ids"].device), {**batch, "input_ids": batch["input_ids"]}
            found["input_ids"] = known[batch["input_ids"]]
            if "labels" in batch:
                labels = batch["labels"]
                found["labels"] = torch.where(labels == NO_LABEL, labels, known[labels.clamp(min=0)])
            return found

        return translated

    def write_reader(self, folder: Path) -> None:
        """See TaskData: the tokenizer's files."""
        tokenizer.carry(self.tokenizer, folder)
