"""A language model's answers on disk: for every token to be learnt, the likeliest that may stand there.

``tokens.npy`` has one record per token, in the order of the samples and their positions: the k ids, likeliest first,
and in float16 their log probabilities with that of all others together behind them. ``offsets.npy`` says where each
sample begins. Records are read from disk as they are asked for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge.models import buckets

if TYPE_CHECKING:
    import torch

TOKENS = "tokens.npy"
OFFSETS = "offsets.npy"
ABOUT = "answers.json"


def record(k: int, vocabulary: int) -> np.dtype[np.void]:
    """One token's answer. All tokens of the vocabulary leave no tail."""
    ids = "<u2" if vocabulary <= 1 << 16 else "<i4"
    return np.dtype([("ids", ids, (k,)), ("log_probabilities", "<f2", (k + (k < vocabulary),))])


def header(tokens: int, dtype: np.dtype[np.void]) -> bytes:
    """What stands before the records in ``tokens.npy``."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (tokens,)}  # type: ignore[no-untyped-call]
    file = io.BytesIO()
    np.lib.format.write_array_header_2_0(file, described)  # type: ignore[no-untyped-call]
    return file.getvalue()


def records(logits: torch.Tensor, dtype: np.dtype[np.void]) -> np.ndarray:
    """The records of some tokens, shape (n,); logits: float32, (n, vocabulary)."""
    k = dtype["ids"].shape[0]
    if k < logits.shape[1]:
        ids, values = buckets.shorten(logits, k)
    else:
        values, ids = logits.log_softmax(dim=1).sort(dim=1, descending=True)
    found = np.empty(len(logits), dtype)
    found["ids"], found["log_probabilities"] = ids.cpu().numpy(), values.cpu().numpy()
    return found


def write_about(folder: Path, offsets: np.ndarray, vocabulary: int) -> None:
    """Where each sample's tokens begin, int64, shape (samples + 1,), and the number of tokens known to the teacher."""
    np.save(folder / OFFSETS, offsets)
    (folder / ABOUT).write_text(json.dumps({"vocabulary": vocabulary}), encoding="utf-8")


class Answers:
    """What is kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.tokens: np.ndarray = np.load(folder / TOKENS, mmap_mode="r")
        self._offsets = np.load(folder / OFFSETS)
        self.vocabulary = int(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["vocabulary"])

    def __len__(self) -> int:
        """Samples."""
        return len(self._offsets) - 1

    def of(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids (int32, (tokens, k)) and log probabilities (float32, (tokens, k, or k + 1)) of some samples' tokens."""
        import torch

        found = np.concatenate([self.tokens[self._offsets[row] : self._offsets[row + 1]] for row in rows])
        ids, values = found["ids"].astype(np.int32), found["log_probabilities"].astype(np.float32)
        return torch.from_numpy(ids), torch.from_numpy(values)

    def kept_mass(self) -> np.ndarray:
        """How much of each token's distribution the ids hold, float32, shape (tokens,)."""
        if self.tokens.dtype["ids"].shape == self.tokens.dtype["log_probabilities"].shape:
            return np.ones(len(self.tokens), dtype=np.float32)
        tail = self.tokens["log_probabilities"][:, -1].astype(np.float32)
        mass: np.ndarray = -np.expm1(tail)
        return mass
