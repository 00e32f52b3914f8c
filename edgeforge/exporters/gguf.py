"""GGUF files: one `model.gguf` for llama.cpp and what is built on it, with the tokenizer and chat template inside."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge import gguf_file, gguf_names
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.exporters import Exporter
from edgeforge.exporters._gguf_writer import Stored, block_type, blocks, floats, write
from edgeforge.models import gguf_sizes, gguf_tokenizer, quantized_weights, tokenizer
from edgeforge.models.folder import WRITE_AGAIN, tensor_shapes, weight_files

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

    from edgeforge.models.gguf_sizes import Sizes
    from edgeforge.models.quantized_weights import QuantizedWeight

OUTPUT, TABLE = "lm_head.weight", "model.embed_tokens.weight"
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q4_0": 2, "Q8_0": 7}
"""``general.file_type``: what most weights are."""
LAYOUT_VERSION = 2
"""``general.quantization_version``: of the layout of blocks."""


class Gguf(Exporter):
    """The Llama, Mistral, Qwen2 and Qwen3 families. Norms and biases stay float32.

    Layers of different widths, which no Hugging Face config can say, are written under llama.cpp's architecture
    `deci`. Weights that a weight-only quantizer chose in symmetric blocks are written as its integers, Q4_0 or Q8_0;
    the k-quants are the quantizer `gguf_k`. Attention windows are not written: texts end where the window does.
    """

    kind: Literal["gguf"] = "gguf"
    type: Literal["f16", "bf16", "f32"] = Field(
        default="f16", description="The numbers that matrices are written in; bf16 has float32's range."
    )

    answers_per: ClassVar[frozenset[str]] = frozenset({"token"})
    needs: ClassVar[tuple[str, ...]] = ("gguf", "tokenizers", "transformers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.architectures._decoder",
        "edgeforge.exporters._gguf_writer",
        "edgeforge.gguf_names",
        "edgeforge.models.gguf_sizes",
        "edgeforge.models.gguf_tokenizer",
        "edgeforge.models.loading",
        "edgeforge.models.quantized_weights",
        "edgeforge.models.tokenizer",
    )

    def export(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Exporter. Raises ModelError for another family, another kind of tokenizer, and too large numbers."""
        from edgeforge.models import loading

        config = loading.read_config(model.path)
        sizes = _sizes(config, model.path)
        tensors = _tensors(model.path, sizes, self.type.upper())
        kinds = Counter(tensor.type for tensor in tensors.values())
        most = max((kind for kind in kinds if kind != "F32"), key=lambda kind: kinds[kind], default="F32")
        metadata = {
            "general.type": "model",
            "general.name": config.model_type,
            "general.file_type": FILE_TYPES[most],
            "general.quantization_version": LAYOUT_VERSION,
            **sizes.metadata(),
            **gguf_tokenizer.describe(model.path, sizes.vocabulary),
        }
        size = write(job.folder / gguf_file.MODEL, sizes.architecture, metadata, tensors)
        tokenizer.carry(model.path, job.folder)
        written = gguf_file.read(job.folder / gguf_file.MODEL)
        return {
            "bytes": size,
            "architecture": sizes.architecture,
            "types": written.types(),
            "bits_per_weight": round(written.bits_per_weight(), 4),
        }


def _sizes(config: PretrainedConfig, folder: Path) -> Sizes:
    held = tensor_shapes(folder)
    if config.tie_word_embeddings:
        held.pop(OUTPUT, None)  # the embedding table once more
    elif OUTPUT not in held:
        raise ModelError(f"{OUTPUT} is missing from the weights", where=str(folder), remedy=WRITE_AGAIN)
    return gguf_sizes.of_config(config, held, where=str(folder))


def _tensors(folder: Path, sizes: Sizes, kind: str) -> dict[str, Stored]:
    """Every tensor by llama.cpp's name, to be read when its turn to be written comes."""
    found: dict[str, Stored] = {}
    factors = sizes.rope_factors()
    if factors is not None:
        found[gguf_names.ROPE_FACTORS] = Stored("F32", factors.shape, lambda: factors)
    quantized = quantized_weights.read(folder)
    weights = dict(quantized.weights) if quantized is not None else {}
    if OUTPUT in weights and OUTPUT not in sizes.tensors():
        weights.setdefault(TABLE, weights[OUTPUT])  # one table under two names, and a quantizer takes either
    where = _places(folder)
    for name, shape in sizes.tensors().items():
        own = gguf_names.to_gguf(name)
        assert own is not None
        if name in weights:
            found[own] = _in_blocks(weights[name], name, sizes)
        else:
            number = "F32" if len(shape) == 1 else kind
            found[own] = Stored(number, shape, functools.partial(_floats, where[name], name, sizes, number))
    return found


def _places(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    from safetensors import safe_open

    found = {}
    for path in weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _floats(path: Path, name: str, sizes: Sizes, kind: str) -> np.ndarray:
    return floats(_turned(_read(path, name), name, sizes), kind, name=name)


def _in_blocks(weight: QuantizedWeight, name: str, sizes: Sizes) -> Stored:
    kind = block_type(weight, name=name)
    assert isinstance(weight, quantized_weights.LinearWeight)

    def values() -> np.ndarray:
        integers, scales = (_turned(part, name, sizes) for part in (weight.integers, weight.scales))
        return blocks(quantized_weights.LinearWeight(weight.bits, integers, scales))

    return Stored(kind, weight.shape, values)


def _read(path: Path, name: str) -> np.ndarray:
    """One tensor, float32. The file is opened for it alone: what a mapping has read counts as memory until it ends."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name).float().numpy()  # type: ignore[no-any-return]


def _turned(rows: np.ndarray, name: str, sizes: Sizes) -> np.ndarray:
    """Rows in the order of llama.cpp's rotary embedding."""
    if sizes.architecture in gguf_names.PAIRED and gguf_names.is_turned(name):
        return gguf_names.paired(rows, sizes.head_size)
    return rows
