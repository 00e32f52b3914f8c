"""Training on a task's own texts and on those that a teacher wrote, in a given proportion."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import DataError, IncompatiblePlanError
from edgeforge.core.spec import Spec
from edgeforge.core.task import Batch, Split, Task, TaskData
from edgeforge.data import DataSource, DocumentParts, Medium
from edgeforge.data._documents import Found, make_document_parts
from edgeforge.data._files import file_digest
from edgeforge.data._row_files import objects

if TYPE_CHECKING:
    from collections.abc import Iterable

DATASET = "dataset"
"""The input of a stage that holds the written texts."""
WRITTEN = "data.jsonl"
"""Where a ``dataset`` artifact has its documents."""


class Mix(Spec):
    """Further texts to train on. A model that chats forgets how if it is trained on plain texts alone."""

    stage: str = Field(description="The `generate` stage that wrote them.")
    share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Their share of all samples. All of both are used in an epoch; those too few for it several times.",
    )


class Mixture:
    """Task data with written texts behind its own in the splits that are trained on; the others stay as they are."""

    def __init__(self, own: TaskData, written: TaskData, share: float) -> None:
        self.own, self.interface = own, own.interface
        self._written, self._share = written, share

    def size(self, split: Split) -> int:
        """Different samples, the task's own first."""
        return self.own.size(split) + (self._written.size("test") if split in ("train", "transfer") else 0)

    def batch(self, split: Split, indices: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """See TaskData."""
        import torch

        first = self.own.size(split)
        parts = []
        if mine := [index for index in indices if index < first]:
            parts.append(self.own.batch(split, mine, augment_seed=augment_seed))
        if others := [index - first for index in indices if index >= first]:
            batch = self._written.batch("test", others)
            parts.append({**batch, "rows": batch["rows"] + first})
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        place = {row: position for position, row in enumerate(joined["rows"].tolist())}
        order = torch.tensor([place[index] for index in indices])
        return {name: value[order] for name, value in joined.items()}

    def for_model(self, folder: Path) -> Callable[[Batch], Batch]:
        """See TaskData."""
        return self.own.for_model(folder)

    def write_reader(self, folder: Path) -> None:
        """See TaskData."""
        self.own.write_reader(folder)

    def one_pass(self, split: Split) -> list[int]:
        """The samples of an epoch: every one at least once, those too few for their share several times."""
        own, written = self.own.size(split), self._written.size("test")
        total = math.ceil(written / self._share)
        if self._share < 1:
            total = max(total, math.ceil(own / (1 - self._share)))
        share = round(total * (1 - self._share))
        return [index % own for index in range(share)] + [own + index % written for index in range(total - share)]


def open_mixed(task: Task, mix: Mix | None, inputs: Mapping[str, Artifact], *, reader: str) -> TaskData:
    """The task's data as the model in the input `reader` reads them, with what `mix` adds.

    Raises DataError where the written texts do not make a single sample.
    """
    folder = inputs[reader].path
    data = task.open(folder)
    return data if mix is None else Mixture(data, written(task, inputs[DATASET].path, folder), mix.share)


def written(task: Task, dataset: Path, reader: Path) -> TaskData:
    """The documents in an artifact's folder, all of them in the test split, as the model in another one reads them.

    Raises DataError where they do not make two samples.
    """
    # The whole is the test part: of the training part, which is not looked at, some is kept apart.
    changes = {"data": _Written(path=str(dataset / WRITTEN)), "stride": None, "evaluation_windows": None}
    try:
        return task.model_copy(update=changes).open(reader)
    except DataError as error:
        raise DataError(
            f"too little was written: {error.what}",
            where="mix",
            remedy="let the `generate` stage write more: raise its `samples` or `max_new_tokens`",
        ) from error


class _Written(DataSource):
    """A file of JSON lines that `generate` wrote."""

    kind: Literal["written"] = "written"
    path: str

    holds: ClassVar[frozenset[Medium]] = frozenset({"documents"})

    def digest(self) -> str:
        return file_digest(Path(self.path))

    def documents(self) -> DocumentParts:
        found = [
            Found(value.get("text"), value.get("messages"), where)
            for value, where in objects(Path(self.path), "run the `generate` stage again")
        ]
        return make_document_parts(found, found, places=(self.path, self.path))


def check_task(task: Task, mix: Mix | None) -> None:
    """Raise IncompatiblePlanError where a task's data cannot be mixed with written texts."""
    if mix is not None and not task.open().interface.per_token:
        raise IncompatiblePlanError(
            "only a language model learns from written texts, and this task has a label for each sample",
            where="mix",
            remedy="leave `mix` out",
        )


def passes(data: TaskData, split: Split) -> Iterable[int]:
    """The samples of an epoch, in no order."""
    return data.one_pass(split) if isinstance(data, Mixture) else range(data.size(split))
