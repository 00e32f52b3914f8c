"""``tokenizer_config.json`` beside a shipped model: with it other programs read texts as they were read here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeforge.core.artifact import hash_file
from edgeforge.core.task import Interface
from edgeforge.models import chat, tokenizer
from edgeforge.models.folder import read_json

NAME = "tokenizer_config.json"
PLAIN_CLASS = "PreTrainedTokenizerFast"
ALIASES = ("TokenizersBackend", None)
"""What Transformers 5 calls the plain class, and a class that is not named: other programs then guess."""


def settings(folder: Path, interface: Interface) -> dict[str, Any]:
    """The settings of a model's tokenizer, and in them what the shipped file takes: its inputs and its length.

    A tokenizer often allows more tokens than a classifier's file has positions for. Transformers.js needs the settings,
    the special tokens in them as texts, and the chat template if there is one.
    Raises ModelError where `folder` holds no usable tokenizer.
    """
    reader = tokenizer.read(folder)
    said = read_json(folder / NAME) if (folder / NAME).is_file() else {}
    name = said.get("tokenizer_class")
    template = chat.template(folder)
    limits = {
        "model_max_length": interface.text.max_length,
        "padding_side": "right",
        "truncation_side": reader.truncation_side,
    }
    return {
        **said,
        **{key: token for key, token in reader.special_tokens_map.items() if isinstance(token, str)},
        **({} if template is None else {chat.KEY: template}),
        **({} if interface.per_token else limits),  # a window of a text is no limit to what a model can write
        "tokenizer_class": PLAIN_CLASS if name in ALIASES else name,
        "model_input_names": [value.name for value in interface.inputs],
    }


def is_as_shipped(shipped: Path, model: Path, interface: Interface) -> bool:
    """Whether a shipped tokenizer is the model's, with the settings above. Raises ModelError where one is missing."""
    tokenizer.read(shipped)
    if read_json(shipped / NAME) != settings(model, interface):
        return False
    return all(_content(shipped / name) == _content(model / name) for name in tokenizer.FILES if name != NAME)


def _content(path: Path) -> str | None:
    return hash_file(path) if path.is_file() else None
