"""Core ML packages that others wrote, asked what a torch model is asked: their inputs are told by name and shape."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._coreml import image
from edgeforge.verification._probes import Inputs, of_features

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.runtimes._mil.model import ReferenceModel

HIDDEN = -1e4
"""In a mask of floats: far enough below any score, and within float16."""

LONGEST = 64
"""Tokens of a text, where the package takes any number."""


class ForeignDecoder:
    """A language model's package, with or without states; see `edgeforge.runtimes.Session`.

    Which input is which is told by its name: token ids, positions, a mask (1 or 0 for each token, or floats that are
    added to the scores of every pair). With states it reads token by token.
    """

    def __init__(self, model: Any, opened: ReferenceModel) -> None:
        """`model` answers as MLModel does; `opened` says what the package takes.

        Raises ModelError for inputs that are none of these.
        """
        self._model = model
        self._shapes = {name: value.shape for name, value in opened.declared.items()}
        floats = {name: bool(value.element and value.element.is_float) for name, value in opened.declared.items()}
        self._roles = {name: _role(name, floats=floats[name]) for name in self._shapes}
        self._stateful = bool(opened.make_state())
        if list(self._roles.values()).count("ids") != 1 or None in self._roles.values():
            raise ModelError(f"its inputs are {', '.join(self._shapes)}, and not ids, positions and masks")

    @property
    def length(self) -> int:
        """Tokens that it is to be asked about."""
        sizes = [shape[-1] for name, shape in self._shapes.items() if self._stateful or self._roles[name] == "ids"]
        known = [size for size in sizes if size is not None and size > 1]
        return min([*known, LONGEST])

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits, float32, (N, length, vocabulary), for ``input_ids`` (N, length)."""
        step = 1 if self._stateful else inputs["input_ids"].shape[1]
        found = []
        for ids in inputs["input_ids"]:
            state = [self._model.make_state()] if self._stateful else []
            places = range(0, len(ids), step)
            parts = [self._model.predict(self._given(ids[at : at + step], at), *state) for at in places]
            found.append(np.concatenate([_logits(part) for part in parts], axis=1))
        logits: np.ndarray = np.concatenate(found, axis=0)
        return logits

    def _given(self, ids: np.ndarray, start: int) -> Inputs:
        places = np.arange(start, start + len(ids))
        given: Inputs = {}
        for name, shape in self._shapes.items():
            role, rank = self._roles[name], len(shape)
            if role == "mask":
                width = shape[-1] or start + len(ids)
                seen = np.arange(width)[None, :] <= places[:, None]
                given[name] = np.where(seen, 0.0, HIDDEN).astype(np.float32).reshape(*[1] * (rank - 2), len(ids), width)
            else:
                values = {"ids": ids, "position": places, "ones": np.ones(shape[-1] or start + len(ids))}[role or ""]
                given[name] = values.astype(np.int32).reshape(*[1] * (rank - 1), -1)
        return given


def _role(name: str, *, floats: bool) -> str | None:
    word = name.lower()
    if "mask" in word:
        return "mask" if floats else "ones"
    if floats:
        return None
    return "position" if "pos" in word else "ids" if "id" in word or "token" in word else None


def _logits(answer: Mapping[str, Any]) -> np.ndarray:
    found = [np.asarray(value, dtype=np.float32) for value in answer.values() if np.ndim(value) == 3]
    if len(found) != 1:
        raise ModelError("it gives no array, or several, of one number for each token and word")
    return found[0]


class ForeignClassifier:
    """A package whose inputs have the torch model's names, and that gives one array."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """(N, numbers), for inputs by name."""
        count = len(next(iter(inputs.values())))
        rows = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(count)]
        found = [[np.asarray(value) for value in self._model.predict(row).values()] for row in rows]
        if any(len(arrays) != 1 or arrays[0].dtype.kind != "f" for arrays in found):
            raise ModelError("it gives something else than one array of numbers")
        answers: np.ndarray = np.concatenate([arrays[0].reshape(1, -1) for arrays in found]).astype(np.float32)
        return answers


def classifier_of(opened: ReferenceModel, network: PreTrainedModel) -> tuple[ForeignClassifier, Inputs]:
    """The package as a session, and made-up inputs for it. Raises ModelError where they are not the torch model's."""
    named = inspect.signature(network.forward).parameters
    names = [feature.name for feature in opened.features]
    images = [feature.name for feature in opened.features if feature.type.WhichOneof("Type") == "imageType"]
    if images:
        raise ModelError(f"'{images[0]}' is an image, and how the torch model's were normalised is not known")
    if unknown := [name for name in names if name not in named]:
        raise ModelError(f"its input '{unknown[0]}' is none of the torch model's")
    samples = samples_of(opened)
    inputs = {name: np.concatenate([np.asarray(sample[name]) for sample in samples]) for name in names}
    if "input_ids" in inputs:
        shape, vocabulary = inputs["input_ids"].shape, int(network.config.vocab_size)
        inputs["input_ids"] = np.random.default_rng(0).integers(0, vocabulary, shape)
    whole = {name: value.astype(np.int64) if value.dtype.kind == "i" else value for name, value in inputs.items()}
    return ForeignClassifier(opened), whole


def samples_of(opened: ReferenceModel) -> list[dict[str, Any]]:
    """Made-up samples by the package's own input names; images as PIL's, which Core ML takes too."""
    floats = {value.name: bool(value.element and value.element.is_float) for value in opened.declared.values()}
    images = {one.name for one in opened.features if one.type.WhichOneof("Type") == "imageType"}
    return [
        {name: image(value[0].astype(np.uint8)) if name in images else value for name, value in sample.items()}
        for sample in of_features(opened.features, floats)
    ]


def numbers(model: Any, samples: Sequence[Mapping[str, Any]], *, stateful: bool) -> np.ndarray:
    """Every number that a package answers to samples, float64, (samples, numbers); labels are left out.

    `model` answers as MLModel does; where it is `stateful`, each sample is read with a fresh state.
    """
    found = []
    for sample in samples:
        answer = model.predict(sample, model.make_state()) if stateful else model.predict(sample)
        found.append(np.concatenate([_flat(answer[name]) for name in sorted(answer)]))
    return np.stack(found)


def _flat(value: Any) -> np.ndarray:
    if isinstance(value, Mapping):
        return np.asarray([value[label] for label in sorted(value, key=str)], dtype=np.float64)
    if isinstance(value, str):
        return np.zeros(0)
    return np.asarray(value, dtype=np.float64).reshape(-1)
