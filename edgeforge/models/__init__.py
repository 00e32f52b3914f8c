"""Where a model comes from: one file per kind. `loading` reads and writes the torch artifacts they become."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeforge.core.spec import Spec, digest_of

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface, Task

NOT_KINDS = frozenset(
    {
        "batch_norm",
        "buckets",
        "building",
        "chat",
        "example",
        "exits",
        "folder",
        "footprint",
        "gguf_sizes",
        "gguf_tokenizer",
        "loading",
        "operations",
        "outputs",
        "quantized_weights",
        "surgery",
        "tokenizer",
        "tokenizer_settings",
        "vocabulary",
    }
)
"""Files of this folder that serve the kinds and are none themselves."""


class Model(Spec):
    """Base of every source of a model."""

    kind: str

    def digest(self) -> str:
        """sha256 of all that decides the model beside the task and the seed: the spec, and the content of its files."""
        return digest_of(self.model_dump(mode="json"))

    def folder(self) -> Path | None:
        """Where the model's own files lie; None for a new one. Raises ModelError."""
        return None

    def untrained(self) -> bool:
        """Whether its answers mean nothing before it is trained."""
        return False

    def build(self, task: Task, interface: Interface) -> PreTrainedModel:
        """The model in float32 on the CPU. New weights follow torch's global seed. Raises ModelError."""
        raise NotImplementedError
