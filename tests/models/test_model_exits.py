"""Classifiers that end early: the same answers as the exit, in every family, as plain models of that family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.core.task import model_inputs
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.models import loading
from edgeforge.models.exits import blocks_of, check_exits, ended_after, new_head
from edgeforge.models.folder import SHAPES
from edgeforge.structures.attention_heads import AttentionHeads
from edgeforge.structures.channels import Channels
from edgeforge.training.branches import Branches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.structures import Structure
    from tests.conftest import Case


def with_exits(model: PreTrainedModel) -> Branches:
    """Exits after every block but the last, with layers that are not the library's small initial ones."""
    torch.manual_seed(3)
    branches = Branches(model, {block: new_head(model, block + 1) for block in range(len(blocks_of(model)) - 1)})
    with torch.no_grad():
        for parameter in branches.heads.parameters():
            parameter.normal_(0, 0.5)
    return branches.eval()


def answers(branches: Branches, case: Case) -> list[torch.Tensor]:
    with torch.no_grad():
        return [answer.logits for answer in branches.answers(model_inputs(case.batch()), frozenset())]


def check_exits_are_models(model: PreTrainedModel, case: Case, folder: Path, *, plain: bool) -> None:
    """Before and after a file, EdgeForge's own loading and the library's, each exit's model answers as the exit."""
    branches, inputs = with_exits(model), model_inputs(case.batch())
    expected = answers(branches, case)
    assert len({round(float(logits.abs().sum()), 4) for logits in expected}) == len(expected)
    sizes = []
    for block, head in branches.heads.items():
        ended = ended_after(model, int(block) + 1, head)
        assert len(blocks_of(ended)) == int(block) + 1
        loading.save(ended, folder / block)
        found = [ended, loading.load(folder / block)]
        assert (folder / block / SHAPES).exists() != plain
        if plain:
            found.append(getattr(transformers, type(model).__name__).from_pretrained(folder / block).eval())
        for one in found:
            with torch.no_grad():
                torch.testing.assert_close(one(**inputs).logits, expected[int(block)], rtol=1e-6, atol=1e-6)
        sizes.append(sum(parameter.numel() for parameter in ended.parameters()))
    assert sizes == sorted(set(sizes))
    assert sizes[-1] < sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected[-1], rtol=0, atol=0)  # it stayed as it was


def test_an_exits_model_answers_as_the_exit(case: Case, tmp_path: Path) -> None:
    model = case.model()
    family = architecture_of(model.config)
    assert family is not None
    if family.can_end_early:
        check_exits_are_models(model, case, tmp_path, plain=True)
        return
    assert case.family == "mobilenet_v2"
    with pytest.raises(ModelError, match="a mobilenet_v2 cannot end after one of its blocks") as caught:
        check_exits(model.config, [0])
    assert "use one of bert, convnext, distilbert, electra, resnet, roberta, vit" in str(caught.value)


@pytest.mark.parametrize("case", ["resnet", "convnext", "vit", "bert"], indirect=True)
def test_pruned_models_have_exits_too(case: Case, tmp_path: Path) -> None:
    model = case.model()
    structure: Structure = AttentionHeads(keep=3) if case.family in ("bert", "vit") else Channels(ratio=0.25)
    structure.prune(model, Magnitude(), case.job(tmp_path / "job"))
    check_exits_are_models(model, case, tmp_path, plain=not needs_shapes(model, tmp_path))


def needs_shapes(model: PreTrainedModel, folder: Path) -> bool:
    loading.save(model, folder / "whole")
    return (folder / "whole" / SHAPES).exists()


@pytest.mark.parametrize("case", ["resnet", "bert"], indirect=True)
def test_exits_that_are_not_there(case: Case) -> None:
    config = case.model().config
    last = 3 if case.family == "resnet" else 2
    check_exits(config, range(last))
    with pytest.raises(ModelError, match=f"block {last} is the last: behind it is the model's own end"):
        check_exits(config, [0, last])
    with pytest.raises(ModelError, match=f"there is no block 9: the model has {last + 1}") as caught:
        check_exits(config, [9])
    assert f"choose from 0 to {last - 1}" in str(caught.value)


def test_every_head_is_drawn_anew_by_the_seed(case: Case) -> None:
    model = case.model()
    if case.family == "mobilenet_v2":
        return
    torch.manual_seed(0)
    first, second = new_head(model, 1), new_head(model, 1)
    torch.manual_seed(0)
    again = new_head(model, 1)
    names = [name for name, value in first.named_parameters() if value.dim() > 1]
    assert names
    states = [head.state_dict() for head in (first, second, again)]
    assert all(torch.equal(states[0][name], states[2][name]) for name in names)
    assert not any(torch.equal(states[0][name], states[1][name]) for name in names)
