"""Windows that begin with documents: which tokens count in them, and that each counts once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydantic import ValidationError

from edgeforge.core.errors import DataError
from edgeforge.core.task import NO_LABEL
from edgeforge.tasks import _windows
from edgeforge.tasks.causal_lm import CausalLm

if TYPE_CHECKING:
    from tests.conftest import Tales


def streams(*lengths: int) -> list[_windows.Stream]:
    """Documents whose tokens are numbered through, all of them to be learnt."""
    ends = np.cumsum(lengths)
    ids = [np.arange(end - length, end, dtype=np.int32) for end, length in zip(ends, lengths, strict=True)]
    return [_windows.Stream(one, np.ones(len(one), dtype=bool), np.ones(len(one), dtype=np.int32)) for one in ids]


@pytest.mark.parametrize(
    ("lengths", "windows"),
    [
        # documents begin at 0, 4, 7, 12, 16; ten tokens a window
        ((4, 3, 5, 4, 6), [(0, 7), (7, 16)]),
        ((5, 5, 5, 5), [(0, 10), (10, 20)]),  # each window is full
        ((3, 14, 4, 9), [(0, 3), (3, 13), (13, 21)]),  # what does not fit at all goes on in the next
    ],
)
def test_every_token_counts_once_behind_its_documents_beginning(
    lengths: tuple[int, ...], windows: list[tuple[int, int]]
) -> None:
    found = _windows.of_documents(streams(*lengths), length=10, before=None, part="test")
    ids, labels = found.at(range(len(found)))
    assert ids[:, 0].tolist() == [first for first, _ in windows]
    for row, (first, behind) in enumerate(windows):
        assert ids[row].tolist() == list(range(first, first + 10)), "the window is full all the same"
        assert [label for label in labels[row] if label != NO_LABEL] == list(range(first + 1, behind))
    assert found.label_bytes(range(len(found))).sum() == sum(behind - first - 1 for first, behind in windows)


def test_a_token_before_every_text_stands_before_every_window() -> None:
    found = _windows.of_documents(streams(4, 3, 5, 4, 6), length=10, before=99, part="test")
    ids, labels = found.at(range(len(found)))
    assert ids[:, :2].tolist() == [[99, 0], [99, 7]]
    assert labels[0].tolist() == [0, 1, 2, 3, 4, 5, 6, NO_LABEL, NO_LABEL, NO_LABEL]


def test_too_little_is_refused() -> None:
    with pytest.raises(DataError, match="the test part has 9 tokens, and 10 are needed"):
        _windows.of_documents(streams(4, 5), length=10, before=None, part="test")


def test_chats_are_learnt_from_their_questions_on(tales: Tales, tmp_path: Path) -> None:
    for part in ("train", "test"):
        lines = [
            {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "no " * (n + 1)}]}
            for number, n in ((number, number % 5) for number in range(60))
        ]
        text = "".join(json.dumps({**line, "part": part}) + "\n" for line in lines)
        (tmp_path / f"{part}.jsonl").write_text(text, encoding="utf-8")
    data = {"kind": "jsonl", **{part: str(tmp_path / f"{part}.jsonl") for part in ("train", "test")}}
    said = {**dict(tales.task), "data": data, "max_length": 48, "answers_only": True}
    cut, whole = (CausalLm.model_validate({**said, "whole_documents": value}) for value in (False, True))
    assert cut.digest() != whole.digest()
    opened = whole.open()
    for split in ("train", "validation", "test"):
        batch = opened.batch(split, range(opened.size(split)))  # type: ignore[arg-type]
        assert (batch["input_ids"][:, 0] == 1).all(), "<|im_start|>"
        assert (batch["labels"] != NO_LABEL).any(dim=1).all()
    anywhere = cut.open().batch("train", range(cut.open().size("train")))["input_ids"][:, 0]
    assert not (anywhere == 1).all()
    with pytest.raises(ValidationError, match="leave `stride` out"):
        CausalLm.model_validate({**said, "whole_documents": True, "stride": 8})
