"""Tokens that the task never uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.structures import Structure
from edgeforge.structures._size import change, size

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

BATCH = 256


class Vocabulary(Structure):
    """Remove tokens that occur in none of the task's training texts (labelled or not), and their embeddings.

    The tokenizer is rewritten beside the model: training texts, as far as the task's `max_length` reads whole words of
    them, are split as before, and other texts at worst into single characters or bytes. Special tokens always stay, and
    what the chat template writes. A language model's output layer loses the same tokens. For WordPiece and byte-pair
    tokenizers; plain `from_pretrained` loads the result.
    """

    kind: Literal["vocabulary"] = "vocabulary"
    max_size: int | None = Field(
        default=None, ge=1, description="Most tokens that stay, the most frequent first; rarer words are split further."
    )
    characters: Literal["all", "seen"] = Field(
        default="all",
        description="Which single characters stay: all, or those in the training texts; then a word with any other "
        "becomes unknown as a whole. Byte-pair tokenizers keep all.",
    )

    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.chat",
        "edgeforge.models.surgery",
        "edgeforge.models.vocabulary",
        "edgeforge.structures._size",
    )

    def usual_criterion(self) -> Criterion | None:
        return None

    def check(self, criterion: Criterion | None) -> None:
        if criterion is not None:
            raise IncompatiblePlanError(
                f"vocabulary asks how often tokens occur, not {criterion.kind}", remedy="leave out the criterion"
            )

    def prune(self, model: PreTrainedModel, criterion: Criterion, job: Job) -> Mapping[str, Any]:
        """Remove tokens in place and write the tokenizer into ``job.folder``; no criterion is asked.

        Returns ``tokens`` ([before, after]), ``used`` (how many the texts hold), and the size. A rehearsal changes
        nothing: which tokens stay is known when the texts were counted, and no later stage's shape depends on it.
        """
        from edgeforge.models import vocabulary

        tokens = vocabulary.check_model(model)
        interface = job.data.interface
        if interface.text.vocabulary_size > tokens:
            raise ModelError(
                f"its tokenizer has {interface.text.vocabulary_size} tokens, the model embeddings for {tokens}",
                remedy="use the tokenizer that belongs to the model",
            )
        before = size(model, interface)
        if job.model is None:
            return {"tokens": [tokens, tokens], **change(before, model, interface)}
        cut = vocabulary.choose(
            job.model,
            _counts(job, tokens),
            vocabulary.fixed_ids(model),
            max_size=self.max_size,
            characters=self.characters,
        )
        vocabulary.write(job.model, job.folder, cut)
        vocabulary.shrink(model, cut)
        if len(cut.kept) == tokens:
            job.progress.warn("nothing was pruned: the texts use the whole vocabulary")
        return {"tokens": [tokens, len(cut.kept)], "used": cut.used, **change(before, model, interface)}


def _counts(job: Job, tokens: int) -> np.ndarray:
    """How often each id occurs in the texts a student is taught on, padding aside; int64, shape (tokens,)."""
    import numpy as np

    counts = np.zeros(tokens, dtype=np.int64)
    texts = job.data.size("transfer")
    for start in range(0, texts, BATCH):
        batch = job.data.batch("transfer", range(start, min(start + BATCH, texts)))
        ids = batch["input_ids"][batch["attention_mask"].bool()].numpy()
        counts += np.bincount(ids, minlength=tokens)
        job.progress.update(min(start + BATCH, texts), texts, "counting tokens")
    return counts
