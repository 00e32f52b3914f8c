"""Language models' answers on real texts: one model's beside another's, and how well it predicts what came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL, model_inputs
from edgeforge.runtimes._llama.divergence import divergence, log_softmax, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 2048
"""Of the validation split, in whole windows, evenly spread; all where it has fewer."""


@dataclass
class Pair:
    """Running sums over tokens of one model's answers against another's."""

    tokens: int = 0
    _kld: float = 0.0
    _cosine: float = 0.0
    _same: int = 0
    max_abs_error: float = 0.0

    def add(self, reference: np.ndarray, logits: np.ndarray) -> None:
        """Both float32, (tokens, vocabulary), finite."""
        self.tokens += len(logits)
        self._kld += float(divergence(reference, logits).sum())
        self._same += int((reference.argmax(axis=1) == logits.argmax(axis=1)).sum())
        for part in rows_of(logits):
            one, other = reference[part].astype(np.float64), logits[part].astype(np.float64)
            self.max_abs_error = max(self.max_abs_error, float(np.abs(one - other).max()))
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            self._cosine += float((np.sum(one * other, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)).sum())

    @property
    def mean_kld(self) -> float:
        return self._kld / max(1, self.tokens)

    @property
    def agreement(self) -> float:
        return self._same / max(1, self.tokens)

    @property
    def cosine(self) -> float:
        return self._cosine / max(1, self.tokens)


@dataclass
class Predicted:
    """How well one model predicts what came."""

    tokens: int = 0
    _nll: float = 0.0
    _right: int = 0

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """logits: (tokens, vocabulary); labels: int64, (tokens,), NO_LABEL where nothing is predicted."""
        for part in rows_of(logits):
            places = np.flatnonzero(labels[part] != NO_LABEL)
            truth = labels[part][places]
            self.tokens += len(places)
            self._nll -= float(log_softmax(logits[part][places])[np.arange(len(places)), truth].sum())
            self._right += int((logits[part][places].argmax(axis=1) == truth).sum())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self._nll / max(1, self.tokens)))

    @property
    def accuracy(self) -> float:
        return self._right / max(1, self.tokens)


def windows(job: Job, tokens: int = TOKENS) -> list[int]:
    """Rows of the validation split, evenly spread, that hold so many tokens, as far as there are."""
    data = job.data
    size, length = data.size("validation"), data.interface.text.max_length
    return np.linspace(0, size - 1, num=min(-(-tokens // length), size), dtype=np.int64).tolist()  # type: ignore[no-any-return]


def window(job: Job, row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One window's inputs, (1, tokens), without padding; and its labels, (tokens,)."""
    batch = job.data.batch("validation", [row])
    length = int(batch["attention_mask"].sum())
    inputs = {name: value[:, :length].numpy() for name, value in model_inputs(batch).items()}
    return inputs, batch["labels"][0, :length].numpy()


def torch_logits(model: PreTrainedModel, given: dict[str, np.ndarray]) -> np.ndarray:
    """Logits, float32, (tokens, vocabulary)."""
    import torch

    with torch.inference_mode():
        found = model(**{name: torch.from_numpy(value) for name, value in given.items()}).logits
    return found[0].float().numpy()  # type: ignore[no-any-return]
