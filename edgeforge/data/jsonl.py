"""Texts in files of JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import ConfigurationError, DataError
from edgeforge.core.spec import perhaps
from edgeforge.data import DocumentParts, Medium
from edgeforge.data._documents import Found, make_document_parts
from edgeforge.data._files import existing
from edgeforge.data._row_files import RowFiles, objects
from edgeforge.data._texts import Row, cell_text

REMEDY = 'every line is one object, such as {"text": "...", "label": "..."}'
DOCUMENT_REMEDY = (
    'every line is one object, such as {"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'
)


class Jsonl(RowFiles):
    """One JSON object per line, with a text and a label by their keys; further keys are left out.

    A line without a label, or whose label is null, is an unlabelled text. Labels are texts, whole numbers or truth
    values. Files are UTF-8. For a language model a line is a document: a text without a label, or a chat in `messages`,
    a list of objects with role and content.
    """

    kind: Literal["jsonl"] = "jsonl"
    messages: str = Field(default="messages", min_length=1, description="Where a chat stands.")

    holds: ClassVar[frozenset[Medium]] = frozenset({"texts", "documents"})
    uses: ClassVar[tuple[str, ...]] = (*RowFiles.uses, "edgeforge.data._documents")

    def rows(self, path: Path, *, labelled: bool = True) -> Iterator[Row]:
        for sample, where in objects(path, REMEDY):
            if self.text not in sample:
                raise DataError(perhaps("no key is named", self.text, list(sample)), where=where, remedy=REMEDY)
            yield Row(sample[self.text], sample.get(self.label) if labelled else None, where)

    def column(self, name: str) -> tuple[str, ...]:
        found = list(objects(existing(self.test), REMEDY))
        known = dict.fromkeys(key for sample, _ in found for key in sample)
        if name not in known:
            raise ConfigurationError(perhaps("no key of the test part is named", name, list(known)), where="slices")
        return tuple(cell_text(sample.get(name), where) for sample, where in found)

    def documents(self) -> DocumentParts:
        train, test, *more = self._paths()
        return make_document_parts(
            (found for path in (train, *more) for found in self._documents(path)),
            self._documents(test),
            places=(str(train), str(test)),
        )

    def _documents(self, path: Path) -> Iterator[Found]:
        for sample, where in objects(path, DOCUMENT_REMEDY):
            if self.text not in sample and sample.get(self.messages) is None:
                found = ", ".join(map(repr, sample)) or "none"
                raise DataError(
                    f"no key is named '{self.text}' or '{self.messages}' (there are: {found})",
                    where=where,
                    remedy=DOCUMENT_REMEDY,
                )
            yield Found(sample.get(self.text), sample.get(self.messages), where)
