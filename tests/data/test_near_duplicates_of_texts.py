"""Texts that were said before."""

from __future__ import annotations

import pytest

from edgeforge.data._near_duplicates import Known, letters

SAID = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps for a very long time.",
    "Hello there!",
]


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("the QUICK brown fox: jumps over the lazy dog and then it sleeps for a very long time", True),
        ("hello, there", True),
        # Ten words, six runs of five; four of them said before, or two.
        ("Quick brown fox jumps over the lazy dog at noon", True),
        ("A red brown fox jumps over the lazy cat indeed", False),
        ("Hello there, how are you?", False),
        ("Something else that nobody in this file has said before", False),
    ],
)
def test_half_of_the_runs_of_five_words_make_a_copy(text: str, known: bool) -> None:
    assert Known(SAID).holds(text) is known


def test_letters_forget_form_addresses_and_numbers() -> None:
    assert letters("Write to me@x.org, or see https://x.org/7: 42 Days!") == "write to or see days"
