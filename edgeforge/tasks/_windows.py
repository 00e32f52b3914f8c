"""Documents as one stream of tokens, cut into windows of one length; and which of them make the validation split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeforge.core.errors import DataError
from edgeforge.core.task import NO_LABEL
from edgeforge.data import Document
from edgeforge.models import chat, tokenizer

SPLIT_SEED = 0
DOCUMENTS_TO_CHOOSE_FROM = 10
"""With fewer, a share of the documents would be far from the share that was asked for."""
TEXTS_AT_ONCE = 256
CHARACTERS_AT_ONCE = 1_000_000
"""A tokenizer takes some hundred bytes for each character while it works."""

_Text = tuple[str, "list[chat.Span] | None"]
"""A text, and the characters of it to be learnt; None: all of it."""


@dataclass(frozen=True)
class Stream:
    """Tokens in order, three arrays of shape (tokens,).

    `ids`: int32; `wanted`: bool, whether a model should learn to write the token; `size_bytes`: int32, how much of
    the text it stands for.
    """

    ids: np.ndarray
    wanted: np.ndarray
    size_bytes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def streams(documents: Sequence[Document], folder: Path, *, answers_only: bool) -> list[Stream]:
    """Each document as the tokenizer in `folder` reads it, with the token that ends a text behind it.

    Chats are rendered with the tokenizer's template. Raises ModelError, and DataError for a chat it does not take.
    """
    lengths, blank, end = tokenizer.byte_lengths(folder), tokenizer.blank_before(folder), tokenizer.end_of_text(folder)
    template = chat.opened(folder) if any(document.messages for document in documents) else None
    reader = tokenizer.read(folder)
    found = []
    for some in _batches(_as_text(document, template, answers_only) for document in documents):
        read = reader(
            [text for text, _ in some],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=answers_only,
        )
        for number, (_, spans) in enumerate(some):
            ids = np.asarray([*read["input_ids"][number], end], dtype=np.int32)
            wanted = np.ones(len(ids), dtype=bool)
            if spans is not None:
                wanted[:-1] = _within(np.asarray(read["offset_mapping"][number]), spans)
                wanted[-1] = False
            sizes = lengths[ids].astype(np.int32)
            sizes[-1] = 0  # also where what ends a text is no special token
            sizes[0] -= min(blank, sizes[0])
            found.append(Stream(ids, wanted, sizes))
    return found


def _batches(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
    """The texts in order, some at a time."""
    batch: list[_Text] = []
    for text in texts:
        batch.append(text)
        if sum(len(one) for one, _ in batch) >= CHARACTERS_AT_ONCE or len(batch) >= TEXTS_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _as_text(document: Document, template: chat.ChatTemplate | None, answers_only: bool) -> _Text:
    if template is None or not document.messages:
        return document.text, None
    return template.answers(document) if answers_only else (template.render(document), None)


def _within(offsets: np.ndarray, spans: Iterable[chat.Span]) -> np.ndarray:
    """Which tokens, by their first character and the one after their last, int (tokens, 2), lie in one of the spans."""
    wanted = np.zeros(len(offsets), dtype=bool)
    for first, after in spans:
        wanted |= (offsets[:, 0] >= first) & (offsets[:, 1] <= after)
    return wanted


def joined(parts: Sequence[Stream]) -> Stream:
    """Documents one after the other."""
    return Stream(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.wanted for part in parts]),
        np.concatenate([part.size_bytes for part in parts]),
    )


@dataclass(frozen=True)
class Windows:
    """Windows of `length` tokens over a stream: `before`, if there is one, and tokens from `starts` on.

    `starts`, `unscored` and `ends` are int64, shape (windows,): where a window begins in the stream, the first token
    there that no earlier window holds, and the first behind those that count in this one.
    """

    stream: Stream
    starts: np.ndarray
    unscored: np.ndarray
    ends: np.ndarray
    length: int
    before: int | None

    def __len__(self) -> int:
        return len(self.starts)

    def at(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids, and what follows each or NO_LABEL, of some windows; both int64, shape (N, length)."""
        ids = self.stream.ids[self._positions(rows)].astype(np.int64)
        if self.before is not None:
            ids = np.concatenate([np.full((len(ids), 1), self.before), ids], axis=1)
        labels = np.full_like(ids, NO_LABEL)
        labels[:, :-1] = np.where(self._scored(rows), ids[:, 1:], NO_LABEL)
        return ids, labels

    def label_bytes(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """How many bytes of text each label stands for, int64, shape (N, length); 0 where there is none."""
        found = np.zeros((len(rows), self.length), dtype=np.int64)
        predicted = self._predicted(rows)
        found[:, :-1] = np.where(self._scored(rows), self.stream.size_bytes[predicted], 0)
        return found

    def chosen(self, rows: np.ndarray) -> Windows:
        """Only these windows."""
        return replace(self, starts=self.starts[rows], unscored=self.unscored[rows], ends=self.ends[rows])

    def with_labels(self) -> Windows:
        """Without the windows in which nothing is to be predicted."""
        known = np.concatenate([[0], np.cumsum(self.stream.wanted)])
        first = np.maximum(self.starts + (self.before is None), self.unscored)
        return self.chosen(np.flatnonzero(known[self.ends] > known[np.minimum(first, self.ends)]))

    @property
    def _content(self) -> int:
        return self.length - (self.before is not None)

    def _positions(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Places in the stream, int64, shape (N, tokens of the stream in a window)."""
        places: np.ndarray = self.starts[np.asarray(rows, dtype=np.int64)][:, None] + np.arange(self._content)
        return places

    def _predicted(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Places in the stream of what follows each position but the last, int64, shape (N, length - 1)."""
        return self._positions(rows)[:, self.before is None :]

    def _scored(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        predicted = self._predicted(rows)
        chosen = np.asarray(rows, dtype=np.int64)
        counts = (predicted >= self.unscored[chosen][:, None]) & (predicted < self.ends[chosen][:, None])
        scored: np.ndarray = counts & self.stream.wanted[predicted]
        return scored


def cut(stream: Stream, *, length: int, stride: int, before: int | None, part: str) -> Windows:
    """Windows of `length` tokens, each `stride` behind the one before; less than a window at the end is left out.

    `part`: what to call the data in an error. Raises DataError where there is no whole window.
    """
    content = length - (before is not None)
    if len(stream) < content:
        raise too_short(part, len(stream), content)
    stride = min(stride, content)
    starts = np.arange(0, len(stream) - content + 1, stride)
    unscored = np.concatenate([[0], starts[:-1] + content])
    return Windows(stream, starts, unscored, starts + content, length, before)


def of_documents(parts: Sequence[Stream], *, length: int, before: int | None, part: str) -> Windows:
    """Windows that each begin with a document, and go on with as many as fit whole.

    The one behind them begins the next window; what of it stands here does not count. Only of a document that is
    longer than a window does the next one begin within it. Raises DataError as `cut` does.
    """
    stream, content = joined(parts), length - (before is not None)
    if len(stream) < content:
        raise too_short(part, len(stream), content)
    begins = np.cumsum([0, *map(len, parts)])
    starts, ends = [0], list[int]()
    while True:
        limit = starts[-1] + content
        behind = int(begins[np.searchsorted(begins, limit, side="right") - 1])
        ends.append(behind if behind > starts[-1] else limit)
        if ends[-1] + content > len(stream):
            break
        starts.append(ends[-1])
    return Windows(stream, np.array(starts), np.array(starts), np.array(ends), length, before)


def too_short(part: str, there: int, needed: int) -> DataError:
    """The error for a part of the data that holds too few tokens."""
    return DataError(
        f"the {part} part has {there:,} tokens, and {needed:,} are needed",
        where="task.data",
        remedy="give more text, or lower the task's `max_length`",
    )


def spread(count: int, wanted: int | None) -> np.ndarray:
    """At most `wanted` of `count` positions, as evenly spread as they go; all where it is None. int64."""
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, wanted).round().astype(np.int64))


def validation_documents(parts: Sequence[Stream], share: float, needed: int) -> np.ndarray | None:
    """Which documents to keep apart, bool, shape (documents,), always the same; None where that cannot be done.

    That is with few documents, or where either side would have fewer than `needed` tokens.
    """
    if len(parts) < DOCUMENTS_TO_CHOOSE_FROM:
        return None
    held = np.zeros(len(parts), dtype=bool)
    # RandomState's streams are frozen by NumPy's policy, Generator's are not: the split must outlive an upgrade.
    order = np.random.RandomState(SPLIT_SEED).permutation(len(parts))
    held[order[: max(1, round(share * len(parts)))]] = True
    sizes = np.array([len(part) for part in parts])
    return held if min(sizes[held].sum(), sizes[~held].sum()) >= needed else None
