"""A spec of synthetic data: what it asks of a teacher, what it takes from one, and what a student is judged by."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from edgeforge.core.errors import ConfigurationError, DataError
from edgeforge.data._spec import DataSpec, Example, pass_rates, read
from edgeforge.data._spec_prompts import prompts, question
from edgeforge.filters import Context
from edgeforge.filters._examples import examples_in
from edgeforge.filters.duplicates import Duplicates
from edgeforge.filters.label_balance import LabelBalance
from edgeforge.filters.overlap_with_test import OverlapWithTest

SHOP = """task: Messages to a shop, and the team that answers each.
instruction: Which team answers this message?
input: {type: string, minLength: 10}
output: {type: object, properties: {team: {type: string}}, required: [team], additionalProperties: false}
labels: {at: output.team, allowed: [billing, shipping]}
constraints:
  - {name: polite, say: The message says please., at: input, check: {kind: regex, pattern: ".*please.*"}}
  - {name: not in it, at: output.team, expected: input, check: {kind: python, function: "checks:apart"}}
examples:
  - {input: "Tell me please where my parcel is.", output: {team: shipping}}
  - {input: "Explain my invoice please.", output: {team: billing}}
axes: {tone: [angry, friendly, shy], product: [phone, book, lamp, shoe], words: [few, many]}
"""
CHECKS = """
def apart(answer, expected, question):
    assert expected == question
    return answer not in expected
"""


@pytest.fixture
def shop(tmp_path: Path) -> DataSpec:
    return read(written(tmp_path))


def written(folder: Path, old: str = "", new: str = "") -> Path:
    """The spec's file, with something in it replaced, and the module it names."""
    assert old in SHOP
    (folder / "checks.py").write_text(CHECKS, encoding="utf-8")
    (folder / "shop.yaml").write_text(SHOP.replace(old, new) if old else SHOP, encoding="utf-8")
    return folder / "shop.yaml"


def line(message: str, team: object, **more: object) -> str:
    return json.dumps({"input": message, "output": {"team": team}, **more})


# -- reading


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("minLength: 10", "minLength: 28", r"shop\.yaml:11 examples\[1\]: .*input \(too short\)"),
        ("team: billing", "team: sales", r"shop\.yaml:11 .*label \(none of the labels\)"),
        ('".*please.*"', '".*never.*"', r"shop\.yaml:10 examples\[0\]: .*polite \(not of the form\)"),
        ("invoice please", "billing please", r"shop\.yaml:11 .*not in it \(rejected\)"),
        ("minLength: 10", "minLength: 10, maxLength: 3", r"examples\[0\]: .*input \(too"),
        ("kind: regex", "kind: regexp", r"shop\.yaml:7 constraints\[0\].check.*unknown kind 'regexp'"),
        ("name: polite", "name: label", r"shop\.yaml:6 constraints: the name 'label' is taken"),
        ("tone: [angry, friendly, shy]", "tone: []", r"the axis 'tone' needs values"),
        ("task: Mess", "tasks: Mess", r"unknown key 'tasks'; perhaps you meant 'task'"),
        ("type: string, minLength: 10", "type: strong", r"input \$\.type: this is no JSON schema: 'strong'"),
        ("checks:apart", "checks:part", r"no function is named 'part'; perhaps you meant 'apart'"),
    ],
)
def test_a_spec_that_cannot_be_used_says_where(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        read(written(tmp_path, old, new))


def test_a_spec_that_nothing_satisfies_is_found_by_its_own_examples(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="this seed example does not hold to the spec"):
        read(written(tmp_path, "{type: string, minLength: 10}", "{type: string, not: {}}"))
    without = SHOP[: SHOP.index("examples:")]
    (tmp_path / "shop.yaml").write_text(without, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="'examples' must be given"):
        read(tmp_path / "shop.yaml")


# -- what the teacher is asked


def test_prompts_cover_the_axes_evenly_and_every_combination_in_turn(shop: DataSpec) -> None:
    combinations = 3 * 4 * 2 * 2
    asked = prompts(shop, 2 * combinations, seed=0)
    seen = [tuple(sorted(one.choices.items())) for one in asked]
    assert len(set(seen[:combinations])) == combinations
    assert set(Counter(seen).values()) == {2}
    for axis, values in {**shop.axes, "label": ("billing", "shipping")}.items():
        for start in range(0, len(asked), len(values)):
            run = [one.choices[axis] for one in asked[start : start + len(values)]]
            assert sorted(run) == sorted(values)


def test_prompts_say_all_that_must_hold_and_are_all_different(shop: DataSpec) -> None:
    asked = prompts(shop, 100, seed=0)
    assert len({one.chat for one in asked}) == 100
    for number, one in enumerate(asked, 1):
        first, last = one.chat[0].content, one.chat[-1].content
        for said in (shop.task, "The message says please.", '"minLength": 10', "billing, shipp"):
            assert said in first
        assert all(f"- {name}: {value}" in last for name, value in one.choices.items())
        assert f"example number {number}," in last


def test_seed_examples_are_turns_each_asked_for_by_its_label(shop: DataSpec) -> None:
    (one,) = prompts(shop, 1, seed=0)
    assert [message.role for message in one.chat] == ["user", "assistant"] * min(shop.shots, len(shop.examples)) + [
        "user"
    ]
    for asked, answered in zip(one.chat[::2], one.chat[1::2], strict=False):
        example = shop.parse(answered.content)
        assert example in shop.examples
        assert asked.content.endswith(f"- label: {shop.label(example)}")


def test_prompts_follow_the_seed_and_more_of_them_begin_alike(shop: DataSpec) -> None:
    assert prompts(shop, 40, seed=3)[:25] == prompts(shop, 25, seed=3)
    assert prompts(shop, 25, seed=3) != prompts(shop, 25, seed=4)


def test_a_spec_without_axes_asks_for_different_examples(shop: DataSpec) -> None:
    plain = shop.model_copy(update={"axes": {}, "labels": None, "shots": 1})
    asked = prompts(plain, 6, seed=0)
    assert len({one.chat for one in asked}) == 6
    assert {one.choices == {} for one in asked} == {True}
    assert prompts(plain.model_copy(update={"shots": 0}), 1, seed=0)[0].chat[0].content.count("invoice") == 0


# -- what it takes from a teacher

GOOD = [
    line(f"Would you please look at order number {number}?", ("billing", "shipping")[number % 2]) for number in range(8)
]
BAD = {
    "not JSON": "form: no JSON of input and output",
    json.dumps({"input": "a please"}): "form: no JSON of input and output",
    line("Would you please go on?", "billing", more=1): "form: no JSON of input and output",
    line("please", "billing"): "input: too short",
    line("Would you please answer?", 3): "output: team: another type",
    line("Would you please answer?", "sales"): "label: none of the labels",
    line("Would you answer me now?", "billing"): "polite: not of the form",
    line("Would you please ask shipping?", "shipping"): "not in it: rejected",
}


def test_what_is_planted_is_caught_and_clean_examples_pass(shop: DataSpec) -> None:
    leaked = line("Would you please send the red lamp to my aunt in Riga?", "shipping")
    texts = [*GOOD, *BAD, GOOD[3], leaked]
    tested = ["Would you please send the red lamp to my aunt in Riga?"]
    found = examples_in(
        texts,
        shop,
        groups=range(len(texts)),
        filters=[Duplicates(), OverlapWithTest(), LabelBalance()],
        context=Context(tested=tested),
    )
    assert found.positions == tuple(range(8))
    assert found.kept[0] == Example(input="Would you please look at order number 0?", output={"team": "billing"})
    spec, duplicates, overlap, balance = found.yields
    assert spec.reasons == Counter(BAD.values())
    assert (spec.into, spec.out) == (18, 10)
    assert (duplicates.reasons, overlap.reasons, balance.reasons) == (
        {"there already": 1},
        {"a text of the test part": 1},
        {},
    )
    rates = pass_rates(found.judged)
    assert rates["form"] == {"passed": 15, "of": 18, "rate": 15 / 18}
    assert rates["polite"]["passed"] == 14
    assert rates["label"]["passed"] == 13
    assert list(rates) == ["form", "input", "output", "label", "polite", "not in it"]


def test_code_fences_are_no_matter(shop: DataSpec) -> None:
    assert shop.parse(f"```json\n{GOOD[0]}\n```") == shop.parse(GOOD[0]) is not None


def test_what_a_user_function_raises_stops_the_work(tmp_path: Path, shop: DataSpec) -> None:
    (tmp_path / "checks.py").write_text("def apart(a, e, q):\n    return 1 // (len(a) - 7)\n", encoding="utf-8")
    changed = DataSpec.model_validate(shop.model_dump())  # the module is imported once for each checker
    with pytest.raises(DataError, match=r"checks\.py:2: apart\(.* raised ZeroDivisionError"):
        changed.judge(shop.parse(line("Would you please answer?", "billing")))


# -- what a student is judged by


def test_a_student_is_judged_by_the_same_spec(shop: DataSpec) -> None:
    example = shop.examples[0]
    chat = shop.chat(example)
    assert [(message.role, message.content) for message in chat.messages] == [
        ("user", "Which team answers this message?\n\nTell me please where my parcel is."),
        ("assistant", '{"team":"shipping"}'),
    ]
    answers = ['{"team": "billing"}', '{"team": "sales"}', "billing", "{}", "[]"]
    judged = [shop.judge(shop.answered(example, text)) for text in answers]
    rates = {name: rate["passed"] for name, rate in pass_rates(judged).items()}
    assert rates == {"form": 4, "input": 4, "output": 2, "label": 1, "polite": 4, "not in it": 2}
    assert judged[2]["label"] == "not read"


def test_a_student_that_answers_with_a_plain_text() -> None:
    spec = DataSpec.model_validate(
        {
            "task": "Opposites.",
            "input": {"type": "string"},
            "output": {"type": "string", "maxLength": 5},
            "examples": [{"input": "hot", "output": "cold"}],
        }
    )
    assert spec.answered(spec.examples[0], " cool\n") == Example(input="hot", output="cool")
    assert spec.judge(spec.answered(spec.examples[0], "very cold"))["output"] == "too long"
    assert pass_rates([]) == {}


def test_an_input_is_asked_about_again_with_the_seed_examples_as_turns(shop: DataSpec) -> None:
    said = question(shop, "Send me a lamp please.")
    assert [message.role for message in said] == ["user", "assistant", "user", "assistant", "user"]
    assert [message.content for message in said[1::2]] == ['{"team":"shipping"}', '{"team":"billing"}']
    assert said[-1].content == "Send me a lamp please."
    for part in (shop.task, shop.instruction, '"required": ["team"]', "billing, shipping", "The message says please."):
        assert part in said[0].content
    (alone,) = question(shop.model_copy(update={"shots": 0}), "Send me a lamp please.")
    assert alone.content.endswith("\n\nSend me a lamp please.")
