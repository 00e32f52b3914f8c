"""Tokenizers that are simple enough to be written again in an app's language: BERT's WordPiece, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeforge.bundles._contract import GoldenText, WordPiece
from edgeforge.models import tokenizer

VOCABULARY = "vocab.txt"

TRICKY = (
    "",
    "Hello, world! It's 3:45pm -- don't be late...",
    "Café naïve ÀÉÎÕÜ ß ẞ ﬁ İstanbul ΑΣ",
    "日本語 and 中文, 한국어; русский текст",
    "a\u0000b\u200dc\u00a0d\te\r\nf\ufffdg\u0085h",
    "emoji 👩‍👩‍👧 ☃ ½ ² € $5 <b>bold</b> a_b `c` ^ | ~",
    "[CLS] a literal [SEP] inside [MASK][PAD]",
    "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft " + "x" * 120,
    "Click to claim: the prize of 1,000,000 is yours, winner! " * 40,
)
"""Texts that tell tokenizers apart: accents, scripts, control characters, special tokens, long words, long texts."""


def wordpiece(folder: Path) -> WordPiece | None:
    """The tokenizer in a folder as the wrappers' own, or None where it does something that they do not."""
    content = json.loads((folder / tokenizer.MAIN).read_text(encoding="utf-8"))
    model, normalizer = content.get("model") or {}, content.get("normalizer") or {}
    around = _around(content.get("post_processor") or {})
    kinds = (model.get("type"), normalizer.get("type"), (content.get("pre_tokenizer") or {}).get("type"))
    added = content.get("added_tokens") or []
    if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer") or around is None or not all(map(_plain, added)):
        return None
    if _lines(model["vocab"]) is None:
        return None
    strip = normalizer.get("strip_accents")
    return WordPiece(
        vocabulary=VOCABULARY,
        lowercase=normalizer["lowercase"],
        strip_accents=normalizer["lowercase"] if strip is None else strip,
        clean_text=normalizer["clean_text"],
        handle_chinese_chars=normalizer["handle_chinese_chars"],
        prefix=model["continuing_subword_prefix"],
        longest_word=model["max_input_chars_per_word"],
        unknown=model["unk_token"],
        before=around[0],
        after=around[1],
        special={token["content"]: token["id"] for token in added},
    )


def write_vocabulary(folder: Path, path: Path) -> None:
    """One token a line, in the order of the ids."""
    content = json.loads((folder / tokenizer.MAIN).read_text(encoding="utf-8"))
    lines = _lines(content["model"]["vocab"])
    assert lines is not None  # `wordpiece` has looked
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def golden_texts(folder: Path, max_length: int) -> tuple[GoldenText, ...]:
    """`TRICKY` as the model's own tokenizer reads it."""
    found = tokenizer.read(folder)(list(TRICKY), truncation=True, max_length=max_length, padding=False)["input_ids"]
    return tuple(GoldenText(text=text, ids=tuple(ids)) for text, ids in zip(TRICKY, found, strict=True))


def _lines(vocabulary: dict[str, int]) -> list[str] | None:
    """Tokens by id, where there is one for every id and none holds the end of a line."""
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    whole = [vocabulary[token] for token in tokens] == list(range(len(tokens)))
    return tokens if whole and not any("\n" in token for token in tokens) else None


def _plain(added: dict[str, Any]) -> bool:
    """Whether an added token is found in a text as it stands, and takes nothing beside it along."""
    return not any(added.get(flag) for flag in ("single_word", "lstrip", "rstrip", "normalized"))


def _around(processor: dict[str, Any]) -> tuple[int, int] | None:
    """The ids before and behind every text."""
    if processor.get("type") == "BertProcessing":
        return int(processor["cls"][1]), int(processor["sep"][1])
    if processor.get("type") != "TemplateProcessing":
        return None
    single, special = processor["single"], processor["special_tokens"]
    names = [part["SpecialToken"]["id"] for part in single if "SpecialToken" in part]
    if len(single) != 3 or "Sequence" not in single[1] or len(names) != 2:
        return None
    ids = [special[name]["ids"] for name in names]
    return (int(ids[0][0]), int(ids[1][0])) if all(len(one) == 1 for one in ids) else None
