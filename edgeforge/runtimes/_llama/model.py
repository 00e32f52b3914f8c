"""Models that llama.cpp has opened, and their caches of what was read."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._llama.library import DISTRIBUTION, library, listening

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

BATCH = 512
"""Most tokens that are computed at once: llama.cpp's own default."""


class Model:
    """Weights and vocabulary. Freed by `close`, or when nothing refers to it."""

    def __init__(self, file: Path, *, on_gpu: bool = False) -> None:
        """`on_gpu`: all layers there. Raises ModelError where llama.cpp cannot open the file."""
        llama = library()
        self.on_gpu = on_gpu
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers = -1 if on_gpu else 0
        with listening() as log:
            self.handle = llama.llama_model_load_from_file(str(file).encode(), settings)
        if not self.handle:
            raise ModelError(
                f"llama.cpp ({DISTRIBUTION} {llama.__version__}) cannot open it: {log.problem()}",
                where=str(file),
                remedy="export the model again",
            )
        self._free = weakref.finalize(self, llama.llama_model_free, self.handle)
        self._vocabulary = llama.llama_model_get_vocab(self.handle)
        self.vocabulary_size: int = llama.llama_vocab_n_tokens(self._vocabulary)
        self.trained_length: int = llama.llama_model_n_ctx_train(self.handle)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The ids of a text, special tokens in it recognised.

        With `add_special` also those that the file wants before and behind every text.
        """
        raw = text.encode("utf-8")
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        count = library().llama_tokenize(self._vocabulary, raw, len(raw), ids, len(ids), add_special, True)
        if count < 0:
            raise ModelError(f"llama.cpp makes {-count} tokens of {len(raw)} bytes")
        return list(ids[:count])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens left out; U+FFFD for what is no whole character."""
        given = (ctypes.c_int32 * len(ids))(*ids)
        raw = ctypes.create_string_buffer(64)
        for _ in range(2):  # too small a buffer is answered with the size that it takes
            count = library().llama_detokenize(self._vocabulary, given, len(ids), raw, len(raw), True, False)
            if count >= 0:
                return raw.raw[:count].decode("utf-8", "replace")
            raw = ctypes.create_string_buffer(-count)
        raise ModelError("llama.cpp makes no text of its own tokens")

    def ends(self, token: int) -> bool:
        """Whether a token ends a text or a turn."""
        return bool(library().llama_vocab_is_eog(self._vocabulary, token))

    def close(self) -> None:
        """Free it; every cache made with it must be closed before."""
        self._free()


class Cache:
    """Keys and values of up to `length` tokens of each of `sequences` texts."""

    def __init__(self, model: Model, *, length: int, sequences: int = 1, threads: int | None = None) -> None:
        """Raises ModelError where there is no room for it."""
        llama = library()
        settings = llama.llama_context_default_params()
        settings.n_ctx = length * sequences
        settings.n_seq_max = sequences
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = threads or usable_cores()
        # A library with CUDA would otherwise keep the cache of a model on the CPU, and its large products, on the GPU.
        settings.offload_kqv = settings.op_offload = model.on_gpu
        with listening() as log:
            self._handle = llama.llama_init_from_model(model.handle, settings)
        if not self._handle:
            raise ModelError(
                f"llama.cpp cannot make room for {sequences} texts of {length} tokens: {log.problem()}",
                remedy="use shorter texts",
            )
        self.length, self.sequences = length, sequences
        self._model = model  # not freed before this
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        self._free = weakref.finalize(self, _free, llama, self._handle, self._batch)

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[bool],
    ) -> np.ndarray:
        """Read tokens, each at its position of its sequence; logits after the `wanted` ones.

        Returns float32, shape (wanted, vocabulary). Raises ModelError for ids that the model does not have.
        """
        import numpy as np

        found = [
            self._decode(tokens[part], positions[part], sequences[part], wanted[part])
            for part in (slice(start, start + BATCH) for start in range(0, len(tokens), BATCH))
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int], wanted: Sequence[bool]
    ) -> np.ndarray:
        import numpy as np

        llama, batch, count = library(), self._batch, len(tokens)
        batch.n_tokens = count
        for index in range(count):
            batch.token[index] = tokens[index]
            batch.pos[index] = positions[index]
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequences[index]
            batch.logits[index] = wanted[index]
        with listening() as log:
            status = llama.llama_decode(self._handle, batch)
        if status != 0:
            raise ModelError(f"the file does not run: llama.cpp returns {status}: {log.problem()}")
        outputs = sum(map(bool, wanted))
        shape = (outputs, self._model.vocabulary_size)
        if not outputs:
            return np.empty(shape, dtype=np.float32)
        logits: np.ndarray = np.ctypeslib.as_array(llama.llama_get_logits(self._handle), shape=shape).copy()
        return logits

    def clear(self, sequence: int | None = None) -> None:
        """Forget one sequence, or all."""
        llama = library()
        memory = llama.llama_get_memory(self._handle)
        if sequence is None:
            llama.llama_memory_clear(memory, True)
        else:
            llama.llama_memory_seq_rm(memory, sequence, -1, -1)

    def shorten(self, sequence: int, length: int) -> None:
        """Forget all but the first `length` tokens of a sequence."""
        llama = library()
        llama.llama_memory_seq_rm(llama.llama_get_memory(self._handle), sequence, length, -1)

    def close(self) -> None:
        """Free it."""
        self._free()


def usable_cores() -> int:
    """How many threads to work with: as torch, what OMP_NUM_THREADS says, else the processors this process may use.

    More threads than free processors make llama.cpp many times slower, for they wait for each other without sleeping.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free(llama: ModuleType, handle: Any, batch: Any) -> None:
    llama.llama_batch_free(batch)
    llama.llama_free(handle)
