"""How well a model predicts the tokens of a split, and how far its predictions are from another model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.core.task import NO_LABEL, Answers, Batch, Split, TaskData, model_inputs

if TYPE_CHECKING:
    import torch

WINDOW_BYTES = 128_000_000
"""Most float32 logits of one question to a model; one window of 512 tokens and 49,152 words is 100 MB."""
CHUNK_VALUES = 1 << 22
"""Most float64 values of one tensor at a time (32 MB)."""

COMPARED = ("mean_kld", "p99_kld", "top1_agreement")
NOT_FINITE = "the outputs hold NaN or infinity"


@dataclass
class Scores:
    """One number for each token that was predicted; all arrays have shape (windows, length).

    `nll`: float64, -log p of the token that came (nats), NaN where none was to be predicted. `likeliest`: int32, the
    token that was likeliest, and `right`, whether it came. Against a reference, if there is one: `kld`, float64, the
    Kullback-Leibler divergence of the model from it (nats), and `same`, whether both find the same token likeliest.
    """

    nll: np.ndarray
    right: np.ndarray
    likeliest: np.ndarray
    kld: np.ndarray
    same: np.ndarray
    reason: str | None = None
    """Why `nll` cannot be used."""
    reference_reason: str | None = None
    """Why `kld` and `same` cannot be used."""

    @property
    def scored(self) -> np.ndarray:
        """Where a token was predicted."""
        known: np.ndarray = ~np.isnan(self.nll)
        return known


def score(
    answers: Answers,
    data: TaskData,
    split: Split,
    reference: Answers | None,
    progress: Callable[[int, int], None] | None,
) -> Scores:
    """Ask a model, and a reference, about every window of a split, a few at a time.

    Raises ModelError where the outputs are not those of a language model for these windows.
    """
    size, length = data.size(split), data.interface.text.max_length
    scores = _unknown(size, length, None if reference else "there is no reference model")
    at_once = max(1, WINDOW_BYTES // (4 * length * data.interface.text.vocabulary_size))
    for start in range(0, size, at_once):
        rows = range(start, min(size, start + at_once))
        batch = data.batch(split, rows)
        logits = _checked(answers.logits(model_inputs(batch)), batch["labels"])
        others = _comparable(reference, batch, logits, scores)
        for offset, row in enumerate(rows):
            other = others[offset] if others is not None else None
            _score_window(scores, row, batch["labels"][offset], logits=logits[offset], other=other)
        if scores.reason is not None:
            return scores
        if progress is not None:
            progress(rows[-1] + 1, size)
    return scores


def _unknown(size: int, length: int, reason: str | None) -> Scores:
    shape = (size, length)
    nothing, never = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
    tokens = np.zeros(shape, dtype=np.int32)
    return Scores(nothing, never, tokens, nothing.copy(), never.copy(), reference_reason=reason)


def _checked(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    greatest = int(labels.max())
    if logits.dim() != 3 or logits.shape[:2] != labels.shape or logits.shape[2] <= greatest:
        raise ModelError(
            f"for windows of {' x '.join(map(str, labels.shape))} tokens with ids up to {greatest} the model gives "
            f"outputs of {' x '.join(map(str, logits.shape))}",
            where="model",
            remedy="use a causal language model, with the tokenizer that belongs to it",
        )
    return logits


def _comparable(reference: Answers | None, batch: Batch, logits: torch.Tensor, scores: Scores) -> torch.Tensor | None:
    """The reference's logits for the same tokens; None, with the reason noted, where they are of another vocabulary."""
    if reference is None or scores.reference_reason is not None:
        return None
    others = reference.logits(model_inputs(batch))
    if others.shape != logits.shape:
        scores.reference_reason = (
            f"the vocabularies differ: the reference has {others.shape[-1]:,} tokens, this model {logits.shape[-1]:,}"
        )
        return None
    return others


def _score_window(
    scores: Scores, row: int, labels: torch.Tensor, *, logits: torch.Tensor, other: torch.Tensor | None
) -> None:
    """logits, other: (length, vocabulary), the model's and the reference's; labels: int64, (length,)."""
    predicted = (labels != NO_LABEL).nonzero().flatten()
    at_once = max(1, CHUNK_VALUES // logits.shape[-1])
    for start in range(0, len(predicted), at_once):
        places = predicted[start : start + at_once]
        mine = logits[places.to(logits.device)].cpu().double()
        if not mine.isfinite().all():
            scores.reason = NOT_FINITE
            return
        at, truth = places.numpy(), labels[places]
        log_p = mine.log_softmax(-1)
        best = log_p.argmax(-1)
        scores.nll[row, at] = -log_p.gather(1, truth[:, None])[:, 0].numpy()
        scores.right[row, at] = (best == truth).numpy()
        scores.likeliest[row, at] = best.numpy()
        if other is None or scores.reference_reason is not None:
            continue
        theirs = other[places.to(other.device)].cpu().double()
        if not theirs.isfinite().all():
            scores.reference_reason = f"of the reference, {NOT_FINITE}"
            continue
        log_q = theirs.log_softmax(-1)
        # Never below 0 but for rounding.
        scores.kld[row, at] = (log_q.exp() * (log_q - log_p)).sum(-1).clamp_min(0).numpy()
        scores.same[row, at] = (best == log_q.argmax(-1)).numpy()


def metrics(scores: Scores, size_bytes: int) -> dict[str, Any]:
    """What the scores say together; `size_bytes` is how much text the predicted tokens stand for.

    Those of `COMPARED` are None where there is nothing to compare with.
    """
    scored = scores.scored
    nll = scores.nll[scored]
    found: dict[str, Any] = {
        "perplexity": float(np.exp(nll.mean())),
        "bits_per_byte": float(nll.sum() / np.log(2) / size_bytes) if size_bytes else None,
        "next_token_accuracy": float(scores.right[scored].mean()),
    }
    if scores.reference_reason is None:
        kld = scores.kld[scored]
        found |= {
            "mean_kld": float(kld.mean()),
            "p99_kld": float(np.quantile(kld, 0.99)),
            "top1_agreement": float(scores.same[scored].mean()),
        }
    else:
        found |= dict.fromkeys(COMPARED)
    return found


def arrays(scores: Scores) -> dict[str, np.ndarray]:
    """The scores of every token, each of shape (windows, length): float32, bool, or int32 ids."""
    found = {
        "nll": scores.nll.astype(np.float32),
        "scored": scores.scored,
        "right": scores.right,
        "likeliest": scores.likeliest,
    }
    if scores.reference_reason is None:
        found |= {"kld": scores.kld.astype(np.float32), "top1": scores.same}
    return found
