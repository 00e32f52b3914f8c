"""Tokenizers beside models: reading, carrying, and whether two of them read texts alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from transformers import AutoTokenizer

from edgeforge.core.errors import ModelError
from edgeforge.models import tokenizer

if TYPE_CHECKING:
    from tests.conftest import Mails

TEXT = "The winner of the lottery: zebra!"


@pytest.fixture
def folder(mails: Mails, tmp_path: Path) -> Path:
    shutil.copytree(mails.root / "tokenizer", tmp_path / "own")
    return tmp_path / "own"


def changed(folder: Path, target: Path, change: object) -> Path:
    """A copy of a tokenizer whose tokenizer.json went through `change`."""
    shutil.copytree(folder, target)
    content = json.loads((target / tokenizer.MAIN).read_text(encoding="utf-8"))
    change(content)  # type: ignore[operator]
    (target / tokenizer.MAIN).write_text(json.dumps(content), encoding="utf-8")
    return target


def test_it_reads_as_transformers_does(folder: Path) -> None:
    ours, theirs = tokenizer.read(folder), AutoTokenizer.from_pretrained(folder)
    assert ours(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert (ours.pad_token_id, ours.unk_token_id) == (theirs.pad_token_id, theirs.unk_token_id) == (0, 1)
    assert tokenizer.tokens(folder)[ours(TEXT)["input_ids"][2]] == "winner"


def test_files_are_carried_and_what_is_there_stays(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    tokenizer.carry(folder, target)
    assert {path.name for path in target.iterdir()} <= set(tokenizer.FILES)
    assert tokenizer.digest(target) == tokenizer.digest(folder)
    (target / tokenizer.MAIN).write_text("its own", encoding="utf-8")
    tokenizer.carry(folder, target)
    assert (target / tokenizer.MAIN).read_text(encoding="utf-8") == "its own"
    tokenizer.carry(tmp_path, target)  # nothing there to carry


def test_the_same_tokenizer_needs_no_translation(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert tokenizer.translation(folder, tmp_path / "copy") is None


def test_a_part_of_a_vocabulary_is_translated_token_by_token(folder: Path, tmp_path: Path) -> None:
    def cut(content: dict) -> None:
        words = [word for word in content["model"]["vocab"] if word not in ("prize", "the")]
        content["model"]["vocab"] = {word: index for index, word in enumerate(words)}

    part = changed(folder, tmp_path / "part", cut)
    table = tokenizer.translation(part, folder)
    assert table is not None
    whole = tokenizer.tokens(folder)
    assert [whole[index] for index in table] == list(tokenizer.tokens(part))
    ids = np.asarray(tokenizer.read(part)("You winner of money")["input_ids"])
    assert table[ids].tolist() == tokenizer.read(folder)("You winner of money")["input_ids"]
    with pytest.raises(ModelError, match=r"has no token '(the|prize)' \(2 such\)(.|\n)*by sequence"):
        tokenizer.translation(folder, part)


def test_another_way_of_splitting_is_refused(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "cased", lambda content: content["normalizer"].update(lowercase=False))
    with pytest.raises(ModelError, match=r"different tokenizers: their normalizer differs(.|\n)*by sequence"):
        tokenizer.translation(other, folder)


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no tokenizer.json(.|\n)*save_pretrained"):
        tokenizer.read(tmp_path)
    unpadded = changed(folder, tmp_path / "unpadded", lambda content: None)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (unpadded / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="names no padding token"):
        tokenizer.read(unpadded)
    (folder / tokenizer.MAIN).write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(ModelError, match="not a usable tokenizer"):
        tokenizer.read(folder)
    (unpadded / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="not JSON"):
        tokenizer.read(unpadded)
