"""The exits stage: which model it leaves, what it says of every exit, killed and resumed, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.task import model_inputs
from edgeforge.models import loading
from edgeforge.models.exits import blocks_of
from edgeforge.stages.exits import Exits
from edgeforge.training import loop

if TYPE_CHECKING:
    from tests.conftest import Case, Tales

BRIEF = {"steps": 24, "batch_size": 16, "learning_rate": 3e-3}


class Stopped(Exception):
    pass


def exits(**said: Any) -> Exits:
    return Exits.model_validate({"kind": "exits", "after": [0, 1], **BRIEF, **said})


def run(stage: Exits, case: Case, folder: Path) -> Mapping[str, Any]:
    model = case.bench.torch(case.family)
    return stage.run({"model": model}, replace(case.job(folder), model=model.path))


def headline(model: Any, case: Case) -> float:
    """The task's first metric on the validation split, for a model that is simply called."""
    data = case.bench.data
    batch = data.batch("validation", range(data.size("validation")))
    with torch.no_grad():
        logits = model.eval()(**model_inputs(batch)).logits
    return float(next(iter(case.bench.task.metrics(logits, batch["labels"]).values())))


@pytest.mark.parametrize("case", ["resnet", "bert"], indirect=True)
def test_the_chains_model_is_the_exit_that_was_named(case: Case, tmp_path: Path) -> None:
    stage = exits(use=0, keep="best", epochs=2, steps=None, batch_size=64)
    facts = run(stage, case, tmp_path)
    rows = facts["exits"]
    assert [row["after"] for row in rows] == [0, 1, "last"]
    for number in ("params", "macs", "size_bytes"):
        assert rows[0][number] < rows[1][number] < rows[2][number]
    assert facts["used"] == 0
    assert {name: facts[name] for name in ("params", "macs", "size_bytes")} == {
        name: rows[0][name] for name in ("params", "macs", "size_bytes")
    }
    plain = getattr(transformers, type(case.model()).__name__).from_pretrained(tmp_path)
    assert len(blocks_of(plain)) == 1
    assert sum(parameter.numel() for parameter in plain.parameters()) == facts["params"]
    # It is the exit that was validated, in the epoch in which that exit was best.
    assert headline(plain, case) == rows[0]["validation"] == max(facts["history"]["validation"])


@pytest.mark.parametrize("case", ["convnext"], indirect=True)
def test_where_none_is_named_the_whole_model_stays(case: Case, tmp_path: Path) -> None:
    losses = ["hard_labels", "soft_targets", {"kind": "hidden_states", "weight": 0.1}]
    facts = run(exits(losses=losses), case, tmp_path)
    model = loading.load(tmp_path)
    assert {name: value.shape for name, value in model.named_parameters()} == {
        name: value.shape for name, value in case.model().named_parameters()
    }
    assert headline(model, case) == facts["exits"][-1]["validation"]
    assert facts["used"] == "last"


@pytest.mark.parametrize("case", ["resnet", "distilbert"], indirect=True)
def test_killed_and_resumed_it_ends_in_the_same_bits(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = ["hard_labels", {"kind": "soft_targets", "weight": 0.3}, {"kind": "hidden_states", "weight": 0.1}]
    stage = exits(use=1, losses=losses, ema=0.9, checkpoint_seconds=0)
    whole = run(stage, case, tmp_path / "whole")
    step_of = loop._Training._step

    def stops(self: Any, step: int) -> torch.Tensor:
        if step == 15:
            raise Stopped
        return step_of(self, step)

    monkeypatch.setattr(loop._Training, "_step", stops)
    with pytest.raises(Stopped):
        run(stage, case, tmp_path / "cut")
    taken: list[int] = []

    def counts(self: Any, step: int) -> torch.Tensor:
        taken.append(step)
        return step_of(self, step)

    monkeypatch.setattr(loop._Training, "_step", counts)
    assert run(stage, case, tmp_path / "cut") == whole
    assert 0 < taken[0] < 15  # from a checkpoint
    assert taken == list(range(taken[0], 24))
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# -- refusals


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"after": [1, 0]}, "after must rise, each block once"),
        ({"after": [0, 0]}, "after must rise, each block once"),
        ({"after": []}, "at least 1 item"),
        ({"after": [0], "use": 1}, "use names block 1, after which there is no exit"),
        ({"after": [0], "use": "first"}, "last"),
    ],
)
def test_what_the_spec_says_wrongly(said: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        exits(**said)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"losses": ["soft_targets"]}, "the deepest exit would learn from nothing"),
        ({"losses": ["hard_labels", "attention_maps"]}, "`attention_maps` reads attention"),
        ({"lora": {}}, "`lora` has no place here"),
        ({"mix": {"stage": "generate"}}, "`mix` has no place here"),
    ],
)
def test_what_cannot_work_is_refused_from_the_spec(said: dict[str, Any], reason: str) -> None:
    with pytest.raises(IncompatiblePlanError, match=reason):
        exits(**said).check()


def test_families_are_tried_before_any_work(case: Case) -> None:
    """Each gives the model that ends where it should, or is refused by its name."""
    stage = exits(use=0, losses=["hard_labels", "soft_targets", "hidden_states"])
    stage.check()
    if case.family == "mobilenet_v2":
        with pytest.raises(ModelError, match="a mobilenet_v2 cannot end after one of its blocks"):
            stage.rehearse(case.model(), case.bench.task)
    else:
        assert len(blocks_of(stage.rehearse(case.model(), case.bench.task))) == 1


@pytest.mark.parametrize("case", ["vit"], indirect=True)
def test_an_exit_beyond_the_last_block(case: Case) -> None:
    with pytest.raises(ModelError, match="there is no block 7: the model has 3"):
        exits(after=[0, 7]).rehearse(case.model(), case.bench.task)
    with pytest.raises(ModelError, match="block 2 is the last"):
        exits(after=[2]).rehearse(case.model(), case.bench.task)


def test_language_models_are_refused(tales: Tales) -> None:
    model = loading.load(tales.torch("llama").path)
    with pytest.raises(IncompatiblePlanError, match="this task's models write texts") as caught:
        exits().rehearse(model, tales.task)
    assert "student: {kind: layers" in str(caught.value)
