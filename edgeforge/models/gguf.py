"""A language model from a GGUF file: its weights multiplied out, its tokenizer rebuilt."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge import gguf_file, gguf_names
from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.extras import require
from edgeforge.core.spec import digest_of, source_digest
from edgeforge.models import Model, gguf_sizes, gguf_tokenizer, tokenizer
from edgeforge.models.folder import CONFIG

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface, Task
    from edgeforge.gguf_file import GgufFile
    from edgeforge.models.gguf_sizes import Sizes

Stamp = tuple[str, int, int]
"""A file as the disk knows it: its path, size (bytes) and time of change (ns)."""


class Gguf(Model):
    """The Llama, Mistral, Qwen2 and Qwen3 families (SmolLM2 is a Llama), in any type that has a known meaning.

    Weights become the float32 numbers that the file stands for. Byte-level BPE tokenizers only.
    """

    kind: Literal["gguf"] = "gguf"
    path: str = Field(min_length=1, description="A .gguf file.")

    needs: ClassVar[tuple[str, ...]] = ("gguf", "tokenizers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.gguf_file",
        "edgeforge.gguf_names",
        "edgeforge.models.building",
        "edgeforge.models.gguf_sizes",
        "edgeforge.models.gguf_tokenizer",
        "edgeforge.models.loading",
    )

    def digest(self) -> str:
        stamp = self._stamp()
        _checked(stamp)
        return digest_of({"kind": self.kind, "file": _digest(stamp)})

    def folder(self) -> Path:
        """A folder in the user's cache with the tokenizer that the file's metadata describe."""
        file, sizes = _checked(self._stamp())
        said = sorted((key, value) for key, value in file.metadata.items() if key.startswith("tokenizer."))
        sources = [source_digest(module) for module in ("edgeforge.models.gguf", "edgeforge.models.gguf_tokenizer")]
        key = hashlib.sha256(repr((said, sizes, sources)).encode("utf-8", "surrogateescape")).hexdigest()
        folder = _cache() / key
        if not tokenizer.present(folder):
            _write_tokenizer(file, sizes, folder)
        return folder

    def build(self, task: Task, interface: Interface) -> PreTrainedModel:
        from edgeforge.models.building import adapt

        file, sizes = _checked(self._stamp())
        return adapt(_filled(file, sizes), task, interface, new_head=False, where=f"model {self.path}")

    def _stamp(self) -> Stamp:
        path = Path(self.path).expanduser()
        try:
            status = path.stat()
        except OSError as error:
            raise ModelError(
                f"the file cannot be read: {error.strerror}",
                where=f"model {self.path}",
                remedy="check the path; it is taken from the folder the command runs in",
            ) from error
        return str(path.absolute()), status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _checked(stamp: Stamp) -> tuple[GgufFile, Sizes]:
    """The file and its model's sizes, once all is known to be there and readable. Raises ModelError."""
    file = gguf_file.read(Path(stamp[0]))
    sizes = gguf_sizes.of_file(file)
    _check_types(file)
    return file, sizes


@functools.lru_cache(maxsize=16)
def _digest(stamp: Stamp) -> str:
    return hash_file(Path(stamp[0]))


def _check_types(file: GgufFile) -> None:
    """Raise ModelError for a type of numbers that cannot be multiplied out, before any work is planned on it."""
    import numpy as np

    gguf = require("gguf", gguf_file.EXTRA)
    for name in file.types():
        kind = gguf.GGMLQuantizationType[name]
        try:
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError as error:
            raise ModelError(
                f"its tensors of type {name} cannot be multiplied out",
                where=str(file.path),
                remedy="use a file of another quantization",
            ) from error


# -- the tokenizer


def _cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("edgeforge", appauthor=False) / "gguf"


def _write_tokenizer(file: GgufFile, sizes: Sizes, folder: Path) -> None:
    """Write beside the place, then rename: the folder is whole or absent."""
    # The part of a config by which tasks know what they read texts for.
    told = {"model_type": sizes.model_type, "vocab_size": sizes.vocabulary, "max_position_embeddings": sizes.context}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".draft-"))
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        gguf_tokenizer.write(file, draft)
        (draft / CONFIG).write_text(json.dumps(told), encoding="utf-8")
        for item in draft.iterdir():
            with item.open("rb") as stream:
                os.fsync(stream.fileno())
        draft.rename(folder)
    except OSError as error:
        if not tokenizer.present(folder):  # else another process was faster
            raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _cannot_write(folder: Path, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the tokenizer cannot be written: {error.strerror}",
        where=str(folder),
        remedy="is there room on the disk, and a cache folder that may be written?",
    )


# -- the weights


def _filled(file: GgufFile, sizes: Sizes) -> PreTrainedModel:
    """The model with the file's weights; memory for one copy of them, and for one tensor more."""
    import transformers

    from edgeforge.models import loading

    special = gguf_tokenizer.special_ids(file)
    ids: dict[str, Any] = {f"{role}_id": special.get(role) for role in ("bos_token", "pad_token")}
    endings = gguf_tokenizer.ending_ids(file)
    config = sizes.config(**ids, eos_token_id=endings[0] if endings else None)
    cls = getattr(transformers, config.architectures[0])
    blueprint = loading.on_meta(cls, config)
    if not sizes.uniform:
        _narrow(blueprint, sizes)
    model = loading.fill(blueprint, {name: _weight(file, sizes, name) for name in sizes.tensors()})
    model.generation_config.eos_token_id = endings or None
    return loading.made_ready(model)


def _narrow(blueprint: PreTrainedModel, sizes: Sizes) -> None:
    """Give each layer of the blueprint its own widths."""
    from edgeforge.models.surgery import LayerShape, resize

    tensors = sizes.tensors()
    changes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in blueprint.named_parameters():
        if tuple(parameter.shape) != tensors[name]:
            module, _, own = name.rpartition(".")
            changes.setdefault(module, {})[own] = tensors[name]
    resize(blueprint, {module: LayerShape(tensors=own) for module, own in changes.items()})
    for layer, (heads, groups) in enumerate(zip(sizes.heads, sizes.key_value_heads, strict=True)):
        blueprint.get_submodule(f"model.layers.{layer}.self_attn").num_key_value_groups = heads // groups


def _weight(file: GgufFile, sizes: Sizes, name: str) -> torch.Tensor:
    """One tensor, by its Hugging Face name, float32."""
    import numpy as np
    import torch

    own = gguf_names.to_gguf(name)
    assert own is not None
    values = file.dequantized(own)
    if file.architecture in gguf_names.PAIRED and gguf_names.is_turned(name):
        values = gguf_names.unpaired(values, sizes.head_size)
    return torch.from_numpy(np.ascontiguousarray(values))
