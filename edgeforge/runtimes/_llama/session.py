"""An opened GGUF file that answers, reads and writes.

Part of what `edgeforge.links._llama_worker` takes to devices: it imports nothing that is not copied there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._llama.model import Cache, Model

if TYPE_CHECKING:
    import numpy as np

AT_ONCE = 16
"""Texts that are written side by side; of more, a core gains nothing."""


class LlamaCppSession:
    """An opened GGUF file. `close` frees it; so does forgetting it."""

    def __init__(self, file: Path, *, threads: int | None = None, on_gpu: bool = False) -> None:
        if not file.is_file():
            raise ModelError("there is no such file", where=str(file), remedy="export the model again")
        self.model = Model(file, on_gpu=on_gpu)
        self._threads = threads
        self._cache: Cache | None = None
        self._position = 0

    # -- answers

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits, float32, shape (N, L, vocabulary), for ``input_ids`` and ``attention_mask``, int64, (N, L).

        One text after the other, so that no text's answer depends on the others; zeros behind the end of shorter ones.
        Raises ModelError for ids that the model does not have, and for padding that is not behind the text.
        """
        import numpy as np

        ids, mask = _checked(inputs, self.model.vocabulary_size)
        logits = np.zeros((*ids.shape, self.model.vocabulary_size), dtype=np.float32)
        cache = self._room(ids.shape[1])
        for row, length in enumerate(mask.sum(axis=1).tolist()):
            if length:
                cache.clear()
                logits[row, :length] = _read(cache, ids[row, :length].tolist(), every=True)
        cache.clear()
        return logits

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """What the model writes after each prompt, taking the likeliest token each time.

        At most `max_new_tokens` ids, up to and without the one that ends a text or a turn. Several texts are written
        side by side; where one ends the next begins. Raises ModelError for a prompt of no tokens, or of more than the
        model was made for.
        """
        written: list[list[int]] = [[] for _ in prompts]
        if not prompts or max_new_tokens < 1:
            return written
        for prompt in prompts:
            _check_prompt(prompt, self.model)
        length = min(max(map(len, prompts)) + max_new_tokens, max(self.model.trained_length, max(map(len, prompts))))
        cache = self._room(length, min(AT_ONCE, len(prompts)))
        waiting, active = deque(range(len(prompts))), dict[int, int]()
        while waiting or active:
            for sequence in range(cache.sequences):
                while sequence not in active and waiting:
                    active[sequence] = waiting.popleft()
                    cache.clear(sequence)
                    first = _best(_read(cache, prompts[active[sequence]], sequence=sequence))
                    self._take(first, sequence, active, written, max_new_tokens)
            full = [one for one, text in active.items() if len(prompts[text]) + len(written[text]) > length]
            for sequence in full:
                del active[sequence]
            if active:
                self._step(cache, prompts, active, written, max_new_tokens)
        cache.clear()
        return written

    def _step(
        self,
        cache: Cache,
        prompts: Sequence[Sequence[int]],
        active: dict[int, int],
        written: list[list[int]],
        limit: int,
    ) -> None:
        """One more token of every text that is being written."""
        sequences = sorted(active)
        last = [written[active[one]][-1] for one in sequences]
        places = [len(prompts[active[one]]) + len(written[active[one]]) - 1 for one in sequences]
        logits = cache.decode(last, places, sequences, [True] * len(sequences))
        for row, sequence in enumerate(sequences):
            self._take(_best(logits[row : row + 1]), sequence, active, written, limit)

    def _take(self, token: int, sequence: int, active: dict[int, int], written: list[list[int]], limit: int) -> None:
        text = active[sequence]
        if self.model.ends(token):
            del active[sequence]
            return
        written[text].append(token)
        if len(written[text]) >= limit:
            del active[sequence]

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The ids that llama.cpp makes of a text with the file's own tokenizer; see `Model.tokenize`."""
        return self.model.tokenize(text, add_special=add_special)

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text that llama.cpp makes of ids; see `Model.detokenize`."""
        return self.model.detokenize(ids)

    # -- one text, step by step

    def prefill(self, tokens: Sequence[int], *, room: int = 256) -> int:
        """Forget all, read `tokens`, return the likeliest next one. `room`: how many `decode` may add."""
        _check_prompt(tokens, self.model)
        cache = self._room(len(tokens) + room)
        cache.clear()
        self._position = len(tokens)
        return _best(_read(cache, tokens))

    def decode(self, token: int) -> int:
        """Read one more token, return the likeliest next one. Raises ModelError where `prefill` left no room."""
        return self.read([token])[0]

    def read(self, tokens: Sequence[int]) -> list[int]:
        """Read more tokens at once, return the likeliest next one after each. Raises ModelError as `decode`."""
        count = len(tokens)
        if self._cache is None or not 0 < self._position <= self._cache.length - count:
            raise ModelError("there is no room for another token", remedy="call prefill with more room")
        places = range(self._position, self._position + count)
        logits = self._cache.decode(tokens, places, [0] * count, [True] * count)
        self._position += count
        return [_best(logits[row : row + 1]) for row in range(count)]

    def go_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert self._cache is not None and 0 < length <= self._position
        self._cache.shorten(0, length)
        self._position = length

    def clear(self) -> None:
        """Forget what was read."""
        self._position = 0
        if self._cache is not None:
            self._cache.clear()

    def close(self) -> None:
        """Free the file and all that was read."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None
        self.model.close()

    def _room(self, length: int, sequences: int = 1) -> Cache:
        """A cache that is empty or holds what the last call left; the one that is there, if it is large enough."""
        self._position = 0
        if self._cache is None or self._cache.length < length or self._cache.sequences != sequences:
            if self._cache is not None:
                self._cache.close()
            self._cache = Cache(self.model, length=length, sequences=sequences, threads=self._threads)
        return self._cache


def _read(cache: Cache, tokens: Sequence[int], *, sequence: int = 0, every: bool = False) -> np.ndarray:
    """Logits after the last token of a text, or after every one; (1 or L, vocabulary)."""
    count = len(tokens)
    wanted = [every] * (count - 1) + [True]
    return cache.decode(tokens, range(count), [sequence] * count, wanted)


def _best(logits: np.ndarray) -> int:
    """The likeliest token. Raises ModelError where that is nobody's: NaN."""
    best = int(logits[0].argmax())
    if logits[0, best] != logits[0, best]:
        raise ModelError("the model's answers are not all numbers")
    return best


def _check_prompt(tokens: Sequence[int], model: Model) -> None:
    if not 0 < len(tokens) <= model.trained_length:
        raise ModelError(
            f"a prompt of {len(tokens)} tokens cannot be read: the model takes 1 to {model.trained_length}",
            remedy="give a shorter prompt" if tokens else "give at least one token",
        )


def _checked(inputs: dict[str, np.ndarray], vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
    if set(inputs) != {"input_ids", "attention_mask"}:
        raise ModelError(f"the file does not run: it takes input_ids and attention_mask, not {', '.join(inputs)}")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if ids.ndim != 2 or ids.shape != mask.shape or 0 in ids.shape:
        raise ModelError(f"the file does not run: ids of shape {ids.shape} and a mask of shape {mask.shape}")
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ModelError("the file does not run: padding must be behind the text")
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        raise ModelError(f"the file does not run: ids go from {ids.min()} to {ids.max()}, of {vocabulary_size} tokens")
    return ids, mask
