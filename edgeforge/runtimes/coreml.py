"""Apple's Core ML. Runs on macOS; elsewhere `coreml_reference` computes what a file says."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.runtimes import Runtime
from edgeforge.runtimes._coreml import (
    IMAGE,
    LABEL,
    LABELS_KEY,
    MANIFEST,
    MODEL_FILE,
    PACKAGE,
    PREPROCESSING_KEY,
    PROBABILITIES,
    RECIPE_KEY,
    TOKENS_KEY,
    VERSION_KEY,
    WEIGHTS_FILE,
    WEIGHTS_FOLDER,
    CoremlSession,
    load_coremltools,
    session_of,
)

if TYPE_CHECKING:
    from edgeforge.runtimes import Session

__all__ = [
    "IMAGE",
    "LABEL",
    "LABELS_KEY",
    "MANIFEST",
    "MODEL_FILE",
    "PACKAGE",
    "PREPROCESSING_KEY",
    "PROBABILITIES",
    "RECIPE_KEY",
    "TOKENS_KEY",
    "VERSION_KEY",
    "WEIGHTS_FILE",
    "WEIGHTS_FOLDER",
    "Coreml",
    "CoremlSession",
    "load_coremltools",
]


class Coreml(Runtime):
    """Core ML through coremltools, on macOS."""

    kind: Literal["coreml"] = "coreml"
    format: ClassVar[str] = "coreml"

    def available(self) -> str | None:
        if sys.platform != "darwin":
            return "Core ML runs on Apple devices only"
        return None if find_spec("coremltools") else "coremltools is not installed (pip install 'edgeforge[coreml]')"

    def prepare(self) -> None:
        load_coremltools()

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """See Runtime. `threads` has no effect: Core ML takes no such setting.

        Raises EnvironmentProblem off macOS, MissingExtraError without coremltools, ModelError for a broken package.
        """
        if reason := self.available():
            raise EnvironmentProblem(reason, where=str(folder), remedy="open it on a Mac")
        coremltools = load_coremltools()
        try:
            model = coremltools.models.MLModel(str(folder / PACKAGE))
            return session_of(model, model.user_defined_metadata, model.get_spec().description.input)
        except (RuntimeError, OSError, KeyError, ValueError) as error:
            raise ModelError(f"Core ML cannot open it: {error}", where=str(folder / PACKAGE)) from error

    def context_length(self, folder: Path) -> int | None:
        """See Runtime: how many tokens the package's state has room for."""
        spec = load_coremltools().utils.load_spec(str(folder / PACKAGE))
        found = json.loads(spec.description.metadata.userDefined[TOKENS_KEY] or "{}").get("context")
        return int(found) if found is not None else None
