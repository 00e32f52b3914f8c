"""Speculative decoding: a small model drafts tokens, a large one reads them at once and keeps those it would write.

Leviathan et al., 2023, "Fast Inference from Transformers via Speculative Decoding"; here greedy on both sides, so that
the text is the large model's own, as far as its answers do not depend on how many tokens are read at once. In float16
they practically do not; llama.cpp's quantized products choose other kernels for larger batches, and near ties may turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Ends(Protocol):
    """A model that knows which tokens end a text."""

    def ends(self, token: int) -> bool: ...


class Session(Protocol):
    """What `llama_cpp.LlamaCppSession` can do beyond a TextSession."""

    @property
    def model(self) -> Ends: ...

    def prefill(self, tokens: Sequence[int], *, room: int = 256) -> int: ...

    def read(self, tokens: Sequence[int]) -> list[int]: ...

    def go_back(self, length: int) -> None: ...


@dataclass
class Written:
    """A text without the token that ended it, and of each verification how many tokens were drafted and accepted."""

    tokens: list[int]
    drafts: list[tuple[int, int]] = field(default_factory=list)


class Pair:
    """A model and the one that drafts for it. Their vocabularies must be equal, which the caller has checked."""

    def __init__(self, teacher: Session, draft: Session, *, room: int) -> None:
        """`room`: how many tokens behind a prompt both may read, drafts included."""
        self.teacher, self.draft, self._room = teacher, draft, room

    def begin(self, prompt: Sequence[int]) -> int:
        """Let both read a prompt; the first token that the teacher writes."""
        self.draft.prefill(prompt, room=self._room)
        return self.teacher.prefill(prompt, room=self._room)

    def write(self, prompt: Sequence[int], first: int, *, limit: int, length: int) -> Written:
        """At most `limit` tokens, of which `first` is one, with drafts of `length` tokens; 0: plainly.

        `begin` was called with the same prompt before.
        """
        text, drafts = list(prompt), list[tuple[int, int]]()
        ends = self.teacher.model.ends
        last, known = first, len(prompt)  # `known`: how much of the text the draft has read
        while not ends(last):
            text.append(last)
            wanted = limit - (len(text) - len(prompt))
            if wanted < 1:
                break
            drafted = self._drafted(text[known:], min(length, wanted - 1))
            answers = self.teacher.read([last, *drafted])
            accepted = _common(drafted, answers)
            self.teacher.go_back(len(text) + accepted)
            ended = next((index for index, token in enumerate(drafted[:accepted]) if ends(token)), None)
            if drafted:
                known = min(len(text) + len(drafted) - 1, len(text) + accepted)
                self.draft.go_back(known)
                # Behind the end of a text there is nothing to be right about.
                drafts.append((len(drafted), accepted) if ended is None else (ended + 1, ended + 1))
            text += drafted[: accepted if ended is None else ended]
            if ended is not None:
                break
            last = answers[accepted]
        return Written(text[len(prompt) :], drafts)

    def _drafted(self, unread: Sequence[int], count: int) -> list[int]:
        if count < 1:
            return []
        drafted = [self.draft.read(unread)[-1]]
        while len(drafted) < count:
            drafted += self.draft.read([drafted[-1]])
        return drafted


def _common(drafted: Sequence[int], answers: Sequence[int]) -> int:
    """How many of the drafted tokens are what the teacher would have written."""
    wrong = (index for index, (one, other) in enumerate(zip(drafted, answers, strict=False)) if one != other)
    return next(wrong, len(drafted))


def acceptance(drafts: Sequence[tuple[int, int]], length: int) -> list[float | None]:
    """The share of verifications in which the first 1, 2, ..., `length` drafted tokens were all right.

    Those near the end of a text, for which less was drafted, are left out; None where there is no other.
    """
    whole = [accepted for drafted, accepted in drafts if drafted == length]
    return [
        sum(accepted >= position for accepted in whole) / len(whole) if whole else None
        for position in range(1, length + 1)
    ]


def projected_speedup(
    shares: Sequence[float | None], *, draft_ms: float, verify_ms: Mapping[int, float]
) -> float | None:
    """What drafts of ``len(shares)`` tokens would gain by the costs of their parts alone.

    A verification writes one token and those that are accepted before it, at the price of the drafts and of reading
    them at once; plainly, each token costs a reading of one. None where a share is not known.
    """
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return None
    length = len(shares)
    return (1 + sum(known)) * verify_ms[1] / (length * draft_ms + verify_ms[length + 1])
