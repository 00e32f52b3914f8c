"""A teacher of which only a file of answers is there."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import DataError, IncompatiblePlanError
from edgeforge.core.task import NO_LABEL, Placed, Task, TaskData
from edgeforge.data._files import existing, file_digest
from edgeforge.teachers import OpenTeacher, Teacher

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, Places
    from edgeforge.models import Model

NEAR_CHANCE = 0.1
"""Of the way from guessing to being always right: who knows the labels no better than that answers about others."""
SUM_ERROR = 1e-3


class File(Teacher):
    """What a model that cannot run here answered, whatever computed it: a NumPy array in a `.npy` file.

    A row for each sample of the data's training part, in its order, those kept apart for validation too; of texts, the
    unlabelled ones behind. A column for each label, in the order that reports have them. Answers that know the labels
    hardly better than guessing are refused: most likely rows or columns are in another order. Students are made from
    the chain's model. Nothing is known of what it would say to the test split, so reports have no comparison with it.

    For classifiers. A language model learns from a file of another's texts as from any texts: they are its data.
    """

    kind: Literal["file"] = "file"
    path: str = Field(min_length=1, description="The `.npy` file: floats, (samples, labels).")
    holds: Literal["logits", "probabilities"] = Field(default="logits", description="What the numbers are.")

    why_logits_only: ClassVar[str | None] = "a `file` holds what was answered, and no layer"

    def sources(self) -> Mapping[str, str | Model | None]:
        """No artifact: the file is the user's."""
        return {}

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "sha256": file_digest(existing(self.path)), "holds": self.holds}

    def recorded(self) -> bool:
        return True

    def check_task(self, task: Task, where: str) -> None:
        if task.answers_per == "token":
            raise IncompatiblePlanError(
                "a file with a row for each sample is a classifier's teacher, and this task's models write texts",
                where=where,
                remedy="give the texts that the teacher wrote as the task's data, or use `teacher: model`",
            )
        if task.augments():
            raise IncompatiblePlanError(
                "a file has answers about the images as they are, and the task's `augment` changes them",
                where=where,
                remedy="leave `augment` out, or use `teacher: model`",
            )

    def check_data(self, data: TaskData) -> None:
        """See Teacher. Raises DataError where the file does not hold answers about these data, too."""
        self._read(data)

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher; the file is read. Raises DataError where it does not hold answers about these data."""
        import torch

        return _Recorded(torch.from_numpy(self._read(data)).to(device))

    def _read(self, data: TaskData) -> np.ndarray:
        """Logits for the transfer split, float32, (samples, labels)."""
        path, labels = existing(self.path), len(data.interface.labels)
        assert isinstance(data, Placed), "`check_task` refuses others"
        places = data.places("transfer")
        answers = _array(path)
        if answers.shape != (places.of, labels):
            raise DataError(
                f"it has shape {answers.shape}, and the training part has {places.of} samples of {labels} labels",
                where=str(path),
                remedy="write a row for each of them, in the data's order, those kept apart for validation too",
            )
        if self.holds == "probabilities":
            answers = _as_logits(answers, path)
        found: np.ndarray = answers[places.positions]
        _check_order(found, places, path)
        return found


class _Recorded(OpenTeacher):
    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        from transformers.modeling_outputs import SequenceClassifierOutput

        return SequenceClassifierOutput(logits=self._logits[batch["rows"]])


def _array(path: Path) -> np.ndarray:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        what = "this is no array that NumPy can read"
        raise DataError(what, where=str(path), remedy="write it with numpy.save") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        said = f"an array of {found.dtype}" if isinstance(found, np.ndarray) else "an archive of arrays"
        raise DataError(f"this is {said}", where=str(path), remedy="write one array of floats with numpy.save")
    if not np.isfinite(found).all():
        raise DataError("its answers are not all numbers", where=str(path), remedy="use a soundly trained teacher")
    return found.astype(np.float32)


def _as_logits(probabilities: np.ndarray, path: Path) -> np.ndarray:
    """Logarithms, of which a softmax makes the same probabilities."""
    if (probabilities < 0).any() or (np.abs(probabilities.sum(axis=1) - 1) > SUM_ERROR).any():
        raise DataError(
            "its rows are no probabilities: each must be at least 0, and all of a row 1 together",
            where=str(path),
            remedy="say `holds: logits`, if that is what they are",
        )
    found: np.ndarray = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return found


def _check_order(logits: np.ndarray, places: Places, path: Path) -> None:
    """Raise DataError where the likeliest label is hardly more often right than a guess, each label counting alike."""
    known = places.labels != NO_LABEL
    truth, said = places.labels[known], logits[known].argmax(axis=1)
    if not len(truth):
        return
    recall = float(np.mean([(said[truth == label] == label).mean() for label in np.unique(truth)]))
    guess = 1 / logits.shape[1]
    if recall < guess + NEAR_CHANCE * (1 - guess):
        raise DataError(
            f"its likeliest label is right for {recall:.1%} of the samples (each label counting alike), and a guess is "
            f"for {guess:.1%}",
            where=str(path),
            remedy="put rows in the order of the data's training part, and columns in that of its labels",
        )
