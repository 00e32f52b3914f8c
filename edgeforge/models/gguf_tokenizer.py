"""Tokenizers in GGUF metadata and as ``tokenizer.json``, both ways, so that llama.cpp and Hugging Face give equal ids.

Byte-level BPE only. llama.cpp knows how a text is cut before merging by a name (``tokenizer.ggml.pre``), and keeps the
rules in its own code: `WAYS` says which rules a name stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import ModelError
from edgeforge.models import chat, tokenizer
from edgeforge.models.folder import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from edgeforge.gguf_file import GgufFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""``tokenizer.ggml.token_type``."""

SPECIAL = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}

ENDINGS = frozenset(
    {"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "</s>"}
)
"""Tokens that end what a model writes by their text alone, as in llama.cpp, beside the one that the metadata names."""

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASELESS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS: Mapping[str, Any] = {"type": "Digits", "individual_digits": True}


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}


def _split(pattern: str, *, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


@dataclass(frozen=True)
class Way:
    """How a text is cut into words. `ignore_merges`: a word that is a token is that token, whatever its merges say."""

    parts: tuple[Mapping[str, Any], ...]
    aliases: tuple[str, ...] = ()
    ignore_merges: bool = False
    add_bos: bool = False


_LLAMA_3 = (_split(_CASELESS % r"\p{N}{1,3}"), _bytes(use_regex=False))

WAYS: Mapping[str, Way] = {
    "smollm": Way((_DIGITS, _bytes(use_regex=True)), aliases=("starcoder", "refact", "codeshell")),
    "gpt-2": Way((_bytes(use_regex=True),), aliases=("phi-2", "mpt", "olmo")),
    "llama-bpe": Way(_LLAMA_3, aliases=("llama3", "llama-v3", "falcon3", "pixtral"), ignore_merges=True, add_bos=True),
    "smaug-bpe": Way(_LLAMA_3, aliases=("dbrx",)),
    "qwen2": Way(
        (_split(_CASELESS % r"\p{N}"), _bytes(use_regex=False)), aliases=("deepseek-r1-qwen", "stablelm2", "kormo")
    ),
    "default": Way(
        (
            _split(r"[\p{P}\$\+<=>\^~\|]+"),
            _split(_WORDS),
            _split(r"\p{N}+"),
            _split(r"[0-9][0-9][0-9]"),
            _bytes(use_regex=False),
        )
    ),
}
"""llama.cpp's name -> the rules it stands for."""

_TAKE_HUGGING_FACE = "use the model's Hugging Face folder: {kind: pretrained}"
_TAKE_ANOTHER = f"use a model with a byte-level BPE tokenizer cut as in {', '.join(WAYS)}"


# -- from metadata to files


def write(file: GgufFile, folder: Path) -> None:
    """Write ``tokenizer.json`` and its settings, as the file's metadata describe them. Raises ModelError."""
    built = build(file)
    folder.mkdir(parents=True, exist_ok=True)
    built.save(str(folder / tokenizer.MAIN), pretty=False)
    text = json.dumps(settings(file), ensure_ascii=False, indent=2, sort_keys=True)
    (folder / tokenizer.SETTINGS).write_text(text + "\n", encoding="utf-8")


def build(file: GgufFile) -> Tokenizer:
    """The tokenizer whose ids are llama.cpp's. Raises ModelError where it is of a kind that is not rebuilt."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    way = _way_of(file)
    tokens, types = _tokens(file)
    used = len(tokens) - next((n for n, kind in enumerate(reversed(types)) if kind != UNUSED), len(types))
    vocabulary = {token: index for index, token in enumerate(tokens[:used])}
    try:
        merges = [_halves(merge) for merge in file.metadata.get("tokenizer.ggml.merges") or [""]]
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=way.ignore_merges)
    except Exception as error:  # the library raises a plain Exception for a merge of what is no token
        raise _refusal(file, f"its merges do not fit its tokens: {error}", remedy=_TAKE_HUGGING_FACE) from error
    built = Tokenizer(model)
    gaps = _gaps(vocabulary)
    built.pre_tokenizer = pre_tokenizers.Sequence([_made(part) for part in (*way.parts, *gaps)])
    built.decoder = decoders.ByteLevel()
    for index, kind in enumerate(types[:used]):
        token = AddedToken(tokens[index], special=kind != USER_DEFINED, normalized=False)
        if kind in (UNKNOWN, CONTROL):
            built.add_special_tokens([token])
        elif kind == USER_DEFINED:
            built.add_tokens([token])
    before = _added(file, "add_bos_token", "bos_token", default=way.add_bos)
    behind = _added(file, "add_eos_token", "eos_token", default=False)
    if before or behind:
        built.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *behind],
            special_tokens=[(token, vocabulary[token]) for token in {*before, *behind}],
        )
    return built


def settings(file: GgufFile) -> dict[str, Any]:
    """``tokenizer_config.json``: special tokens as texts, the chat template, and what the model takes."""
    tokens, _ = _tokens(file)
    named = {role: tokens[index] for role, index in special_ids(file).items()}
    ending = next((named[role] for role in ("eos_token", "bos_token", "unk_token") if role in named), None)
    if ending is None:
        raise _refusal(file, "its tokenizer names no token that ends a text", remedy=_TAKE_HUGGING_FACE)
    said: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": ending,
        **named,
    }
    if isinstance(context := file.said("context_length"), int):
        said["model_max_length"] = context
    if isinstance(template := file.metadata.get("tokenizer.chat_template"), str):
        said["chat_template"] = template
    return said


def special_ids(file: GgufFile) -> dict[str, int]:
    """``eos_token`` and so on -> its id, of those that the metadata name."""
    tokens, _ = _tokens(file)
    found = {role: file.metadata.get(key) for role, key in SPECIAL.items()}
    return {role: index for role, index in found.items() if isinstance(index, int) and 0 <= index < len(tokens)}


def ending_ids(file: GgufFile) -> list[int]:
    """The tokens that end what the model writes: the end-of-text token first, then others by their text."""
    tokens, types = _tokens(file)
    named = [special_ids(file).get("eos_token"), file.metadata.get("tokenizer.ggml.eot_token_id")]
    by_text = [index for index, token in enumerate(tokens) if token in ENDINGS and types[index] == CONTROL]
    return list(dict.fromkeys(index for index in [*named, *by_text] if isinstance(index, int)))


def _way_of(file: GgufFile) -> Way:
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        known = {"llama": "a SentencePiece tokenizer", None: "no tokenizer"}
        raise _refusal(
            file, f"it has {known.get(kind, f'a tokenizer of the kind {kind!r}')}", remedy=_TAKE_HUGGING_FACE
        )
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    for own, way in WAYS.items():
        if name in (own, *way.aliases):
            return way
    known_names = sorted(WAYS)
    raise _refusal(
        file,
        f"its tokenizer cuts texts in the way {name!r}; known are {', '.join(known_names)}",
        remedy=_TAKE_HUGGING_FACE,
    )


def _tokens(file: GgufFile) -> tuple[Sequence[str], Sequence[int]]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    types = file.metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens or ()))
    if not (tokens and isinstance(types, list) and len(tokens) == len(types)):
        raise _refusal(file, "its list of tokens is not whole", remedy="download or export the file again")
    return tokens, types


def _gaps(vocabulary: Collection[str]) -> tuple[Mapping[str, Any], ...]:
    """What takes out bytes that are no tokens (SmolLM2 has none for most control characters).

    llama.cpp leaves them out and merges nothing across the gap; the library alone would merge across it.
    """
    from tokenizers import pre_tokenizers

    missing = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(vocabulary))
    return (_split(f"[{''.join(map(re.escape, missing))}]", behavior="Removed"),) if missing else ()


def _halves(merge: str) -> tuple[str, str]:
    space = merge.index(" ", 1)
    return merge[:space], merge[space + 1 :]


def _made(part: Mapping[str, Any]) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if part["type"] == "Digits":
        return pre_tokenizers.Digits(individual_digits=True)
    if part["type"] == "Split":
        return pre_tokenizers.Split(Regex(part["pattern"]["Regex"]), part["behavior"].lower())
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=part["use_regex"])


def _added(file: GgufFile, key: str, role: str, *, default: bool) -> list[str]:
    index = special_ids(file).get(role)
    wanted = file.metadata.get(f"tokenizer.ggml.{key}", default) and index is not None
    return [_tokens(file)[0][index]] if wanted and index is not None else []


def _refusal(file: GgufFile, what: str, *, remedy: str) -> ModelError:
    return ModelError(what, where=str(file.path), remedy=remedy)


# -- from files to metadata


def describe(folder: Path, vocabulary_size: int) -> dict[str, Any]:
    """The metadata for the tokenizer in `folder`: ``tokenizer.ggml.*`` and the chat template.

    Ids up to `vocabulary_size` that stand for nothing are filled up. Raises ModelError where llama.cpp has no such
    tokenizer.
    """
    where = str(folder / tokenizer.MAIN)
    reader = tokenizer.read(folder)
    content = read_json(folder / tokenizer.MAIN)
    name = way_named(content, where=where)
    tokens, types = _listed(reader.get_vocab(), content.get("added_tokens") or (), vocabulary_size, where=where)
    said: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [_joined(merge, where) for merge in content["model"]["merges"]],
    }
    ids = {role: getattr(reader, f"{role}_id") for role in SPECIAL}
    said |= {SPECIAL[role]: index for role, index in ids.items() if index is not None}
    before, behind = _put_around(reader.backend_tokenizer)
    for role, around in (("bos", before), ("eos", behind)):
        if around and around != [ids[f"{role}_token"]]:
            raise ModelError(
                f"the tokenizer puts the tokens {around} around a text, and llama.cpp only the {role} token",
                where=where,
                remedy="remove its post_processor, and put the tokens into the chat template",
            )
        said[f"tokenizer.ggml.add_{role}_token"] = bool(around)
    said["tokenizer.ggml.add_space_prefix"] = False
    if template := chat.template(folder):
        said["tokenizer.chat_template"] = template
    return said


def way_named(content: Mapping[str, Any], *, where: str) -> str:
    """llama.cpp's name for the rules of a ``tokenizer.json``. Raises ModelError where it has none."""
    model, parts = content["model"], [_plain(part) for part in _flat(content.get("pre_tokenizer"))]
    normalizer = (content.get("normalizer") or {}).get("type")
    if model.get("type") != "BPE" or model.get("byte_fallback") or not parts:
        kind = "BPE on characters" if model.get("type") == "BPE" else model.get("type")
        raise ModelError(f"its tokenizer is {kind}, which is not written as GGUF", where=where, remedy=_TAKE_ANOTHER)
    if not model.get("merges"):
        raise ModelError("its tokenizer merges nothing", where=where, remedy=_TAKE_ANOTHER)
    odd = [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    # llama.cpp normalises nothing; texts are mostly in this form already, as its own converter assumes.
    if normalizer not in (None, "NFC") or odd:
        raise ModelError(
            f"its tokenizer uses {odd[0] if odd else normalizer}, which llama.cpp does not",
            where=where,
            remedy=_TAKE_ANOTHER,
        )
    ignores = bool(model.get("ignore_merges"))
    if parts[-1:] == list(_gaps(model["vocab"])):
        parts.pop()
    for name, way in WAYS.items():
        if parts == list(way.parts) and ignores == way.ignore_merges:
            return name
    raise ModelError("llama.cpp has no name for how its tokenizer cuts texts", where=where, remedy=_TAKE_ANOTHER)


def _flat(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return list(part["pretokenizers"]) if part.get("type") == "Sequence" else [part]


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    """Without what changes no ids."""
    return {key: value for key, value in part.items() if key != "trim_offsets"}


def _listed(
    vocabulary: Mapping[str, int], added: Iterable[Mapping[str, Any]], size: int, *, where: str
) -> tuple[list[str], list[int]]:
    if (last := max(vocabulary.values())) >= size:
        raise ModelError(
            f"the tokenizer has the id {last}, the model embeddings for {size}",
            where=where,
            remedy="use the tokenizer that belongs to the model",
        )
    tokens, types = [f"[PAD{index}]" for index in range(size)], [UNUSED] * size
    for token, index in vocabulary.items():
        tokens[index], types[index] = token, NORMAL
    for entry in added:
        text = entry["content"]
        looks_special = text.startswith("<|") and text.endswith("|>")
        types[entry["id"]] = CONTROL if entry.get("special") or looks_special else USER_DEFINED
    return tokens, types


def _joined(merge: str | Sequence[str], where: str) -> str:
    text = merge if isinstance(merge, str) else " ".join(merge)
    if text.count(" ") != 1:
        raise ModelError(f"its merge {text!r} has spaces in it", where=where, remedy=_TAKE_ANOTHER)
    return text


def _put_around(built: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that are put before and behind a text."""
    plain, whole = built.encode("a", add_special_tokens=False).ids, built.encode("a").ids
    start = next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]
