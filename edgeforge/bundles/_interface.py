"""What a shipped file takes and gives, read from the file itself and the JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeforge import onnx_graph
from edgeforge.bundles._contract import ImageInput, Output, TextInput
from edgeforge.bundles._tokenizer import wordpiece
from edgeforge.core.errors import ModelError
from edgeforge.models import tokenizer
from edgeforge.runtimes import _coreml as coreml

IDS, MASK = "input_ids", "attention_mask"

Interface = tuple[ImageInput | TextInput, Output]


def of_onnx(folder: Path) -> Interface:
    """Of a classifier in an artifact's folder. Raises ModelError for another kind of model."""
    model = onnx_graph.load(folder)
    where = str(folder / onnx_graph.MODEL)
    said = {item.key: item.value for item in model.metadata_props}
    labels = _labels(said.get("labels"), where)
    preprocessing = json.loads(said["preprocessing"])
    names = [value.name for value in model.graph.input]
    output = Output(name=model.graph.output[0].name, meaning="logits", labels=labels)
    if "mean" not in preprocessing:
        return _text(folder, names, dtype="int64", max_length=int(preprocessing["max_length"])), output
    axes = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    return _image(names[0], axes[1:], preprocessing, where), output


def of_coreml(folder: Path, features: Sequence[Any], metadata: Mapping[str, str]) -> Interface:
    """Of an opened classifier's package. Raises ModelError for another kind of model."""
    where = str(folder / coreml.PACKAGE)
    labels = _labels(metadata.get(coreml.LABELS_KEY), where)
    output = Output(name=coreml.PROBABILITIES, meaning="probabilities", labels=labels)
    if coreml.PREPROCESSING_KEY in metadata:
        (feature,) = features
        image = feature.type.imageType
        preprocessing = json.loads(metadata[coreml.PREPROCESSING_KEY])
        shape = [len(preprocessing["mean"]), image.height, image.width]
        return _image(feature.name, shape, preprocessing, where, inside=True), output
    tokens = json.loads(metadata[coreml.TOKENS_KEY])
    array = next(feature.type.multiArrayType for feature in features if feature.name == IDS)
    lengths = sorted(int(shape.shape[-1]) for shape in array.enumeratedShapes.shapes) or [int(array.shape[-1])]
    names = [feature.name for feature in features]
    return _text(folder, names, dtype="int32", max_length=int(tokens["max_length"]), lengths=tuple(lengths)), output


def _labels(said: str | None, where: str) -> tuple[str, ...]:
    labels = json.loads(said) if said is not None else None
    if not labels:
        raise ModelError(
            "it is no classifier that EdgeForge wrote, and these bundles hold classifiers",
            where=where,
            remedy="a language model goes to a phone as GGUF: `export: gguf`, then `--target android` or `ios`",
        )
    return tuple(labels)


def _image(
    name: str, shape: Sequence[int], preprocessing: Mapping[str, Any], where: str, *, inside: bool = False
) -> ImageInput:
    channels, height, width = (int(size) for size in shape)
    if channels not in (1, 3) or not (height and width):
        raise ModelError(f"it takes images of shape {tuple(shape)}, which no wrapper makes", where=where)
    return ImageInput(
        name=name,
        channels=1 if channels == 1 else 3,
        height=height,
        width=width,
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        normalised_inside=inside,
    )


def _text(
    folder: Path, names: Sequence[str], *, dtype: Any, max_length: int, lengths: tuple[int, ...] = ()
) -> TextInput:
    if IDS not in names or set(names) - {IDS, MASK}:
        raise ModelError(f"its inputs are {', '.join(names)}, which no wrapper makes", where=str(folder))
    reader = tokenizer.read(folder)
    own = wordpiece(folder)
    return TextInput(
        mask=MASK if MASK in names else None,
        dtype=dtype,
        max_length=max_length,
        lengths=lengths,
        pad_id=int(reader.pad_token_id),
        truncate="left" if reader.truncation_side == "left" else "right",
        tokenizer=own,
        tokenizer_file=None if own else tokenizer.MAIN,
    )
