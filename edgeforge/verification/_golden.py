"""A few real inputs with what the file answered: enough to ask it again on another machine, without data or store.

``golden.npz`` holds plain arrays: ``input.<name>`` for every input of the model, as ``Session.run`` takes them;
``outputs``, what the file gave when it was verified; ``float_outputs``, what the float torch model gives; and
``about``, JSON with the runtime that answered.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.core.artifact import Artifact, hash_file
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.runtimes import runtime_for
from edgeforge.runtimes.torch_eager import TorchEager
from edgeforge.verification import real_inputs

NAME = "golden.npz"
SAMPLES = 8
MOST_BYTES = 2_000_000
"""Of the arrays before compression; a model whose single sample is larger has no such file."""

PREFIX = "input."


@dataclass(frozen=True)
class Golden:
    """`inputs` by name, (N, ...); `outputs` and `float_outputs`, (N, ...)."""

    inputs: Mapping[str, np.ndarray]
    outputs: np.ndarray
    float_outputs: np.ndarray
    about: Mapping[str, Any]


def write(inputs: Mapping[str, Artifact], job: Job) -> dict[str, Any] | None:
    """Ask the file and the float model, and write what they say into ``job.folder``; facts, or None where it cannot
    be asked here or its answers are too large."""
    file = inputs["file"]
    runtime = runtime_for(file.format, timed=False)
    if runtime is None or runtime.available() is not None:
        return None
    samples, _ = real_inputs(job.data)
    one = {name: array[:1] for name, array in samples.items()}
    try:
        session = runtime.open(file.path)
        each = sum(array.nbytes for array in one.values()) + 2 * session.run(one).nbytes
        count = min(SAMPLES, MOST_BYTES // each)
        if not count:
            return None
        few = {name: array[:count] for name, array in samples.items()}
        arrays = {
            **{PREFIX + name: array for name, array in few.items()},
            "outputs": session.run(few),
            "float_outputs": TorchEager().open(inputs["model"].path).run(few),
            "about": np.array(json.dumps({"runtime": runtime.kind, "format": file.format})),
        }
    except ModelError:
        return None  # what does not run has failed its checks already
    np.savez_compressed(job.folder / NAME, **arrays)  # type: ignore[arg-type]  # stub: all but one
    return {"samples": count, "runtime": runtime.kind, "sha256": hash_file(job.folder / NAME)}


def read(path: Path) -> Golden:
    """What `write` left. Raises ModelError for anything else; pickles are never loaded."""
    try:
        with np.load(path, allow_pickle=False) as found:
            inputs = {name.removeprefix(PREFIX): found[name] for name in found.files if name.startswith(PREFIX)}
            about = json.loads(str(found["about"]))
            return Golden(inputs, found["outputs"], found["float_outputs"], about)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"not the recorded answers of a file: {error}", where=str(path)) from error
