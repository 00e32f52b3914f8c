"""The files beside a model file that Transformers, optimum and Transformers.js read, whatever the format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge import onnx_graph
from edgeforge.models import tokenizer, tokenizer_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface


def write_companions(network: PreTrainedModel, interface: Interface, model: Path, folder: Path) -> None:
    """``config.json`` with the labels, and how inputs are made: ``preprocessor_config.json``, or the tokenizer's files.

    `model` is the folder of the torch artifact, `folder` the one to write into.
    """
    config = network.config.to_diff_dict()
    for private in ("_name_or_path", "_attn_implementation", "_attn_implementation_autoset"):
        config.pop(private, None)
    config["architectures"] = [type(network).__name__]
    if interface.labels:
        config["id2label"] = dict(enumerate(interface.labels))
        config["label2id"] = {label: index for index, label in enumerate(interface.labels)}
    _write(folder / "config.json", config)
    if interface.per_token:
        _write(folder / "generation_config.json", network.generation_config.to_diff_dict())
    if interface.pixels is not None:
        # Transformers.js makes every image RGB unless told otherwise.
        in_color = {"do_convert_rgb": interface.image_shape[0] == 3}
        _write(folder / onnx_graph.PREPROCESSOR, {**onnx_graph.preprocessor(interface), **in_color})
    elif tokenizer.present(model):
        tokenizer.carry(model, folder)
        _write(folder / tokenizer_settings.NAME, tokenizer_settings.settings(model, interface))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
