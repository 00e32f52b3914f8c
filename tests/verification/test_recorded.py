"""The model that a file was made of is the one that its stage kept, whichever way its metric improves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeforge.core.artifact import Artifact
from edgeforge.core.task import Answers
from edgeforge.models import loading
from edgeforge.verification import _recorded
from edgeforge.verification._recorded import recorded_check


def measured(bench: Any, artifact: Artifact) -> float:
    """The headline metric on the validation split."""
    network = loading.load(artifact.path)
    found = bench.task.evaluate(Answers(lambda batch: network(**batch).logits.detach()), bench.data, "validation")
    return float(next(iter(found.metrics.values())))


def checked(bench: Any, artifact: Artifact, history: list[float], folder: Path) -> bool | None:
    facts = {"kept_step": 7, "history": {"validation": history}}
    (check,) = recorded_check(replace(artifact, facts=facts), replace(bench.job(folder), model=artifact.path))
    return check.passed


@pytest.mark.parametrize("whole", [True, False])
def test_the_lowest_perplexity_was_kept(
    tales: Any, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only a part of the split is asked."""
    if not whole:
        monkeypatch.setattr(_recorded, "WHOLE", tales.data.size("validation") // 2)
    model = tales.torch("llama")
    found = measured(tales, model)
    assert checked(tales, model, [9 * found, found, 2 * found], tmp_path) is True
    assert checked(tales, model, [9 * found, 2 * found, 3 * found], tmp_path) is False
    assert checked(tales, model, [found / 2, found], tmp_path) is False


def test_the_highest_accuracy_was_kept(digits: Any, tmp_path: Path) -> None:
    model = digits.torch("resnet")
    found = measured(digits, model)
    assert checked(digits, model, [0.0, found], tmp_path) is True
    assert checked(digits, model, [found, 0.99], tmp_path) is False


def test_nothing_is_said_where_nothing_was_recorded(digits: Any, tmp_path: Path) -> None:
    model = digits.torch("resnet")
    assert recorded_check(replace(model, facts={"history": {"validation": [0.5]}}), digits.job(tmp_path)) == []
