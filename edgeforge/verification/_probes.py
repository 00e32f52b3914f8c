"""Inputs for a file of which no recorded ones are at hand: right in names, types and shapes, arbitrary in content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.core.errors import ModelError

COUNT = 4
LENGTH = 16
TEXT_LENGTH = 80
FEWEST_TOKENS = 10
MASKS = ("mask",)

Inputs = dict[str, np.ndarray]


def arbitrary(values: Iterable[tuple[str, str, tuple[int | None, ...]]], folder: Path) -> Inputs:
    """Inputs by name for (name, numpy dtype, shape with None for open axes); the first axis is the batch.

    Floats look like normalised pixels. Integers are token ids below the vocabulary's size in ``config.json``, where
    there is one; masks are ones. Raises ModelError for a type that no model here takes.
    """
    chance = np.random.default_rng(0)
    tokens = _vocabulary(folder)
    found: Inputs = {}
    for name, dtype, shape in values:
        sizes = [_size(axis, size) for axis, size in enumerate(shape)]
        kind = np.dtype(dtype).kind
        if kind == "f":
            found[name] = chance.standard_normal(sizes).astype(dtype)
        elif kind in "iu":
            mask = any(word in name for word in MASKS)
            found[name] = (np.ones(sizes) if mask else chance.integers(0, tokens, sizes)).astype(dtype)
        else:
            raise ModelError(f"its input '{name}' is of the type {dtype}, which cannot be made up")
    return found


def texts(longest: int, folder: Path, vocabulary: int | None = None) -> Inputs:
    """Two texts for a language model that takes so many tokens: more than is read at once, where it takes as many."""
    shape = (2, min(longest, TEXT_LENGTH))
    ids = np.random.default_rng(0).integers(0, vocabulary or _vocabulary(folder), shape)
    return {"input_ids": ids, "attention_mask": np.ones(shape, np.int64)}


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    """Images of random pixels, 0 to 255, (N, C, H, W): a program that takes images takes nothing between."""
    return np.random.default_rng(0).integers(0, 256, (COUNT, *shape))


def _size(axis: int, size: int | None) -> int:
    if size is not None and size > 0:
        return size
    return COUNT if axis == 0 else LENGTH


def _vocabulary(folder: Path) -> int:
    try:
        size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        return max(int(size), 1)
    except (OSError, ValueError, KeyError, TypeError):
        return FEWEST_TOKENS


def of_features(features: Iterable[Any], declared: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Samples for a Core ML package by its own input names: images of noise as arrays, arrays of whole numbers or not.

    `features`: coremltools' descriptions; `declared`: name -> whether it takes floats.
    """
    chance = np.random.default_rng(0)
    samples = []
    for _ in range(COUNT):
        sample: dict[str, Any] = {}
        for feature in features:
            if feature.type.WhichOneof("Type") == "imageType":
                image = feature.type.imageType
                channels = 1 if image.colorSpace == 10 else 3  # GRAYSCALE
                sample[feature.name] = chance.integers(0, 256, (1, channels, image.height, image.width))
                continue
            array = feature.type.multiArrayType
            sizes = [int(size) for size in array.shape]
            floats = declared[feature.name]
            if floats:
                sample[feature.name] = chance.standard_normal(sizes).astype(np.float32)
            elif any(word in feature.name for word in MASKS):
                sample[feature.name] = np.ones(sizes, np.int32)
            else:  # small enough for every table, that of two kinds of tokens among them
                sample[feature.name] = chance.integers(0, 2, sizes).astype(np.int32)
        samples.append(sample)
    return samples
