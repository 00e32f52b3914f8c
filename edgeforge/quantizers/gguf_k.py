"""GGUF files with fewer bits, written by llama.cpp itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge import gguf_file
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ConfigurationError, ModelError
from edgeforge.core.stage import Job
from edgeforge.gguf_file import MODEL, GgufFile
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers import _importance as importance_file
from edgeforge.quantizers._gguf_mix import Mixer
from edgeforge.quantizers._gguf_types import MIXES, block_of, is_quantizable, mixed_with
from edgeforge.quantizers._importance import Importance
from edgeforge.runtimes._llama.quantization import Recipe, fallen_back, quantize

if TYPE_CHECKING:
    from typing_extensions import Self

Mix = Literal[
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q5_k_s",
    "q5_0",
    "q4_k_m",
    "q4_k_s",
    "q4_0",
    "iq4_nl",
    "iq4_xs",
    "q3_k_l",
    "q3_k_m",
    "q3_k_s",
    "iq3_m",
    "iq3_s",
    "q2_k",
]
Type = Literal["f16", "q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_0", "iq4_nl", "iq4_xs", "q3_k", "iq3_s", "q2_k"]


class GgufK(Quantizer):
    """llama.cpp's quantization: weights in blocks of 32 or 256 with a scale each, in its own mixes or one chosen here.

    `type` is one of llama.cpp's mixes. Types whose names have a K or an X need rows of a multiple of 256 weights; where
    a model has others, llama.cpp takes another type, often a larger one, which is listed and warned of; a table of
    embeddings that is the output's too is to be q6_k in all mixes but q8_0, and becomes q8_0. With
    `target_size_mb` or `target_bpw` each tensor gets its own type: those that cost least divergence from the float
    model, estimated from the Fisher information, in at most that size; the result is measured on validation windows and
    compared with llama.cpp's own mixes that fit, the best of which is kept if it is better.
    """

    kind: Literal["gguf_k"] = "gguf_k"
    type: Mix | None = Field(default=None, description="llama.cpp's mix; absent, and without a target: q4_k_m.")
    target_size_mb: float | None = Field(
        default=None, gt=0, description="Choose types tensor by tensor, for a file of at most this size (10^6 bytes)."
    )
    target_bpw: float | None = Field(
        default=None, gt=0, description="The same, for at most so many bits per weight; metadata is not counted."
    )
    tensors: dict[str, Type] = Field(
        default={},
        description="Types of their own for some tensors, by llama.cpp's name or pattern (`blk.*.ffn_down.weight`); "
        "the longest match counts.",
    )
    candidates: tuple[Type, ...] = Field(
        default=("q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_0", "iq4_nl", "iq4_xs", "q3_k", "iq3_s", "q2_k"),
        min_length=1,
        description="What a target may choose from.",
    )
    importance: bool | None = Field(
        default=None,
        description="Weigh errors by the size of the inputs on training text (llama.cpp's importance matrix). Absent: "
        "for types below 6 bits, and always with a target.",
    )
    importance_tokens: int = Field(default=16384, ge=1, description="Tokens of training text that is measured on.")

    accepts: ClassVar[frozenset[str]] = frozenset({"gguf"})
    writes: ClassVar[frozenset[str]] = frozenset({"gguf"})
    needs: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python", "numpy")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.gguf_file",
        "edgeforge.quantizers._allocation",
        "edgeforge.quantizers._gguf_mix",
        "edgeforge.quantizers._gguf_types",
        "edgeforge.quantizers._importance",
        "edgeforge.runtimes._llama.divergence",
        "edgeforge.runtimes._llama.model",
        "edgeforge.runtimes._llama.quantization",
        "edgeforge.runtimes._llama.session",
    )

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        wishes = {name: getattr(self, name) for name in ("type", "target_size_mb", "target_bpw")}
        if len(said := [name for name, value in wishes.items() if value is not None]) > 1:
            raise ValueError(f"give one of {', '.join(said)}")
        if self._chooses and self.importance is False:
            raise ValueError("a target goes by what is measured on training text: leave `importance` out")
        return self

    @property
    def _chooses(self) -> bool:
        return self.target_size_mb is not None or self.target_bpw is not None

    def calibration_tokens(self) -> int:
        small = any(word not in ("f16", "q8_0", "q6_k") for word in (self.type or "q4_k_m", *self.tensors.values()))
        wanted = self._chooses or (small if self.importance is None else self.importance)
        return self.importance_tokens if wanted else 0

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Quantizer. Raises ConfigurationError where it would need the importance of weights."""
        return self.quantize_with({"model": model}, job)

    def quantize_with(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        """Facts: `types` (tensors of each), `tensors` (the type of every one), `fallbacks`, `bits_per_weight`,
        `file_bits_per_weight` (metadata and tokenizer counted), `importance_tokens`; with a target, `allocation`.

        Raises ConfigurationError for a pattern that matches nothing, a type that a tensor's rows do not divide, and a
        target below what any choice of types reaches (the smallest is named).
        """
        source = inputs["model"].path
        floats = gguf_file.read(source / MODEL)
        _check_float(floats)
        importance = self._importance(inputs, floats)
        own = self._own_types(floats)
        more: dict[str, Any] = {}
        fallbacks: dict[str, str] = {}
        if self._chooses:
            assert importance is not None
            mixer = Mixer(floats, importance, job, candidates=self.candidates, own=own)
            found, more["allocation"] = mixer.write(job.folder / MODEL, self._room(floats))
        else:
            recipe = Recipe(self.type or "q4_k_m", {}, importance.inputs if importance else {})
            found = quantize(source / MODEL, job.folder / MODEL, mixed_with(floats, own, recipe))
            fallbacks = _fallbacks(floats, found, recipe, own)
        for name in inputs["model"].files:
            if name != MODEL:
                shutil.copyfile(source / name, job.folder / name)
        if fallbacks:
            job.progress.warn(_fallback_warning(fallbacks, found, self.type or "q4_k_m"))
        tokens = inputs["importance"].facts.get("tokens") if importance else None
        return {**_facts(found), "fallbacks": fallbacks, "importance_tokens": tokens, **more}

    def _importance(self, inputs: Mapping[str, Artifact], floats: GgufFile) -> Importance | None:
        """Raises ConfigurationError where it was not measured, ModelError where it is another model's."""
        if not self.calibration_tokens():
            return None
        if "importance" not in inputs:
            raise ConfigurationError(
                "gguf_k weighs errors by what is measured on training text, and nothing was measured",
                where="quantize.importance",
                remedy="run it from a pipeline, which measures it, or set `importance: false`",
            )
        importance = importance_file.read(inputs["importance"].path)
        for part, axis in ((importance.inputs, 1), (importance.columns, 1), (importance.rows, 0)):
            for name, values in part.items():
                if name not in floats.tensors or floats.tensors[name].shape[axis] != len(values):
                    raise ModelError(f"the importance was measured on another model: {name} is not of this shape here")
        return importance

    def _own_types(self, floats: GgufFile) -> dict[str, str]:
        """Tensor -> the type that `tensors` gives it. Raises ConfigurationError."""
        quantizable = [name for name, tensor in floats.tensors.items() if is_quantizable(tensor)]
        own: dict[str, str] = {}
        for pattern in sorted(self.tensors, key=len):
            matched = [name for name in quantizable if fnmatchcase(name, pattern)]
            if not matched:
                raise ConfigurationError(
                    f"'{pattern}' matches no weight",
                    where="quantize.tensors",
                    remedy=f"weights have names such as {quantizable[0]}, {quantizable[-1]}",
                )
            own.update(dict.fromkeys(matched, self.tensors[pattern]))
        for name, word in own.items():
            if (columns := floats.tensors[name].shape[-1]) % block_of(word)[0]:
                raise ConfigurationError(
                    f"{name} cannot be {word}: its rows have {columns} weights, no multiple of {block_of(word)[0]}",
                    where="quantize.tensors",
                    remedy="give it q8_0, q5_0, iq4_nl or q4_0, which need a multiple of 32",
                )
        return own

    def _room(self, floats: GgufFile) -> int:
        """Bytes that all tensors together may take."""
        if self.target_bpw is not None:
            return int(self.target_bpw * sum(tensor.count for tensor in floats.tensors.values()) / 8)
        assert self.target_size_mb is not None
        return int(self.target_size_mb * 1e6) - _around_tensors(floats)


def _check_float(file: GgufFile) -> None:
    for name, tensor in file.tensors.items():
        if tensor.type not in ("F32", "F16", "BF16"):
            raise ModelError(
                f"{name} is {tensor.type} already; quantizing again would add one rounding to another",
                where=str(file.path),
                remedy="start from a float file: export: {kind: gguf, type: f16}",
            )


def _around_tensors(file: GgufFile) -> int:
    """Bytes of a file that are not its tensors': metadata, and what aligns each tensor."""
    held = sum(tensor.size_bytes for tensor in file.tensors.values())
    return file.path.stat().st_size - held + 32 * len(file.tensors) + 512


def _fallbacks(floats: GgufFile, file: GgufFile, recipe: Recipe, own: Mapping[str, str]) -> dict[str, str]:
    """Tensors whose rows the blocks of the type that the mix has for them do not divide -> what they became."""
    fallen = set(fallen_back(floats, recipe))
    if block_of(MIXES[recipe.mix])[0] == 256:  # llama.cpp says nothing of the output, which it makes q8_0 at once
        fallen |= {name for name, tensor in file.tensors.items() if is_quantizable(tensor) and tensor.shape[-1] % 256}
    return {name: tensor.type.lower() for name, tensor in file.tensors.items() if name in fallen - own.keys()}


def _fallback_warning(fallbacks: Mapping[str, str], file: GgufFile, mix: str) -> str:
    columns = sorted({file.tensors[name].shape[-1] for name in fallbacks})
    became = {word: sum(1 for found in fallbacks.values() if found == word) for word in sorted(set(fallbacks.values()))}
    listed = ", ".join(f"{count} {word}" for word, count in became.items())
    total = sum(1 for tensor in file.tensors.values() if is_quantizable(tensor))
    return (
        f"{mix}: {len(fallbacks)} of {total} weights have rows of {', '.join(map(str, columns))}, no multiple of 256, "
        f"so llama.cpp made them {listed}: {file.bits_per_weight():.2f} bits per weight"
    )


def _facts(file: GgufFile) -> dict[str, Any]:
    weights = {name: tensor for name, tensor in file.tensors.items() if is_quantizable(tensor)}
    count = sum(tensor.count for tensor in file.tensors.values())
    size = file.path.stat().st_size
    covered = sum(tensor.count for tensor in weights.values() if tensor.type not in ("F32", "F16", "BF16"))
    words = [tensor.type.lower() for tensor in weights.values()]
    return {
        "scheme": "weight_only",
        "types": {word: words.count(word) for word in sorted(set(words))},
        "tensors": {name: tensor.type.lower() for name, tensor in weights.items()},
        "bits_per_weight": round(file.bits_per_weight(), 4),
        "file_bits_per_weight": round(8 * size / count, 4),
        "coverage_percent": 100 * covered / count,
        "bytes": size,
    }
