"""What the stages that ask a file on its own runtime share: the formats, and what decides the answers."""

from __future__ import annotations

import pkgutil
import sys
from typing import Any

from edgeforge import runtimes

FORMATS = frozenset({"torch", "onnx", "openvino", "coreml", "gguf"})
MODULES = (
    "edgeforge.models.loading",
    "edgeforge.openvino_graph",
    *(name for _, name, package in pkgutil.walk_packages(runtimes.__path__, "edgeforge.runtimes.") if not package),
)


def identity() -> dict[str, Any]:
    """Whether Apple's own runtime is at hand: its answers are never taken for the reference evaluator's."""
    return {"apple": sys.platform == "darwin"}
