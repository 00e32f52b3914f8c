"""Copies and relatives among mails, against pairs compared one by one."""

from __future__ import annotations

import itertools
import random

from edgeforge.fetchers._mail import Mail
from edgeforge.fetchers._near_duplicates import KNOWN_TO_MOST, copies_key, families

GENERATOR = random.Random(0)


def words(count: int) -> list[str]:
    return ["".join(GENERATOR.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(count)]


def of(*parts: list[str]) -> str:
    return " ".join(itertools.chain(*parts))


def test_copies_differ_in_case_blanks_digits_punctuation_and_addresses_only() -> None:
    first = Mail("Call me 16540", "See  http://x.org/1 now,\nor write to a@b.c!")
    assert copies_key(first) == copies_key(Mail("CALL ME 99", "see now\n\nor write to d@e.f 7"))
    assert copies_key(first) != copies_key(Mail("Call him", first.body))
    assert copies_key(Mail("", "123")) != copies_key(Mail("", "124"))


def test_a_thread_is_a_family() -> None:
    subjects = ["A question", "Re: A question", "[List] RE: a Question", "Fwd: Re[2]: A question.", "Another question"]
    assert families([Mail(subject, of(words(30))) for subject in subjects]) == [0, 0, 0, 0, 4]


def test_nothing_in_common_but_no_subject_and_no_body_is_no_family() -> None:
    mails = [Mail("", of(words(30))), Mail("", of(words(30))), Mail("x", ""), Mail("y", "")]
    assert families(mails) == [0, 1, 2, 3]


def test_mails_that_share_half_of_the_shorter_one_are_a_family() -> None:
    shared, own = words(400), [words(400) for _ in range(4)]
    mails = [
        Mail("a", of(shared, own[0])),
        Mail("b", of(own[1], shared[:300])),  # three quarters of the shared part, and 400 other words: 43 %
        Mail("c", of(own[2][:150], shared[100:])),  # two thirds of the third mail
        Mail("d", of(own[3])),
    ]
    assert families(mails) == [0, 1, 0, 3]
    assert families([*mails, Mail("e", of(shared[:300]))]) == [0, 0, 0, 3, 0]  # relatives of relatives


def test_a_footer_that_many_mails_have_makes_no_family() -> None:
    footer = words(50)
    mails = [Mail(of(words(3)), of(words(20), footer)) for _ in range(KNOWN_TO_MOST + 1)]
    assert families(mails) == list(range(KNOWN_TO_MOST + 1))
    assert families(mails[:-1]) == [0] * KNOWN_TO_MOST
