"""Language models whose ONNX file takes and gives keys and values: the caller sees ids in, logits or ids out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph

if TYPE_CHECKING:
    from edgeforge.runtimes.onnxruntime import OnnxSession

PAST, PRESENT = "past_key_values.", "present."

Tensor = tuple[str, str, list[int | str]]
Cache = dict[str, np.ndarray]


class OnnxDecoder:
    """A session of a decoder with past; see `edgeforge.runtimes.Session`."""

    def __init__(self, session: OnnxSession, folder: Path) -> None:
        self._session = session
        self._empty = {name: shape for name, _, shape in session.interface()[0] if name.startswith(PAST)}
        self._ends = _ends(folder)
        self.clear()

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits (N, length, vocabulary) of whole texts, nothing remembered."""
        return self.step(inputs["input_ids"], inputs["attention_mask"], self.empty(len(inputs["input_ids"])))[0]

    def interface(self) -> tuple[list[Tensor], list[Tensor]]:
        """(name, type, shape) of every input and of every output of the file."""
        return self._session.interface()

    def empty(self, count: int) -> Cache:
        """Keys and values of `count` texts of which nothing was read."""
        return {
            name: np.zeros((count, int(shape[1]), 0, int(shape[3])), dtype=np.float32)
            for name, shape in self._empty.items()
        }

    def step(self, ids: np.ndarray, mask: np.ndarray, cache: Cache) -> tuple[np.ndarray, Cache]:
        """Logits of further tokens `ids` (N, new), and the cache with them; `mask` (N, read + new) has all tokens."""
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        found = self._session.outputs(
            {"input_ids": ids, "attention_mask": mask, "position_ids": positions.astype(np.int64), **cache}
        )
        logits = found.pop("logits")
        return logits, {name.replace(PRESENT, PAST, 1): value for name, value in found.items()}

    # -- one text, step by step

    def prefill(self, tokens: Sequence[int], *, room: int = 256) -> int:
        """Forget all, read `tokens`, return the likeliest next one. There is always room for more."""
        self.clear()
        return self._next(tokens)

    def decode(self, token: int) -> int:
        """Read one more token, return the likeliest next one."""
        return self._next([token])

    def clear(self) -> None:
        """Forget what was read."""
        self._cache, self._length = self.empty(1), 0

    def _next(self, tokens: Sequence[int]) -> int:
        self._length += len(tokens)
        mask = np.ones((1, self._length), dtype=np.int64)
        logits, self._cache = self.step(np.asarray([tokens], dtype=np.int64), mask, self._cache)
        return int(logits[0, -1].argmax())

    # -- texts

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """What the model writes after each prompt of ids, greedily, up to and without a token that ends it."""
        return [self._continued(list(prompt), max_new_tokens) for prompt in prompts]

    def _continued(self, prompt: list[int], limit: int) -> list[int]:
        written: list[int] = []
        cache, new = self.empty(1), np.asarray([prompt], dtype=np.int64)
        while len(written) < limit:
            mask = np.ones((1, len(prompt) + len(written)), dtype=np.int64)
            logits, cache = self.step(new, mask, cache)
            token = int(logits[0, -1].argmax())
            if token in self._ends:
                break
            written.append(token)
            new = np.asarray([[token]], dtype=np.int64)
        return written


def _ends(folder: Path) -> frozenset[int]:
    """The tokens that end a text, as the files beside the model say."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
            if found is not None:
                return frozenset(found if isinstance(found, list) else [found])
    return frozenset()


def context_length(folder: Path) -> int | None:
    """Tokens of the longest text, as the config beside the model says; None where it says nothing."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def bytes_per_token(folder: Path) -> int:
    """Bytes of all constants in the file; of tables that rows are only taken from (embeddings), one row."""
    graph = onnx_graph.load(folder).graph
    users = defaultdict(set)
    for node in graph.node:
        for position, name in enumerate(node.input):
            users[name].add((node.op_type, position))
    total = 0
    for tensor in graph.initializer:
        looked_up = tensor.dims and users[tensor.name] <= {("Gather", 0), ("GatherBlockQuantized", 0)}
        total += int(tensor.ByteSize()) // (tensor.dims[0] if looked_up else 1)
    return total
