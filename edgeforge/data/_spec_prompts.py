"""What a teacher is asked so that it writes the examples of a spec, each value of each axis equally often; and what it
is asked to answer one of them again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeforge.core.seeds import derive
from edgeforge.data import Message
from edgeforge.data._spec import DataSpec, as_text

LABEL_AXIS = "label"


@dataclass(frozen=True)
class SpecPrompt:
    """One question to the teacher, and which value of each axis it asks for."""

    chat: tuple[Message, ...]
    choices: Mapping[str, str]


def prompts(spec: DataSpec, count: int, seed: int) -> list[SpecPrompt]:
    """`count` different prompts; those of a smaller count are the first of them, so that answers to them stay of use.

    Every run of prompts as long as an axis has values asks for each of them once, and as many prompts as there are
    combinations ask for each combination once. Labels are an axis as well.
    """
    axes = dict(spec.axes)
    if spec.labels is not None:
        axes[_label_axis(spec)] = spec.labels.allowed
    orders = {name: _shuffled(values, seed, name) for name, values in axes.items()}
    return [_prompt(spec, number, choices, seed) for number, choices in zip(range(count), _walk(orders), strict=False)]


def _shuffled(values: Sequence[Any], seed: int, *purpose: str | int) -> list[Any]:
    order = list(values)
    random.Random(derive(seed, "spec", *purpose)).shuffle(order)
    return order


def _walk(axes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """All combinations, over and over, every axis going round by one step at a time.

    Such a walk meets lcm(n1, n2, ...) combinations and is back where it began; the others are met by as many more
    walks, each with the axes shifted against one another: axis i by one of gcd(lcm(n1, ..., n(i-1)), ni) amounts.
    """
    sizes = [len(values) for values in axes.values()]
    shifts, length = [], 1
    for size in sizes:
        shifts.append(math.gcd(length, size))
        length = math.lcm(length, size)
    step = 0
    while True:
        round_number, combination = step // length, {}
        for (name, values), size, shift in zip(axes.items(), sizes, shifts, strict=True):
            round_number, moved = divmod(round_number, shift)
            combination[name] = values[(step + moved) % size]
        yield combination
        step += 1


def _prompt(spec: DataSpec, number: int, choices: Mapping[str, str], seed: int) -> SpecPrompt:
    """The seed examples are turns of the conversation: a small model goes on with them where it only talks about a list
    of them, and larger ones lose nothing by it."""
    shown = _shuffled(spec.examples, seed, "shots", number)[: spec.shots]
    asked, turns = _task(spec), list[Message]()
    for example in shown:
        label = spec.label(example)
        wish = "" if label is None else f"\n\nThis time:\n- {_label_axis(spec)}: {label}"
        turns += [
            Message("user", asked + wish),
            Message("assistant", _json({"input": example.input, "output": example.output})),
        ]
        asked = "Another one."
    lines = [asked]
    if choices:
        lines += ["", "This time:", *(f"- {name}: {value}" for name, value in choices.items())]
    lines += ["", f"It is example number {number + 1}, and is not to resemble the others."]
    return SpecPrompt((*turns, Message("user", "\n".join(lines))), dict(choices))


def question(spec: DataSpec, text: str) -> tuple[Message, ...]:
    """What a teacher is asked to answer an input, whoever made it up. Seed examples are turns of the conversation."""
    asked, turns = _answering(spec), list[Message]()
    for example in spec.examples[: spec.shots]:
        turns += [Message("user", asked + as_text(example.input)), Message("assistant", as_text(example.output))]
        asked = ""
    return (*turns, Message("user", asked + text))


def _answering(spec: DataSpec) -> str:
    form = "the text" if spec.output.get("type") == "string" else "JSON"
    lines = [
        spec.task,
        *([spec.instruction] if spec.instruction else []),
        "",
        f'You are given an "input". Write its "output", {form} alone.',
        f'"output" satisfies this JSON schema: {_json(spec.output)}',
    ]
    return "\n".join([*lines, *_rules(spec), "", ""])


def _task(spec: DataSpec) -> str:
    lines = [
        spec.task,
        "",
        'Write one example as a JSON object with the keys "input" and "output", and nothing else.',
        f'"input" satisfies this JSON schema: {_json(spec.input)}',
        f'"output" satisfies this JSON schema: {_json(spec.output)}',
    ]
    return "\n".join([*lines, *_rules(spec)])


def _rules(spec: DataSpec) -> list[str]:
    lines = []
    if spec.labels is not None:
        lines.append(f"`{spec.labels.at}` is one of: {', '.join(spec.labels.allowed)}.")
    return [*lines, *(constraint.say for constraint in spec.constraints if constraint.say)]


def _label_axis(spec: DataSpec) -> str:
    return LABEL_AXIS if LABEL_AXIS not in spec.axes else "the label"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
