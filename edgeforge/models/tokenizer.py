"""Tokenizers: the files that travel with a text model, and whether two of them read a text alike."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import ModelError
from edgeforge.core.spec import digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAIN = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
FILES = (MAIN, SETTINGS, "special_tokens_map.json", "chat_template.jinja", "vocab.txt", "vocab.json", "merges.txt")
"""What may stand beside a model. Only the first is needed; the others are for programs that read nothing newer."""

END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""What ends a text in the supported families. The `eos_token` of a model that chats ends a turn instead."""

BYTE_ALPHABET = frozenset(map(chr, (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))))
"""One character for each byte, as GPT-2 and all byte-level vocabularies since write them (Radford et al., 2019)."""
BLANK = "\u2581"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")

ANOTHER_WAY = (
    "use a teacher with the student's tokenizer, or distil by sequence: fine-tune the student on the labels that the "
    "teacher gives"
)


def located(chosen: str | None) -> Path:
    """The folder of the tokenizer that a task names: a folder, or a hub id, whose files are fetched.

    Raises ModelError.
    """
    if chosen is None:
        raise ModelError(
            "the model brings no tokenizer",
            where="task.tokenizer",
            remedy=f"name a folder with {MAIN}, or a hub id such as google-bert/bert-base-uncased",
        )
    folder = Path(chosen).expanduser().absolute()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(chosen):
        raise ModelError(
            f"there is no folder {folder}, and '{chosen}' is no hub id",
            where="task.tokenizer",
            remedy="check the path; relative ones start at the working directory",
        )
    from edgeforge.models._hub import fetch

    return fetch(chosen, None, wanted=FILES)


def present(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return (folder / MAIN).is_file()


def carry(source: Path, target: Path) -> None:
    """Copy the tokenizer of one artifact's folder to another's, where there is one; what is there already stays."""
    if present(source) and not present(target):
        for name in FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)


def digest(folder: Path) -> str:
    """sha256 of the tokenizer's files. Raises ModelError where there is none."""
    _check_present(folder)
    return digest_of({name: hash_file(folder / name) for name in FILES if (folder / name).is_file()})


def read(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder; no code from the folder runs. Raises ModelError."""
    return _read(folder, digest(folder))


@functools.lru_cache(maxsize=8)
def _read(folder: Path, digest: str) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / MAIN), **_special_tokens(folder))
    except Exception as error:  # the library raises a plain Exception for a damaged file
        raise ModelError(
            f"not a usable tokenizer: {str(error).splitlines()[0]}", where=str(folder / MAIN), remedy="write it again"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # as is usual for language models, which are never padded in training
    if tokenizer.pad_token_id is None:
        raise ModelError(
            "the tokenizer names no padding token",
            where=str(folder / SETTINGS),
            remedy='add "pad_token" to it',
        )
    return tokenizer


def _special_tokens(folder: Path) -> dict[str, str]:
    """``pad_token``, ``unk_token`` and so on, as text, from the configuration beside a tokenizer."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", SETTINGS):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"not JSON: {error}", where=str(path), remedy="write the tokenizer again") from error
        for key, value in content.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def tokens(folder: Path) -> tuple[str, ...]:
    """Every token, by id; an id that stands for nothing is an empty text."""
    vocabulary = read(folder).get_vocab()
    by_id = [""] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        by_id[index] = token
    return tuple(by_id)


def end_of_text(folder: Path) -> int:
    """The id of the token between two texts. Raises ModelError where the tokenizer names none."""
    reader = read(folder)
    known = reader.get_vocab()
    found = [known[token] for token in END_OF_TEXT if token in known]
    if not found and reader.eos_token_id is None:
        raise ModelError(
            "the tokenizer names no token that ends a text",
            where=str(folder / SETTINGS),
            remedy='add "eos_token" to it',
        )
    return int(found[0] if found else reader.eos_token_id)


def beginning(folder: Path) -> int | None:
    """The id of the token that this tokenizer puts before every text; None where it puts none."""
    reader = read(folder)
    around: list[int] = reader("")["input_ids"]
    return around[0] if around and around[0] == reader.bos_token_id else None


def byte_lengths(folder: Path) -> np.ndarray:
    """How many bytes of UTF-8 each id stands for in a text, int64, shape (tokens,); special tokens stand for none.

    Exact for byte-level vocabularies, and for SentencePiece's but for `blank_before`. Raises ModelError for others.
    """
    content = json.loads((folder / MAIN).read_text(encoding="utf-8"))
    parts = _types(content.get("decoder")) | _types(content.get("pre_tokenizer"))
    pieces = bool({"Metaspace", "ByteFallback"} & parts) or bool(content["model"].get("byte_fallback"))
    if "ByteLevel" not in parts and not pieces:
        raise ModelError(
            f"the tokenizer's {content['model'].get('type')} vocabulary does not say which bytes a token stands for",
            where=str(folder / MAIN),
            remedy="use a model with a byte-level or SentencePiece vocabulary",
        )
    added = {token["id"]: token for token in content.get("added_tokens") or ()}

    def length(index: int, token: str) -> int:
        if index in added:
            return 0 if added[index]["special"] else len(token.encode())
        if "ByteLevel" in parts and BYTE_ALPHABET.issuperset(token):
            return len(token)
        return 1 if _BYTE.fullmatch(token) else len(token.replace(BLANK, " ").encode())

    return np.asarray([length(index, token) for index, token in enumerate(tokens(folder))], dtype=np.int64)


def blank_before(folder: Path) -> int:
    """How many bytes (0 or 1) the tokenizer puts before every text: SentencePiece begins each with a blank."""
    ids = read(folder)("x", add_special_tokens=False)["input_ids"]
    return int(byte_lengths(folder)[ids].sum()) - 1


def _types(part: Any) -> set[str]:
    """The types of a step of a tokenizer, and of the steps within it."""
    if not isinstance(part, dict):
        return set()
    inner = [*part.get("decoders", ()), *part.get("pretokenizers", ())]
    return {str(part.get("type"))}.union(*map(_types, inner))


def translation(ours: Path, theirs: Path) -> np.ndarray | None:
    """The ids `theirs` has for the tokens of `ours`, int64, shape (tokens,); None where they are the same.

    A vocabulary that was cut out of another one reads the texts it was cut for alike. Raises ModelError where the two
    split texts differently, or one lacks a token of the other.
    """
    if digest(ours) == digest(theirs):
        return None
    here, there = _manner(ours), _manner(theirs)
    if here != there:
        part = next(name for name in here if here[name] != there[name])
        raise ModelError(
            f"student and teacher have different tokenizers: their {part} differs", where="teacher", remedy=ANOTHER_WAY
        )
    known = read(theirs).get_vocab()
    own = tokens(ours)
    if missing := [token for token in own if token and token not in known]:
        raise ModelError(
            f"student and teacher have different tokenizers: the teacher's has no token {missing[0]!r} "
            f"({len(missing)} such)",
            where="teacher",
            remedy=ANOTHER_WAY,
        )
    unknown = read(theirs).unk_token_id or 0
    table = np.asarray([known.get(token, unknown) for token in own], dtype=np.int64)
    return None if np.array_equal(table, np.arange(len(table))) else table


def _manner(folder: Path) -> dict[str, Any]:
    """How a tokenizer splits texts, its vocabulary aside."""
    content = json.loads((folder / MAIN).read_text(encoding="utf-8"))
    model = content["model"]
    return {
        "normalizer": content.get("normalizer"),
        "pre_tokenizer": content.get("pre_tokenizer"),
        "model": {key: value for key, value in model.items() if key not in ("vocab", "merges", "unk_id")},
    }


def _check_present(folder: Path) -> None:
    if not present(folder):
        raise ModelError(
            f"there is no {MAIN}",
            where=str(folder),
            remedy="give a folder with a fast tokenizer, or set the task's `tokenizer`; "
            "AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW) writes one",
        )
