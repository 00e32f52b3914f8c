"""Cutting a vocabulary: which tokens stay, the tokenizer's files without the others, the model's embeddings likewise.

WordPiece (BERT, DistilBERT, ELECTRA, MiniLM) and byte-pair encoding (RoBERTa; decoders but those with SentencePiece).
Tokens keep their order, so new ids follow from the old ones alone. What is used with all of its tokens kept is split as
before: WordPiece takes the longest token that fits, and byte-pair encoding the first merge that applies; neither
changes when others are taken away.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.models import chat, tokenizer
from edgeforge.models.folder import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Characters = Literal["all", "seen"]

ROLES = ("system", "user", "assistant", "tool")
"""What chat templates write for whoever speaks."""

ONLY_THESE = "keep the whole vocabulary, or use a model with a WordPiece or byte-pair tokenizer"


@dataclass(frozen=True)
class Cut:
    """The old ids that stay, rising: each one's place is its new id. `used` counts those that the texts hold."""

    kept: tuple[int, ...]
    used: int

    @property
    def new_ids(self) -> dict[int, int]:
        """Old id -> new id."""
        return {old: new for new, old in enumerate(self.kept)}


def choose(
    folder: Path, counts: np.ndarray, fixed: Iterable[int], *, max_size: int | None, characters: Characters
) -> Cut:
    """What stays of the tokenizer in `folder`, by how often each id occurs in the texts.

    `counts`: int64, shape (embeddings,); `fixed` are ids that the model needs. Special tokens, what the chat template
    writes and single characters (of a byte-level vocabulary: bytes) stay in any case, so that an unknown word is still
    split (WordPiece with `characters="seen"`: those in no text go, and words with them become unknown as a whole). Then
    the most frequent tokens, with all that they are merged from, up to `max_size`.
    Raises ModelError where it cannot be cut, or `max_size` has no room for what must stay.
    """
    content = read_json(folder / tokenizer.MAIN)
    _check_kind(content, folder)
    model, ids = content["model"], _all_ids(content)
    special = {*fixed, *_special(content), *tokenizer.read(folder).all_special_ids, *_chat_ids(folder)}
    special.update(ids[token] for token in tokenizer.END_OF_TEXT if token in ids)
    used = [index for index in ids.values() if counts[index] > 0 and index not in special]
    with_parts = _closure(model)
    kept = with_parts(special | _singles(model, seen=None if characters == "all" else set(used)))
    if max_size is not None and len(kept) > max_size:
        raise ModelError(
            f"a vocabulary of {max_size} would lose special tokens or single characters: "
            f"{len(special)} and {len(kept) - len(special)} of them must stay",
            where="max_size",
            remedy=f"use at least {len(kept)}",
        )
    for index in sorted(used, key=lambda index: (-counts[index], index)):
        new = with_parts({index}) - kept
        if max_size is None or len(kept) + len(new) <= max_size:
            kept |= new
    return Cut(tuple(sorted(kept)), len(used))


def _check_kind(content: Mapping[str, Any], folder: Path) -> None:
    model = content["model"]
    kind = model.get("type") or ("BPE" if "merges" in model else "unnamed")
    pieces = sorted(path.name for path in folder.glob("*.model"))
    if kind not in ("WordPiece", "BPE") or model.get("byte_fallback") or pieces:
        name = "SentencePiece" if pieces or model.get("byte_fallback") else kind
        raise ModelError(f"a {name} vocabulary cannot be cut", where=str(folder), remedy=ONLY_THESE)
    if kind == "WordPiece" and model.get("unk_token") not in model["vocab"]:
        raise ModelError("it has no token for unknown words", where=str(folder / tokenizer.MAIN), remedy=ONLY_THESE)


def _all_ids(content: Mapping[str, Any]) -> dict[str, int]:
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    return {**content["model"]["vocab"], **added}


def _special(content: Mapping[str, Any]) -> Iterator[int]:
    """Ids of tokens that have a meaning of their own: marked as special, unknown, or put around every text."""
    for token in content.get("added_tokens") or ():
        if token.get("special"):
            yield token["id"]
    unknown = content["model"].get("unk_token")
    if unknown in content["model"]["vocab"]:
        yield content["model"]["vocab"][unknown]
    if padding := content.get("padding"):
        yield padding["pad_id"]
    around: list[int] = []

    def note(index: int) -> int:
        around.append(index)
        return index

    _processed(content.get("post_processor"), note)
    yield from around


def _chat_ids(folder: Path) -> set[int]:
    """Ids in all that the chat template beside a tokenizer writes itself, and in the speakers' names."""
    source = chat.template(folder)
    if source is None:
        return set()
    read = tokenizer.read(folder)
    texts = [*ROLES, *_written(source, folder)]
    return {index for text in texts for index in read.encode(text, add_special_tokens=False)}


def _written(template: str, folder: Path) -> Iterator[str]:
    """The texts in a Jinja template, bare and quoted. It is only divided into words, nothing of it runs."""
    from jinja2 import Environment, TemplateSyntaxError

    lexer = Environment(trim_blocks=True, lstrip_blocks=True).lexer
    try:
        yield from (token.value for token in lexer.tokenize(template) if token.type in ("data", "string"))
    except TemplateSyntaxError as error:
        raise ModelError(
            f"its chat template is no Jinja template: {error}", where=str(folder), remedy="correct or remove it"
        ) from error


def _singles(model: Mapping[str, Any], *, seen: set[int] | None) -> set[int]:
    """Ids of tokens of one character; given `seen` ids, of a WordPiece vocabulary only characters in those tokens."""
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""

    def body(token: str) -> str:
        return (token.removeprefix(prefix) or token).removesuffix(suffix) or token

    vocabulary: dict[str, int] = model["vocab"]
    found = {token: index for token, index in vocabulary.items() if len(body(token)) == 1}
    if seen is None or "merges" in model:
        return set(found.values())
    letters = {letter for token, index in vocabulary.items() if index in seen for letter in body(token)}
    return {index for token, index in found.items() if body(token) in letters}


def _closure(model: Mapping[str, Any]) -> Callable[[set[int]], set[int]]:
    """What makes of ids the same ids with all tokens that they are merged from, over any number of merges."""
    if "merges" not in model:
        return lambda ids: ids
    vocabulary: dict[str, int] = model["vocab"]
    parts: dict[int, list[int]] = {}
    for left, right, made in _merges(model):
        if {left, right, made} <= vocabulary.keys():
            parts.setdefault(vocabulary[made], []).extend((vocabulary[left], vocabulary[right]))

    def close(ids: set[int]) -> set[int]:
        found, waiting = set(ids), list(ids)
        while waiting:
            new = [index for index in parts.get(waiting.pop(), ()) if index not in found]
            found.update(new)
            waiting.extend(new)
        return found

    return close


def _merges(model: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(left, right, what they make) for every merge, in order."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right, left + right.removeprefix(prefix)


# -- the tokenizer's files


def write(source: Path, target: Path, cut: Cut) -> None:
    """Write the tokenizer of the folder `source`, cut, into `target`: every file of it.

    Raises EnvironmentProblem where the disk refuses.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        content = _cut_main(read_json(source / tokenizer.MAIN), cut.new_ids)
        _write_json(target / tokenizer.MAIN, content)
        for name in tokenizer.FILES:
            if name != tokenizer.MAIN and (source / name).is_file():
                _write_other(source / name, target / name, content["model"], cut.new_ids)
    except OSError as error:
        raise EnvironmentProblem(
            f"the tokenizer cannot be written: {error}", where=str(target), remedy="is there room on the disk?"
        ) from error


def _cut_main(content: dict[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """``tokenizer.json`` with new ids and without what is gone."""
    model = content["model"]
    model["vocab"] = _renumbered(model["vocab"], new)
    if "merges" in model:
        whole = [{left, right, made} <= model["vocab"].keys() for left, right, made in _merges(model)]
        model["merges"] = [merge for merge, stays in zip(model["merges"], whole, strict=True) if stays]
    added = content.get("added_tokens") or ()
    content["added_tokens"] = [{**token, "id": new[token["id"]]} for token in added if token["id"] in new]
    content["post_processor"] = _processed(content.get("post_processor"), new.__getitem__)
    if padding := content.get("padding"):
        padding["pad_id"] = new[padding["pad_id"]]
    return content


def _write_other(source: Path, target: Path, model: Mapping[str, Any], new: Mapping[int, int]) -> None:
    tokens = list(model["vocab"])
    if source.name == "tokenizer_config.json":
        settings = read_json(source)
        decoder = settings.get("added_tokens_decoder") or {}
        if decoder:
            kept = {str(new[int(index)]): token for index, token in decoder.items() if int(index) in new}
            settings["added_tokens_decoder"] = kept
        _write_json(target, settings)
    elif source.name == "vocab.txt":
        # A token's line is its id there, which added tokens between them would shift.
        if list(model["vocab"].values()) == list(range(len(tokens))):
            target.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    elif source.name == "vocab.json":
        _write_json(target, model["vocab"])
    elif source.name == "merges.txt":
        lines = "".join(f"{left} {right}\n" for left, right, _ in _merges(model))
        target.write_text(f"#version: 0.2\n{lines}", encoding="utf-8", newline="\n")
    else:  # names no ids
        target.write_bytes(source.read_bytes())


def _renumbered(vocabulary: Mapping[str, int], new: Mapping[int, int]) -> dict[str, int]:
    """Token -> new id, rising."""
    kept = [(new[index], token) for token, index in vocabulary.items() if index in new]
    return {token: index for index, token in sorted(kept)}


def _processed(part: Any, number: Callable[[int], int]) -> Any:
    """A post-processor with every id in it replaced by `number` of it."""
    if not isinstance(part, dict):
        return part
    changed = dict(part)
    if "processors" in part:  # a sequence
        changed["processors"] = [_processed(one, number) for one in part["processors"]]
    for role in ("sep", "cls"):  # BertProcessing, RobertaProcessing: [token, id]
        if role in part:
            changed[role] = [part[role][0], number(part[role][1])]
    if "special_tokens" in part:  # TemplateProcessing
        changed["special_tokens"] = {
            name: {**token, "ids": [number(index) for index in token["ids"]]}
            for name, token in part["special_tokens"].items()
        }
    return changed


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


# -- the model


def check_model(model: PreTrainedModel) -> int:
    """How many tokens a text classifier or a decoder has embeddings for. Raises ModelError where it is neither."""
    from torch import nn

    reads_tokens = model.main_input_name == "input_ids"  # a convolutional network raises when asked for embeddings
    embedding = model.get_input_embeddings() if reads_tokens else None
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(
            f"a {type(model).__name__} reads no tokens and has no vocabulary",
            remedy="use {kind: vocabulary} for text models",
        )
    head = model.get_output_embeddings()
    if head is not None and not (model.can_generate() and isinstance(head, nn.Linear)):
        raise ModelError(
            f"a {type(model).__name__} writes tokens too, and no texts",
            remedy="cut the vocabulary of a classifier or a decoder",
        )
    return int(embedding.num_embeddings)


def fixed_ids(model: PreTrainedModel) -> set[int]:
    """Ids that the model's configs name, or that its positions start from."""
    from torch import nn

    size = check_model(model)
    named = {index for config in _configs(model) for _, ids in _named_ids(config) for index in ids if 0 <= index < size}
    words = model.get_input_embeddings()
    for module in model.modules():
        # RoBERTa's positions are counted from the padding's id on, which therefore must not change.
        if isinstance(module, nn.Embedding) and module is not words and module.padding_idx is not None:
            named.update(range(module.padding_idx + 1))
    return named


def shrink(model: PreTrainedModel, cut: Cut) -> None:
    """Leave `model` the embeddings of the tokens that stay, in place, and its configs their ids.

    What makes logits of the last states loses the same tokens; where it is the embeddings, it stays the embeddings.
    """
    from edgeforge.models.surgery import keep_channels, keep_rows

    new = cut.new_ids
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is words.weight
    keep_rows(words, cut.kept)
    if head is not None:
        keep_channels(head, cut.kept, outputs=True)
    if tied:
        head.weight = words.weight
    for config in _configs(model):
        _renumber(config, new)
    for module in model.modules():
        if isinstance(getattr(module, "padding_idx", None), int) and not hasattr(module, "num_embeddings"):
            module.padding_idx = new[module.padding_idx]  # some keep it beside the layer's own
        if "vocab_size" in vars(module):
            module.vocab_size = len(cut.kept)
    model.config.vocab_size = len(cut.kept)


def _configs(model: PreTrainedModel) -> tuple[Any, ...]:
    """The model's config, and how it writes texts where it does."""
    writing = getattr(model, "generation_config", None)
    return (model.config,) if writing is None else (model.config, writing)


def _renumber(config: Any, new: Mapping[int, int]) -> None:
    """Give a config the new ids, in place; what it forbids to write and is gone needs no word."""
    for name, value in list(_named_ids(config)):
        ids = [new.get(index, index) for index in value]
        setattr(config, name, ids[0] if isinstance(getattr(config, name), int) else ids)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if forbidden := getattr(config, name, None):
            setattr(config, name, [new[index] for index in forbidden if index in new])
    if phrases := getattr(config, "bad_words_ids", None):
        config.bad_words_ids = [[new[index] for index in ids] for ids in phrases if set(ids) <= new.keys()]


def _named_ids(config: Any) -> Iterator[tuple[str, Sequence[int]]]:
    """(name, ids) of every ``..._token_id`` that a config has."""
    for name in sorted(config.to_dict()):
        value = getattr(config, name, None)
        if name.endswith("_token_id") and isinstance(value, int | list):
            yield name, [value] if isinstance(value, int) else value
