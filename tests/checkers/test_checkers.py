"""Which answers each checker takes for right."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeforge.checkers import NO_ANSWER, Checker, Marked
from edgeforge.checkers.exact import Exact
from edgeforge.checkers.numeric import Numeric, number
from edgeforge.checkers.python import Python
from edgeforge.checkers.regex import Regex
from edgeforge.core.errors import DataError

TRACE = "First 3 + 4 = 7.\nAnswer: 7\nSo twice that.\nAnswer:  14 \n"


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "14"),
        ({"take": "first"}, "7"),
        ({"pattern": r"\\boxed\{(.*?)\}"}, None),
        ({"pattern": r"[0-9]+"}, "14"),
        ({"pattern": r"(?s)Answer:.*(twice)"}, "twice"),
        ({"pattern": r"Answer:(x)?"}, None),
    ],
)
def test_where_the_answer_stands(fields: dict[str, Any], found: str | None) -> None:
    assert Marked(**fields).find(TRACE) == found


def test_no_marked_answer_is_a_reason_of_its_own() -> None:
    verdict = Numeric(answer=Marked()).verify("it is 14", "14")
    assert (verdict.passed, verdict.reason, verdict.answer) == (False, NO_ANSWER, None)
    assert Numeric(answer=Marked()).verify("Answer:", "14").reason == NO_ANSWER
    assert Exact().verify("  ", "14").reason == NO_ANSWER
    right = Numeric(answer=Marked()).verify(TRACE, "14")
    assert (right.passed, right.reason, right.answer) == (True, "", "14")


@pytest.mark.parametrize(
    ("checker", "text", "expected", "passed"),
    [
        (Exact(), " new\n york ", "new york", True),
        (Exact(), "New York", "new york", False),
        (Exact(ignore_case=True), "New YORK", "new york", True),
        (Exact(), "cafe\u0301", "caf\u00e9", True),
        (Exact(), "42.0", "42", False),
        (Numeric(), "42.0", "42", True),
        (Numeric(), "$1,234.50", "1234.5", True),
        (Numeric(), "\u22123", "-3", True),
        (Numeric(), "1/2", "0.5", True),
        (Numeric(), "2.5e3 metres", "2500", True),
        (Numeric(), "12,34", "12", False),
        (Numeric(), "3x", "3", False),
        (Numeric(), "1.2.3", "1.2", False),
        (Numeric(), "about 3", "3", False),
        (Numeric(), "1/0", "1", False),
        (Numeric(tolerance=0.01), "3.14", "3.1415", True),
        (Numeric(tolerance=0.001), "3.14", "3.1415", False),
        (Numeric(relative_tolerance=0.1), "90", "100", True),
        (Numeric(relative_tolerance=0.1), "89", "100", False),
        (Regex(pattern="[a-z]+"), "abc", None, True),
        (Regex(pattern="[a-z]+"), "abc1", None, False),
        (Regex(pattern="(.*) or (?P<better>.*)", group="better"), "3 or 4", "4", True),
        (Regex(pattern="(.*) or (.*)", group=1), "3 or 4", "4", False),
    ],
)
def test_verdicts(checker: Checker, text: str, expected: str | None, passed: bool) -> None:
    verdict = checker.verify(text, expected)
    assert verdict.passed is passed
    assert bool(verdict.reason) is not passed


@given(st.integers(min_value=-(10**60), max_value=10**60))
def test_long_numbers_are_told_apart(value: int) -> None:
    assert number(str(value)) == value
    assert number(f"{value:,}") == value
    assert not Numeric().verify(str(value + 1), str(value)).passed


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**12), max_value=10**12))
def test_decimals_are_exact(value: Any) -> None:
    assert number(f"{value:f}") == Fraction(value)


def test_an_endless_number_is_none() -> None:
    assert number("9" * 5000) is None
    assert number("1e999999999") is None


@pytest.mark.parametrize("checker", [Exact(), Numeric(), Regex(pattern="(.*)", group=1)])
def test_nothing_to_compare_with_is_an_error_and_no_rejection(checker: Checker) -> None:
    with pytest.raises(DataError, match="no answer is known"):
        checker.verify("3", None, "What is 1 + 2?")


def test_an_expected_answer_that_is_no_number() -> None:
    with pytest.raises(DataError, match="the expected answer is no number: 'three'"):
        Numeric().verify("3", "three")


@pytest.mark.parametrize(("fields", "match"), [({"pattern": "("}, "no regular expression"), ({"group": 2}, "no group")])
def test_expressions_that_cannot_be_used(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        Regex.model_validate({"pattern": "(a)", **fields})


CHECKS = """
def even(answer, expected, question):
    return int(answer) % 2 == 0

def says(answer, expected, question):
    return "" if answer in question else "not in the question"

def nothing(answer, expected, question):
    pass
"""


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("even", "4", ""), ("even", "3", "rejected"), ("says", "sky", ""), ("says", "sea", "not in the question")],
)
def test_a_users_checker(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / "checks.py").write_text(CHECKS, encoding="utf-8")
    verdict = Python(function=f"{tmp_path}/checks.py:{name}").verify(text, None, "Why is the sky blue?")
    assert (verdict.passed, verdict.reason) == (not reason, reason)


@pytest.mark.parametrize(
    ("name", "match"),
    [("even", r"checks\.py:3: even\('x', None, ''\) raised ValueError"), ("nothing", "returned None")],
)
def test_a_checker_that_fails_does_not_reject(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "checks.py").write_text(CHECKS, encoding="utf-8")
    with pytest.raises(DataError, match=match):
        Python(function=f"{tmp_path}/checks.py:{name}").verify("x")
