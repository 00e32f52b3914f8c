"""How many bytes of text tokens stand for, and which tokens stand around texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgeforge.core.errors import ModelError
from edgeforge.data import Document
from edgeforge.models import tokenizer
from edgeforge.tasks import _windows

if TYPE_CHECKING:
    from tests.conftest import Mails, Tales

TEXTS = [
    "The fox ran 12 miles.",
    "caf\u00e9 \u2603 \U0001f600 \u4f60\u597d \u0395\u03bb",
    "\n\n  tabs\tand\r\nlines \u00a0 ",
    "" + "".join(map(chr, range(1, 600))),
]


@pytest.fixture
def byte_level(tales: Tales, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tales.root / "tokenizer", tmp_path / "own"))


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """SentencePiece's BPE as Llama 2 and Mistral write it: blanks as U+2581, one in front, bytes for the rest."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    letters = ["\u2581", *"Tthefoxrancils.\u00e9"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("f", "o"), ("fo", "x")]
    words = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    built = Tokenizer(model)
    built.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    built.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    built.add_special_tokens(special)
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=built, **names).save_pretrained(tmp_path / "pieces")
    return tmp_path / "pieces"


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_byte_level_tokens_are_those_of_the_text(byte_level: Path, text: str) -> None:
    ids = tokenizer.read(byte_level)(text)["input_ids"]
    assert tokenizer.byte_lengths(byte_level)[ids].sum() == len(text.encode())
    assert tokenizer.blank_before(byte_level) == 0


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_pieces_are_those_of_the_text_and_one_blank(pieces: Path, text: str) -> None:
    ids = tokenizer.read(pieces)(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.byte_lengths(pieces)[ids].sum() == len(text.encode()) + 1
    assert tokenizer.blank_before(pieces) == 1


def test_the_blank_that_was_not_in_the_text_does_not_count(pieces: Path) -> None:
    documents = [Document("the fox \u2603"), Document("x"), Document(" the")]
    (first, second, third) = _windows.streams(documents, pieces, answers_only=False)
    assert [part.size_bytes.sum() for part in (first, second, third)] == [11, 1, 4]
    assert first.ids[-1] == 2
    assert first.ids[0] != 1  # stands before windows, not before documents


def test_added_tokens_count_unless_they_are_special(byte_level: Path) -> None:
    content = json.loads((byte_level / tokenizer.MAIN).read_text(encoding="utf-8"))
    added = {**content["added_tokens"][0], "id": 352, "content": "    \u00e9", "special": False}
    content["added_tokens"].append(added)
    (byte_level / tokenizer.MAIN).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    text = "x    \u00e9<|im_end|>y"
    ids = tokenizer.read(byte_level)(text)["input_ids"]
    assert 352 in ids
    assert tokenizer.byte_lengths(byte_level)[ids].sum() == len("x    \u00e9y".encode())


def test_other_vocabularies_do_not_say(mails: Mails) -> None:
    with pytest.raises(ModelError, match="WordPiece vocabulary does not say which bytes"):
        tokenizer.byte_lengths(mails.root / "tokenizer")


def test_what_ends_and_begins_texts(byte_level: Path, pieces: Path, mails: Mails) -> None:
    assert tokenizer.end_of_text(byte_level) == 0  # and not <|im_end|>, which ends a turn
    assert tokenizer.end_of_text(pieces) == 2
    assert tokenizer.beginning(byte_level) is None
    assert tokenizer.beginning(pieces) == 1
    with pytest.raises(ModelError, match=r"names no token that ends a text(.|\n)*eos_token"):
        tokenizer.end_of_text(mails.root / "tokenizer")


def test_without_a_padding_token_what_ends_a_text_pads(pieces: Path) -> None:
    assert tokenizer.read(pieces).pad_token_id == 2


def test_where_a_task_has_its_tokenizer(byte_level: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokenizer.located(str(byte_level)) == byte_level
    with pytest.raises(ModelError, match=r"brings no tokenizer(.|\n)*hub id"):
        tokenizer.located(None)
    monkeypatch.setattr("edgeforge.models._hub.fetch", lambda name, revision, wanted: (name, wanted))
    assert tokenizer.located("owner/name") == ("owner/name", tokenizer.FILES)
