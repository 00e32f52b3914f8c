"""What each filter leaves out: everything planted, and nothing else."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from edgeforge.checkers import Marked
from edgeforge.checkers.numeric import Numeric
from edgeforge.core.errors import ConfigurationError, DataError
from edgeforge.filters import Context, Filter, Sample, refuse_empty, sieve
from edgeforge.filters.agreement import Agreement
from edgeforge.filters.duplicates import Duplicates
from edgeforge.filters.label_balance import LabelBalance
from edgeforge.filters.length import Length
from edgeforge.filters.near_duplicates import NearDuplicates
from edgeforge.filters.overlap_with_test import OverlapWithTest
from edgeforge.filters.schema import Schema
from edgeforge.filters.verified import Verified

WORDS = [first + second for first in ("ka", "lo", "mi", "nu", "re", "sa", "to", "vi") for second in "bdfgklmnprst"]


def sentence(draw: random.Random, words: int = 30) -> list[str]:
    return [draw.choice(WORDS) for _ in range(words)]


def left_out(one: Filter, samples: list[Sample], **context: Any) -> dict[int, str]:
    reasons = one.reasons(samples, Context(**context))
    return {position: reason for position, reason in enumerate(reasons) if reason is not None}


def of(*texts: str) -> list[Sample]:
    return [Sample(text) for text in texts]


# -- duplicates


def test_duplicates() -> None:
    samples = of("Hello, World!", "hello  world", "Hello worlds", "2 + 3", "2 - 3", "3.5", "35", "???", "!!!", "!!!")
    assert left_out(Duplicates(), samples) == {1: "there already", 9: "there already"}


def test_the_same_answer_to_another_question_is_none() -> None:
    samples = [Sample("42", "6 * 7"), Sample("42", "40 + 2"), Sample("43", "6 * 7")]
    assert left_out(Duplicates(), samples) == {}
    assert list(left_out(Duplicates(of="answer"), samples)) == [1]
    assert list(left_out(Duplicates(of="prompt"), samples)) == [2]


def jaccard(first: str, second: str, words: int) -> float:
    """By hand: shared runs of words over all runs."""
    one, two = (
        {" ".join(part[at : at + words]) for at in range(len(part) - words + 1)}
        for part in (first.split(), second.split())
    )
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("likeness", [0.5, 0.7, 0.9])
def test_near_duplicates_are_those_that_comparing_all_pairs_finds(likeness: float) -> None:
    draw = random.Random(1)
    texts = []
    for _ in range(20):
        base = sentence(draw, 60)
        for changed in (0, 1, 2, 3, 5, 8, 12, 20, 30):  # words at its end
            texts.append(" ".join(base[: 60 - changed] + sentence(draw, changed)))
    draw.shuffle(texts)
    kept: list[str] = []
    expected = []
    for position, text in enumerate(texts):
        if any(jaccard(text, other, 3) >= likeness for other in kept):
            expected.append(position)
        else:
            kept.append(text)
    assert 40 < len(expected) < 160
    found = left_out(NearDuplicates(likeness=likeness), of(*texts))
    assert set(found) - set(expected) == set(), "nothing is left out by chance"
    # Missing is allowed only by chance: at a likeness of one half, 0.4 % of the pairs.
    assert len(set(expected) - set(found)) <= (1 if likeness == 0.5 else 0)
    assert found == left_out(NearDuplicates(likeness=likeness), of(*texts)), "the same every time"


def test_near_duplicates_that_are_short() -> None:
    samples = of("yes", "Yes!", "no", "yes no", "", "")
    assert left_out(NearDuplicates(), samples) == {1: "almost there already"}


def test_likeness_is_measured_in_runs_of_words() -> None:
    draw = random.Random(2)
    first = sentence(draw, 12)
    samples = of(" ".join(first), " ".join(reversed(first)))
    assert left_out(NearDuplicates(), samples) == {}
    assert list(left_out(NearDuplicates(words=1), samples)) == [1]


# -- what is tested


def test_leaked_test_items_are_found_and_clean_ones_pass() -> None:
    draw = random.Random(3)
    tested = [" ".join(sentence(draw)) for _ in range(40)]
    clean = [" ".join(sentence(draw)) for _ in range(40)]
    leaked = [
        tested[0],
        f"{clean[0][:20]} {tested[1]}",
        tested[2].upper().replace(" ", ",  "),
        " ".join(tested[3].split()[:25] + clean[3].split()[:6]),
    ]
    samples = [*of(*clean, *leaked), Sample("no", tested[4]), Sample(tested[5], "Write something.")]
    found = left_out(OverlapWithTest(), samples, tested=tested)
    assert list(found) == list(range(40, 46))
    assert set(found.values()) == {"a text of the test part", "repeats the test part"}
    assert left_out(OverlapWithTest(), samples, tested=[]) == {}


def test_questions_that_differ_in_numbers_only_are_different_and_requests_all_share_do_not_count() -> None:
    ask = "What is {} ? Think step by step, then write the answer in a line of its own."
    tested = [ask.format(f"{number} + 7") for number in range(30)]
    samples = [Sample(str(n + 7), ask.format(f"{n} + 7")) for n in (5, 29, 30, 99)] + [
        Sample("12", ask.format("5 - 7")),
        Sample("12", ask.format("5.0 + 7")),
    ]
    assert list(left_out(OverlapWithTest(), samples, tested=tested)) == [0, 1]


def test_a_short_answer_may_be_that_of_a_test_question() -> None:
    assert left_out(OverlapWithTest(), [Sample("yes", "Is snow white on the hills?")], tested=["Is it?", "yes"]) == {}
    assert list(left_out(OverlapWithTest(), [Sample("fine", "is it")], tested=["Is it?", "yes"])) == [0]


# -- form, length, labels

TEAM = {
    "type": "object",
    "properties": {"team": {"enum": ["a", "b"]}, "n": {"$ref": "#/$defs/count"}},
    "required": ["team"],
    "additionalProperties": False,
    "$defs": {"count": {"type": "array", "items": {"type": "integer"}}},
}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"team": "a"}', None),
        ('```json\n{"team": "a", "n": [1]}\n```', None),
        ('{"team": "c"}', "team: none of the allowed values"),
        ("{}", "team: missing"),
        ('{"team": "a", "x": 1}', "holds what is not asked for"),
        ('{"team": "a", "n": [1, "2"]}', "n.[]: another type"),
        ("[]", "another type"),
        ('{"team": NaN}', "no JSON"),
        ('Sure! {"team": "a"}', "no JSON"),
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_schema(text: str, reason: str | None) -> None:
    assert Schema(json_schema=TEAM).reasons(of(text), Context()) == [reason]


@pytest.mark.parametrize(
    ("schema", "match"),
    [
        ({"type": "strin"}, "no JSON schema"),
        ({"properties": 3}, "no JSON schema"),
        ({"$ref": "http://example.org/s.json"}, "refers to another place"),
        ({"items": {"anyOf": [{"$ref": "other.json"}]}}, "refers to another place"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$ref": "#"}, "refers to itself"),
    ],
)
def test_schemas_that_cannot_be_used(schema: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Schema(json_schema=schema).reasons(of("3"), Context())


def test_length() -> None:
    samples = of("", "one", "one two three", "a b c d")
    assert left_out(Length(most=3), samples) == {0: "too short", 3: "too long"}
    assert left_out(Length(least=4, most=7, unit="characters"), samples) == {
        0: "too short",
        1: "too short",
        2: "too long",
    }
    with pytest.raises(ValidationError, match="at least 4 and at most 3"):
        Length(least=4, most=3)


def test_labels_are_known_and_balanced() -> None:
    samples = [Sample(str(n), label=label) for n, label in enumerate(["a"] * 20 + ["b"] * 3 + ["c", None] + ["b"])]
    one = LabelBalance(labels=("a", "b"))
    found = left_out(one, samples)
    assert {position: found[position] for position in (23, 24)} == {23: "none of the labels", 24: "no label"}
    assert list(found.values()).count("too many of 'a'") == 12  # 8 of 20 stay beside 4
    assert found == left_out(one, samples)
    assert found != left_out(one, samples, seed=1), "drawn by the seed"
    assert len(left_out(LabelBalance(labels=("a", "b"), ratio=None), samples)) == 2
    assert left_out(LabelBalance(labels=("d",)), samples[:3]) == dict.fromkeys(range(3), "none of the labels")


# -- agreement and verification


def group(number: int, *answers: str) -> list[Sample]:
    return [Sample(f"Because {index}.\nAnswer: {answer}", group=number) for index, answer in enumerate(answers)]


def test_agreement() -> None:
    samples = [
        *group(0, "12", "12.0", "13", "12"),
        *group(1, "1", "2", "3"),
        *group(2, "4", "4", "5", "5"),
        *group(3, "7"),
        *group(4, "New York", "new york!", ""),
    ]
    found = left_out(Agreement(answer=Marked()), samples)
    assert found == {
        2: "another answer than most",
        **dict.fromkeys(range(4, 12), "the samples do not agree"),
        14: "no marked answer",
    }
    assert left_out(Agreement(answer=Marked(), keep=1), samples)[1] == "enough for this prompt"
    strict = left_out(Agreement(answer=Marked(), share=0.8), samples)
    assert strict[0] == "the samples do not agree"


def test_agreement_on_labels() -> None:
    samples = [Sample(str(n), label=label, group=n // 3) for n, label in enumerate("aabbcc")]
    assert list(left_out(Agreement(), samples)) == [2, 3]


def test_agreement_where_every_sample_is_a_question_of_its_own() -> None:
    """What made the question up is one voice among those of the answers to it, and only it can be kept."""
    answers = {"a": ["12", "12.0", "13"], "b": ["7", "8", "8"], "c": ["1", "2"], "d": ["", "5", "5"], "e": ["6"]}
    samples = [Sample(found[0], name) for name, found in answers.items()]

    def again(asked: Sequence[Sample]) -> list[list[Sample]]:
        return [[Sample(text) for text in answers[sample.prompt]] for sample in asked]

    assert left_out(Agreement(), samples, again=again) == {
        1: "another answer than most",
        2: "the samples do not agree",
        3: "no marked answer",
        4: "the samples do not agree",
    }


def test_wrong_answers_are_rejected_and_several_right_ones_kept() -> None:
    samples = [
        Sample(one.text, "6 + 6", one.group, expected="12") for one in (*group(0, "12", "13", "12", "12"), *of("none"))
    ]
    one = Verified(checker=Numeric(answer=Marked()), keep=2)
    assert left_out(one, samples) == {
        1: "another number than expected",
        3: "enough for this prompt",
        4: "no marked answer",
    }
    with pytest.raises(DataError, match="no answer is known"):
        one.reasons(group(0, "12"), Context())


# -- one after the other


def test_filters_see_what_others_kept_and_say_their_yield() -> None:
    samples = of("a b", "a b", "x", "c d", "y", "e f g h")
    kept, yields = sieve([Duplicates(), Length(least=2, most=3)], samples, Context())
    assert kept == [0, 3]
    assert [one.as_json() for one in yields] == [
        {
            "filter": "duplicates",
            "in": 6,
            "out": 5,
            "reasons": {"there already": 1},
            "examples": {"there already": ["a b"]},
        },
        {
            "filter": "length",
            "in": 5,
            "out": 2,
            "reasons": {"too short": 2, "too long": 1},
            "examples": {"too short": ["x", "y"], "too long": ["e f g h"]},
        },
    ]
    assert json.dumps([one.as_json() for one in yields])
    refuse_empty(kept, yields, "stages[0]")


def test_examples_of_what_was_left_out_are_few_and_short() -> None:
    _, (one,) = sieve([Length(least=2)], of(*("x" * 1000 for _ in range(10))), Context())
    assert [len(text) for text in one.examples["too short"]] == [200] * 3


def test_an_empty_yield_says_where_all_went() -> None:
    kept, yields = sieve([Length(most=1), Schema(json_schema={"type": "object"})], of("3", "a b", "4"), Context())
    with pytest.raises(DataError) as caught:
        refuse_empty(kept, yields, "stages[0]")
    assert "length 1 of 3 (1 too long); schema 2 of 2 (2 another type)" in str(caught.value)
    with pytest.raises(DataError, match="nothing was written"):
        refuse_empty([], [], "stages[0]")


def test_order_does_not_matter_for_what_is_planted_once() -> None:
    draw = random.Random(4)
    texts = [" ".join(sentence(draw)) for _ in range(6)]
    samples = of(*texts, texts[0], "short")
    for order in itertools.permutations([Duplicates(), Length(least=5), NearDuplicates()]):
        kept, yields = sieve(order, samples, Context())
        assert kept == [0, 1, 2, 3, 4, 5]
        assert sum(one.into - one.out for one in yields) == 2
    assert not re.search(r"\bshort\b", " ".join(texts))
