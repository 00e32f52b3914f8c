"""What a shipped tokenizer says of itself, and whether it is still the model's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge.core.errors import ModelError
from edgeforge.models import tokenizer_settings

if TYPE_CHECKING:
    Mails = Any


@pytest.fixture
def model(mails: Mails, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(mails.root / "tokenizer", tmp_path / "model"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    # transformers 5 writes no such file any more; models from before have it.
    special = json.dumps({**names, "mask_token": "[MASK]"})
    (folder / "special_tokens_map.json").write_text(special, encoding="utf-8")
    return folder


@pytest.fixture
def shipped(mails: Mails, model: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model, tmp_path / "shipped"))
    write(folder, tokenizer_settings.settings(model, mails.data.interface))
    return folder


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / tokenizer_settings.NAME).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("said", [None, {}, {"tokenizer_class": "TokenizersBackend", "pad_token": None}])
def test_what_is_not_said_is_filled_in(mails: Mails, model: Path, said: dict[str, Any] | None) -> None:
    """The special tokens may stand in special_tokens_map.json alone, where Transformers.js does not look."""
    (model / tokenizer_settings.NAME).unlink()
    if said is not None:
        write(model, said)
    found = tokenizer_settings.settings(model, mails.data.interface)
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (found["pad_token"], found["unk_token"], found["mask_token"]) == ("[PAD]", "[UNK]", "[MASK]")
    assert (found["model_max_length"], found["padding_side"], found["truncation_side"]) == (16, "right", "right")


def test_what_is_said_stays_but_for_the_side_of_padding(mails: Mails, model: Path) -> None:
    write(model, {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "padding_side": "left"})
    found = tokenizer_settings.settings(model, mails.data.interface)
    assert (found["tokenizer_class"], found["do_lower_case"], found["padding_side"]) == ("BertTokenizer", True, "right")


def test_the_side_that_is_cut_is_the_tokenizers_own(mails: Mails, model: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (model / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert tokenizer_settings.settings(model, mails.data.interface)["truncation_side"] == "left"


def test_only_the_models_own_is_as_shipped(mails: Mails, model: Path, shipped: Path) -> None:
    interface = mails.data.interface
    assert tokenizer_settings.is_as_shipped(shipped, model, interface)
    settings = json.loads((shipped / tokenizer_settings.NAME).read_text(encoding="utf-8"))
    write(shipped, {**settings, "model_max_length": 512})
    assert not tokenizer_settings.is_as_shipped(shipped, model, interface)
    write(shipped, settings)
    content = json.loads((shipped / "tokenizer.json").read_text(encoding="utf-8"))
    content["normalizer"]["lowercase"] = False
    (shipped / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert not tokenizer_settings.is_as_shipped(shipped, model, interface)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_missing_file_is_named(mails: Mails, model: Path, shipped: Path, name: str) -> None:
    (shipped / name).unlink()
    with pytest.raises(ModelError, match=name.removesuffix(".json")):
        tokenizer_settings.is_as_shipped(shipped, model, mails.data.interface)
