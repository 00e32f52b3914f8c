"""Language models as Core ML packages: tokens and their positions in, keys and values kept as the model's state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeforge.core.errors import ModelError

INPUTS = ("input_ids", "position_ids")
LOGITS = "logits"


class CoremlDecoder:
    """A package written by EdgeForge; see `edgeforge.runtimes.Session`. `model` answers as MLModel does."""

    def __init__(self, model: Any, tokens: str) -> None:
        """`tokens`: what the package's metadata says of its tokens. Raises KeyError, ValueError where it does not."""
        self.model = model
        said: Mapping[str, Any] = json.loads(tokens)
        self.context, self.chunk, self._pad_id = int(said["context"]), int(said["chunk"]), int(said["pad_id"])
        self._ends = frozenset(said["ends"])
        self._state: Any = None
        self._length = 0

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits (N, length, vocabulary) of whole texts, each with a state of its own; padding stands at their ends."""
        return np.concatenate(
            [self.read(row.tolist(), self.model.make_state(), start=0) for row in inputs["input_ids"]]
        )

    def read(self, ids: Sequence[int], state: Any, *, start: int) -> np.ndarray:
        """Logits (1, len(ids), vocabulary) of tokens that follow the `start` ones that `state` has read."""
        if start + len(ids) > self.context:
            raise ModelError(f"{start + len(ids)} tokens are more than the {self.context} that the package remembers")
        found, done = [], 0
        while done < len(ids):
            size = self.chunk if len(ids) - done > 1 else 1
            part = list(ids[done : done + size])
            filled = part + [self._pad_id] * (size - len(part))
            places = np.arange(start + done, start + done + size, dtype=np.int32)
            answer = self.model.predict(
                {"input_ids": np.asarray([filled], dtype=np.int32), "position_ids": places[None]}, state
            )
            found.append(np.asarray(answer[LOGITS], dtype=np.float32)[:, : len(part)])
            done += len(part)
        return np.concatenate(found, axis=1)

    # -- one text, step by step

    def prefill(self, tokens: Sequence[int], *, room: int = 256) -> int:
        """Forget all, read `tokens`, return the likeliest next one. There is room for as many as `context` says."""
        self._state, self._length = self.model.make_state(), 0
        return self._next(tokens)

    def decode(self, token: int) -> int:
        """Read one more token, return the likeliest next one. Raises ModelError where there is no room for it."""
        return self._next([token])

    def clear(self) -> None:
        """Forget what was read."""
        self._state, self._length = None, 0

    def _next(self, tokens: Sequence[int]) -> int:
        if self._state is None:
            raise ModelError("nothing was read yet", remedy="call prefill first")
        logits = self.read(tokens, self._state, start=self._length)
        self._length += len(tokens)
        return int(logits[0, -1].argmax())

    # -- texts

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """What the model writes after each prompt of ids, greedily, up to and without a token that ends it."""
        return [self._continued(list(prompt), max_new_tokens) for prompt in prompts]

    def _continued(self, prompt: list[int], limit: int) -> list[int]:
        state = self.model.make_state()
        written: list[int] = []
        new, done = prompt, 0
        while len(written) < limit and done + len(new) <= self.context:
            token = int(self.read(new, state, start=done)[0, -1].argmax())
            if token in self._ends:
                break
            written.append(token)
            new, done = [token], done + len(new)
        return written
