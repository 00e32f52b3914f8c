"""Texts of any origin -> checked `TextParts`. Every text kind ends here, so all refuse the same things."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BeforeValidator, Field

from edgeforge.core.errors import DataError
from edgeforge.core.spec import perhaps
from edgeforge.data import LabelledTexts, TextParts

MAX_BYTES = 10_000_000
"""A longer line, cell or file is no text that a model could read (10 MB is about two million words)."""

NOTHING = "(none)"
"""What stands for an empty cell."""

_WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class Row:
    """What stands at one place of the data, unchecked. `label`: None where the text has none."""

    text: object
    label: object
    where: str
    """A file and line, or a file: where a user can look."""


def label_text(value: object) -> object:
    """Labels are the names of classes: numbers and truth values stand for their own text, as JSON writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


LabelName = Annotated[str, BeforeValidator(label_text, json_schema_input_type=str | int | bool), Field(min_length=1)]

LABELS_DESCRIPTION = "The classes in order, and no others; absent: those in the data, sorted (numbers by their value)."


def make_text_parts(
    train: Iterable[Row],
    test: Iterable[Row],
    unlabelled: Iterable[Row] = (),
    *,
    labels: Sequence[str] | None,
    places: tuple[str, str],
) -> TextParts:
    """Read and check all rows, once and in order. `places`: what to call the training and the test part in an error.

    Training rows without a label join the unlabelled ones. Raises DataError for what is no text, empty or no label; a
    label outside `labels`; a test row without a label; fewer than two classes, and one that a part has no text of.
    """
    classes = _Classes(labels)
    train_texts, train_labels, without = _read(train, classes)
    test_texts, test_labels, _ = _read(test, classes, all_labelled=True)
    names = classes.ordered()
    _check_labelled({"training": train_labels, "test": test_labels}, places)
    _check_classes(names, classes, {"training": train_labels, "test": test_labels})
    numbers = {name: number for number, name in enumerate(names)}

    def part(texts: Sequence[str], found: Sequence[str]) -> LabelledTexts:
        return LabelledTexts(tuple(texts), np.array([numbers[label] for label in found], dtype=np.int64))

    without += map(checked_text, unlabelled)
    return TextParts(part(train_texts, train_labels), part(test_texts, test_labels), names, tuple(without))


class _Classes:
    """The labels met so far, and where each was met first."""

    def __init__(self, labels: Sequence[str] | None) -> None:
        self.given = None if labels is None else tuple(labels)
        self.first: dict[str, str] = {}

    def ordered(self) -> tuple[str, ...]:
        if self.given is not None:
            return self.given
        if all(_WHOLE.fullmatch(name) for name in self.first):
            return tuple(sorted(self.first, key=int))
        return tuple(sorted(self.first))

    def known(self, row: Row) -> str:
        """The row's label, checked. Raises DataError."""
        label = label_text(row.label)
        if not isinstance(label, str) or not label.strip():
            raise DataError(
                f"the label is {shown(row.label)}",
                where=row.where,
                remedy="a label is the name of a class: a text, a whole number, true or false",
            )
        if self.given is not None and label not in self.given:
            raise DataError(
                perhaps("no class is named", label, list(self.given)),
                where=row.where,
                remedy="correct the label, or add it to `labels`",
            )
        self.first.setdefault(label, row.where)
        return label


def _read(
    rows: Iterable[Row], classes: _Classes, *, all_labelled: bool = False
) -> tuple[list[str], list[str], list[str]]:
    """Texts and their labels, and apart from them the texts without a label."""
    texts: list[str] = []
    labels: list[str] = []
    without: list[str] = []
    for row in rows:
        text = checked_text(row)
        if row.label is not None:
            texts.append(text)
            labels.append(classes.known(row))
        elif not all_labelled:
            without.append(text)
        else:
            raise DataError(
                "this test text has no label",
                where=row.where,
                remedy="label it, take it out, or test on a part that has labels",
            )
    return texts, labels, without


def checked_text(row: Row) -> str:
    """The row's text. Raises DataError where it is none, or empty, or holds what is no character."""
    if not isinstance(row.text, str):
        raise DataError(
            f"the text is {shown(row.text)}", where=row.where, remedy="write it as a text, or remove this sample"
        )
    if not row.text.strip():
        raise DataError("the text is empty", where=row.where, remedy="remove this sample, or fill it in")
    if "\0" in row.text:
        raise DataError(
            "the text holds a NUL character", where=row.where, remedy="remove it; is the file perhaps not UTF-8?"
        )
    try:
        row.text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds half a character (\\u{ord(row.text[error.start]):04x}) at position {error.start}",
            where=row.where,
            remedy="repair what wrote the file: characters beyond \\uffff are written as a pair",
        ) from error
    return row.text


def cell_text(value: object, where: str) -> str:
    """What stands in a column beside text and label, as a text. Raises DataError for what is no single value."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, str | int | float):
        return str(label_text(value))
    raise DataError(f"the value is {shown(value)}", where=where, remedy="a column for slices holds texts or numbers")


def shown(value: object) -> str:
    """What a value is that should have been another, in words."""
    if value is None:
        return "null"
    kinds = {str: "empty", bool: "true or false", int: "a number", float: f"the fraction {value}", dict: "an object"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def _check_labelled(parts: Mapping[str, Sequence[str]], places: Sequence[str]) -> None:
    for (part, labels), place in zip(parts.items(), places, strict=True):
        if not labels:
            raise DataError(
                f"the {part} part has no labelled text",
                where=place,
                remedy="give it texts with labels; check that `label` says where the labels stand",
            )


def _check_classes(names: Sequence[str], classes: _Classes, parts: Mapping[str, Sequence[str]]) -> None:
    if len(names) < 2:
        raise DataError(
            f"there is only the class '{''.join(names)}'; at least two are needed",
            where=next(iter(classes.first.values())),
            remedy="check the labels",
        )
    if len(set(names)) != len(names):
        raise DataError("two classes have the same name", remedy="name every class once in `labels`")
    for part, labels in parts.items():
        present = set(labels)
        empty = [name for name in names if name not in present]
        if empty:
            listed = ", ".join(f"'{name}'" for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
            raise DataError(
                f"the {part} part has no text of class {listed}",
                where=classes.first.get(empty[0]),
                remedy="add texts of it, correct this label, or remove the class from both parts",
            )
