"""Texts in files of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from edgeforge.core.errors import DataError
from edgeforge.core.spec import perhaps
from edgeforge.data._text_files import TextFiles, lines
from edgeforge.data._texts import Row

REMEDY = 'every line is one object, such as {"text": "...", "label": "..."}'


class Jsonl(TextFiles):
    """One JSON object per line, with a text and a label by their keys; further keys are left out.

    A line without a label, or whose label is null, is an unlabelled text. Labels are texts, whole numbers or truth
    values. Files are UTF-8.
    """

    kind: Literal["jsonl"] = "jsonl"

    def rows(self, path: Path, *, labelled: bool = True) -> Iterator[Row]:
        for number, line in lines(path):
            if line.strip():
                where = f"{path}:{number}"
                sample = _object(line, where)
                if self.text not in sample:
                    raise DataError(perhaps("no key is named", self.text, list(sample)), where=where, remedy=REMEDY)
                yield Row(sample[self.text], sample.get(self.label) if labelled else None, where)


def _object(line: str, where: str) -> dict[str, object]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, remedy=REMEDY) from error
    if not isinstance(value, dict):
        raise DataError(f"this is not an object but a {type(value).__name__}", where=where, remedy=REMEDY)
    return value
