"""What every format promises: free axes, and the files beside the model: labels, preprocessing, tokenizer."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.models import tokenizer_settings
from edgeforge.models.folder import read_json
from edgeforge.verification import Check
from edgeforge.verification._opened import Inputs, Opened, batches_of

MASK = "attention_mask"

_OF_THE_LIBRARY = frozenset(
    {"dtype", "torch_dtype", "transformers_version", "_name_or_path", "architectures", "pruned_heads"}
)
"""Entries of a config that say who wrote it, or to torch alone what shapes its weights have."""


def any_batch(opened: Opened) -> Check:
    """Three samples together give what each gives alone."""
    samples = batches_of(opened.samples, 3)[0]
    return _agree(opened, "any batch size", [samples], batches_of(samples, 1))


def any_length(opened: Opened) -> Check:
    """The shortest texts, padded as all are and cut to the longest of them: padding has no say."""
    lengths = opened.samples[MASK].sum(axis=1)
    shortest = np.argsort(lengths, kind="stable")[:3]
    padded = {name: array[shortest] for name, array in opened.samples.items()}
    cut = {name: array[:, : int(lengths[shortest].max())] for name, array in padded.items()}
    return _agree(opened, "any length", [padded], [cut])


def _agree(opened: Opened, name: str, one: Sequence[Inputs], other: Sequence[Inputs]) -> Check:
    """The same samples in batches of other shapes run, and (but for scales found at run time) give the same."""
    try:
        first, second = (np.concatenate([opened.session.run(batch) for batch in batches]) for batches in (one, other))
    except ModelError as error:
        return Check(name, False, error.what)
    if first.shape != second.shape:
        return Check(name, False, f"the same samples give shape {first.shape}, and {second.shape}")
    if opened.batch_matters:
        return Check(name, True, "scales are found at run time and depend on the batch")
    apart = float(np.abs(first - second).max()) if np.isfinite(first).all() and np.isfinite(second).all() else np.inf
    # A batch may be summed in another order; a value on the edge of a step may then take the other one.
    limit = (0.05 if opened.quantized else 1e-4) * max(float(np.abs(second).max()), 1e-6)
    return Check(name, apart <= limit, f"the same samples differ by {apart:.3g}")


def companions(opened: Opened) -> Check:
    """``config.json`` is the model's with the labels in order; ``preprocessor_config.json`` says how images become
    inputs."""
    name = "companion files"
    for file, wanted in _wanted_companions(opened).items():
        try:
            content = json.loads((opened.folder / file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return Check(name, False, f"{file} cannot be read: {error}")
        if not isinstance(content, dict):
            return Check(name, False, f"{file} holds no settings")
        for key, value in wanted.items():
            if content.get(key) != value:
                return Check(name, False, f"{file}: '{key}' is {content.get(key)!r}, expected {value!r}")
    return Check(name, True)


def _wanted_companions(opened: Opened) -> dict[str, dict[str, Any]]:
    """File name -> entries it must have."""
    interface = opened.interface
    labels = {str(index): label for index, label in enumerate(interface.labels)}
    model = read_json(opened.inputs["reference"].path / "config.json")
    kept = {key: value for key, value in model.items() if key not in _OF_THE_LIBRARY}
    config = {**kept, "id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
    wanted = {"config.json": config if labels else kept}
    if interface.pixels is not None:
        in_color = {"do_convert_rgb": interface.image_shape[0] == 3}
        wanted[onnx_graph.PREPROCESSOR] = json.loads(json.dumps({**onnx_graph.preprocessor(interface), **in_color}))
    return wanted


def tokenizer_files(opened: Opened) -> Check:
    """The file's texts become the ids that the model was made for."""
    name = "tokenizer"
    try:
        same = tokenizer_settings.is_as_shipped(opened.folder, opened.inputs["model"].path, opened.interface)
    except ModelError as error:
        return Check(name, False, error.what)
    return Check(name, same, "" if same else "its files are not those of the model")


def paths(file: Artifact) -> Check:
    """No file tells where it was made."""
    places = {Path.home(), Path.cwd(), Path(sys.prefix), Path(__file__).parent.parent, Path(tempfile.gettempdir())}
    telling = {str(place).encode() for place in places if len(str(place)) > 4} | {
        b"site-packages",
        b"/home/",
        b"/Users/",
    }
    for name in file.files:
        content = (file.path / name).read_bytes()
        for word in sorted(telling):
            if word in content:
                return Check("no build paths", False, f"{name} holds {word.decode()!r}")
    return Check("no build paths", True)
