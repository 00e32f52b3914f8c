"""A mix of types for one file, chosen tensor by tensor by what rounding costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.core.errors import ConfigurationError, ModelError
from edgeforge.core.extras import require
from edgeforge.core.stage import Job
from edgeforge.gguf_file import EXTRA, GgufFile
from edgeforge.quantizers._allocation import Choice, allocate, smallest
from edgeforge.quantizers._gguf_types import BARRED, MIXES, block_of, is_quantizable, mixed_with
from edgeforge.quantizers._importance import Importance
from edgeforge.runtimes._llama.divergence import divergence
from edgeforge.runtimes._llama.quantization import Recipe, planned_types, quantize
from edgeforge.runtimes._llama.session import LlamaCppSession

CHUNK_VALUES = 1 << 22
"""Weights that are multiplied out at a time (16 MB as float32)."""

HELD_OUT = 8
"""Validation windows that the finished file is measured on."""

RIVALS = 2
"""How many of llama.cpp's own mixes it is compared with: the largest that fit."""


class Mixer:
    """Chooses types for `floats`; `own`: tensor -> the type it has to have."""

    def __init__(
        self,
        floats: GgufFile,
        importance: Importance,
        job: Job,
        *,
        candidates: Sequence[str],
        own: Mapping[str, str],
    ) -> None:
        """Raises ModelError where a weight's importance was not measured."""
        self.floats = floats
        self.importance = importance
        self.job = job
        self.own = own
        self.candidates = list(dict.fromkeys(candidates))
        self.weights = [name for name, tensor in floats.tensors.items() if is_quantizable(tensor)]
        if missing := [name for name in self.weights if name not in importance.rows]:
            raise ModelError(f"the importance of {missing[0]} was not measured", remedy="measure it again")

    def write(self, target: Path, room: int) -> tuple[GgufFile, dict[str, Any]]:
        """The best file found whose tensors take at most `room` bytes, and how it was found.

        Raises ConfigurationError, with the smallest size that could be reached, where none is so small.
        """
        least = self.check(room)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            recipe, predicted = self.recipe(self.options(Path(scratch)), room)
            mixed = quantize(self.floats.path, Path(scratch) / "mixed.gguf", recipe)
            found, compared = self._best(mixed, room, Path(scratch))
            found.path.replace(target)
        facts = {"room_bytes": room, "smallest_bytes": least, "predicted_kld": predicted, **compared}
        return GgufFile(target, found.metadata, found.tensors), facts

    def recipe(self, options: Sequence[Sequence[Choice]], room: int) -> tuple[Recipe, float]:
        """The types that cost least in `room` bytes, and their cost (nats per token); `options` as `options` gives."""
        chosen = allocate(options, room - self._rest())
        types = {name: choice.type for name, choice in zip(self.weights, chosen, strict=True)}
        cost = sum(choice.cost for choice in chosen)
        return Recipe(self._main_mix(chosen), types, self.importance.inputs), cost

    def _rest(self) -> int:
        """Bytes of what stays as it is: norms and biases."""
        return sum(tensor.size_bytes for name, tensor in self.floats.tensors.items() if name not in self.weights)

    # -- what each type would cost

    def options(self, scratch: Path) -> list[list[Choice]]:
        """For every weight, each type it can have, with its bytes and its cost. One file per type, which is removed."""
        found: dict[str, list[Choice]] = {name: [] for name in self.weights}
        words = sorted({word for name in self.weights for word in self._words(name)})
        for done, word in enumerate(words):
            names = [name for name in self.weights if word in self._words(name)]
            # The others are written too; q8_0 takes least time.
            others = {name: "q8_0" for name in self.weights if name not in names and self._divides(name, "q8_0")}
            recipe = Recipe("q8_0", {**dict.fromkeys(names, word), **others}, self.importance.inputs)
            file = quantize(self.floats.path, scratch / "candidate.gguf", recipe)
            for name in names:
                found[name].append(Choice(word, self._size(name, word), self.cost(name, file)))
            file.path.unlink()
            self.job.progress.update(done + 1, len(words), f"what {word} costs")
        return list(found.values())

    def cost(self, name: str, file: GgufFile) -> float:
        """Divergence that a tensor, as it is in `file`, brings (nats per token); rows a few at a time."""
        total = 0.0
        first = 0
        for exact, rounded in zip(rows_of(self.floats, name), rows_of(file, name), strict=True):
            total += self.importance.error_cost(name, rounded - exact, first_row=first)
            first += len(exact)
        return total

    def _words(self, name: str) -> list[str]:
        if name in self.own:
            return [self.own[name]]
        return [word for word in self.candidates if self._divides(name, word)] or ["f16"]

    def _divides(self, name: str, word: str) -> bool:
        return self.floats.tensors[name].shape[-1] % block_of(word)[0] == 0

    def _size(self, name: str, word: str) -> int:
        weights, size = block_of(word)
        return self.floats.tensors[name].count // weights * size

    def check(self, room: int) -> int:
        """The least bytes that all tensors together can take. Raises ConfigurationError where that is above `room`."""
        sizes = [[Choice(word, self._size(name, word), 0.0) for word in self._words(name)] for name in self.weights]
        least = smallest(sizes) + self._rest()
        if least <= room:
            return least
        around = self.floats.path.stat().st_size - sum(t.size_bytes for t in self.floats.tensors.values())
        count = sum(tensor.count for tensor in self.floats.tensors.values())
        raise ConfigurationError(
            f"no choice of types is so small: the smallest file has {(least + around) / 1e6:.3f} MB, "
            f"{8 * least / count:.3f} bits per weight",
            where="quantize.target",
            remedy="raise the target, allow smaller types in `candidates`, or prune the model",
        )

    def _main_mix(self, chosen: Sequence[Choice]) -> str:
        """What the file's metadata says of its type: the mix named after the type with most weights."""
        shares: dict[str, int] = {}
        for name, choice in zip(self.weights, chosen, strict=True):
            shares[choice.type] = shares.get(choice.type, 0) + self.floats.tensors[name].count
        mixes = {word: mix for mix, word in MIXES.items()}
        return mixes.get(max(shares, key=lambda word: shares[word]), "q8_0")

    # -- what it is worth

    def _best(self, mixed: GgufFile, room: int, scratch: Path) -> tuple[GgufFile, dict[str, Any]]:
        """The mix, or one of llama.cpp's own that is no larger and nearer to the float model on validation text."""
        inputs = self._held_out()
        files, measured = {"mixed": mixed}, {"mixed": _kld(mixed.path, self.floats.path, inputs)}
        for rival, types in self._rivals(room).items():
            recipe = Recipe(rival, types, self.importance.inputs)
            files[rival] = quantize(self.floats.path, scratch / f"{rival}.gguf", recipe)
            measured[rival] = _kld(files[rival].path, self.floats.path, inputs)
        best = min(measured, key=lambda name: measured[name])
        if best != "mixed":
            self.job.progress.warn(
                f"llama.cpp's {best} is nearer to the float model on validation text than the mix chosen here "
                f"({measured[best]:.4f} against {measured['mixed']:.4f} nats), so it was taken"
            )
        return files[best], {
            "measured_tokens": int(sum(int(one["attention_mask"].sum()) for one in inputs)),
            "measured_kld": measured,
            "measured_bytes": {name: file.path.stat().st_size for name, file in files.items()},
            "taken": best,
        }

    def _rivals(self, room: int) -> dict[str, dict[str, str]]:
        """The largest mixes of llama.cpp's that fit, and their types."""
        found, sizes = {}, {}
        for mix in MIXES:
            recipe = mixed_with(self.floats, self.own, Recipe(mix, {}, self.importance.inputs))
            planned = planned_types(self.floats, recipe)
            types = {name: planned[name] for name in self.weights}
            sizes[mix] = self._rest() + sum(self._size(name, word) for name, word in types.items())
            if sizes[mix] <= room and not BARRED & set(types.values()):
                found[mix] = types
        return {mix: found[mix] for mix in sorted(found, key=lambda mix: -sizes[mix])[:RIVALS]}

    def _held_out(self) -> list[dict[str, np.ndarray]]:
        data = self.job.data
        size = data.size("validation")
        rows = np.linspace(0, size - 1, num=min(HELD_OUT, size), dtype=np.int64).tolist()
        batches = [data.batch("validation", [row]) for row in rows]
        return [{name: batch[name].numpy() for name in ("input_ids", "attention_mask")} for batch in batches]


def rows_of(file: GgufFile, name: str) -> Iterator[np.ndarray]:
    """A weight multiplied out, float32, some rows at a time: (rows, columns)."""
    gguf = require("gguf", EXTRA)
    tensor = file.tensors[name]
    stored = file.stored(name)
    step = max(1, CHUNK_VALUES // tensor.shape[-1])
    for start in range(0, tensor.shape[0], step):
        part = gguf.quants.dequantize(stored[start : start + step], gguf.GGMLQuantizationType[tensor.type])
        yield np.asarray(part, dtype=np.float32).reshape(-1, tensor.shape[-1])


def _kld(file: Path, floats: Path, inputs: Sequence[Mapping[str, np.ndarray]]) -> float:
    """Mean divergence per token from the float file's answers.

    Those are asked for again for each file: of a large vocabulary, answers about all windows would fill the memory.
    """
    with closing(LlamaCppSession(floats)) as reference, closing(LlamaCppSession(file)) as session:
        found = []
        for one in inputs:
            read = one["attention_mask"][0] > 0
            found.append(divergence(*(asked.run(dict(one))[0][read] for asked in (reference, session))))
    return float(np.concatenate(found).mean())
