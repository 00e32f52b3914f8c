"""A model as the teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from pydantic import ValidationError

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.models import loading
from edgeforge.models.config import Config
from edgeforge.tasks.image_classification import ImageClassification
from edgeforge.teachers.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU = torch.device("cpu")
DATA = ImageClassification().open()


def artifact(folder: Path) -> Artifact:
    return Artifact(key="k", kind="train", format="torch", path=folder, digest="d", files={}, parents={}, recipe={})


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(4, 1, 16, 16, generator=generator), "labels": torch.arange(4)}


def test_where_it_comes_from() -> None:
    other = Config.model_validate({"kind": "config", "architecture": "resnet"})
    assert Model().sources() == {"teacher": None}
    assert Model(stage="train").sources() == {"teacher": "train"}
    assert Model(model=other).sources() == {"teacher": other}
    with pytest.raises(ValidationError, match="either a `stage` or a `model`, not both"):
        Model(stage="train", model=other)


def test_it_answers_like_the_saved_model_in_evaluation_mode(
    tiny_model: Callable[[str], PreTrainedModel], family: str, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    model = tiny_model(family)
    loading.save(model, tmp_path)
    model.train()
    teacher = Model().open({"teacher": artifact(tmp_path)}, CPU, DATA)
    answer = teacher(batch, frozenset({"hidden_states"}))
    with torch.no_grad():
        expected = model.eval()(batch["pixel_values"], output_hidden_states=True)
    assert torch.equal(answer.logits, expected.logits)
    assert len(answer.hidden_states) == len(expected.hidden_states)
    assert teacher(batch, frozenset()).get("hidden_states") is None
    # For logits alone the batch is brought to a regular shape, at which sums may be added up in another order.
    first = teacher(batch, frozenset()).logits
    torch.testing.assert_close(first, expected.logits)
    # A second answer is the same: nothing is learned from being asked, batch statistics included.
    assert torch.equal(teacher(batch, frozenset()).logits, first)


def test_its_answers_carry_no_gradient_and_do_not_hinder_the_students(
    tiny_model: Callable[[str], PreTrainedModel], tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    student = tiny_model("resnet")
    loading.save(student, tmp_path)
    answer = Model().open({"teacher": artifact(tmp_path)}, CPU, DATA)(batch, frozenset({"hidden_states"}))
    assert not answer.logits.requires_grad
    assert not any(state.requires_grad for state in answer.hidden_states)
    loss = (student(batch["pixel_values"]).logits * answer.logits).sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_damaged_files_are_refused(tmp_path: Path, tiny_model: Callable[[str], PreTrainedModel]) -> None:
    loading.save(tiny_model("resnet"), tmp_path)
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError):
        Model().open({"teacher": artifact(tmp_path)}, CPU, DATA)
