"""Artifacts: sealed, immutable folders. Every step reads some and writes one; nothing else passes between steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Format = Literal["torch", "onnx", "openvino", "coreml", "gguf", "dataset", "logits", "measurements"]

MANIFEST = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """A sealed folder and what is known of it.

    `files` maps each relative path to its sha256; `digest` is taken over the sorted lines ``path sha256``.
    `facts` holds what the step measured or counted (params, macs, bytes, coverage, ...), as plain JSON.
    """

    key: str
    kind: str
    format: str
    path: Path
    digest: str
    files: Mapping[str, str]
    parents: Mapping[str, str]
    recipe: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all files (bytes)."""
        return sum((self.path / name).stat().st_size for name in self.files)

    def read_json(self, name: str) -> Any:
        """One of the artifact's own JSON files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))


def hash_file(path: Path) -> str:
    """sha256 (hex) of one file, read in blocks."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def hash_folder(path: Path) -> dict[str, str]:
    """Relative POSIX path -> sha256 of every file below `path`, sorted."""
    return {
        item.relative_to(path).as_posix(): hash_file(item)
        for item in sorted(path.rglob("*"))
        if item.is_file() and item != path / MANIFEST
    }


def digest_files(files: Mapping[str, str]) -> str:
    """sha256 over the sorted lines ``path sha256``: the digest of a folder."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
