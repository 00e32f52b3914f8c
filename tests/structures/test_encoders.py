"""Heads, neurons and blocks: what stays, that nothing else changes, and that it survives the disk."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel
from transformers import __version__ as transformers_version

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.spec import nested_specs
from edgeforge.criteria.activation import Activation
from edgeforge.criteria.bn_scale import BnScale
from edgeforge.criteria.drop_loss import DropLoss
from edgeforge.criteria.fpgm import Fpgm
from edgeforge.criteria.lamp import Lamp
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.criteria.random import Random
from edgeforge.criteria.taylor import Taylor
from edgeforge.models import loading
from edgeforge.stages.prune import Prune
from edgeforge.structures import Structure
from edgeforge.structures.attention_heads import AttentionHeads
from edgeforge.structures.channels import Channels
from edgeforge.structures.ffn_width import FfnWidth
from edgeforge.structures.layers import Layers
from edgeforge.structures.vocabulary import Vocabulary

ROLES = {
    "query": r"attention\.(self|attention)\.query$|attention\.q_(lin|proj)$",
    "key": r"attention\.(self|attention)\.key$|attention\.k_(lin|proj)$",
    "value": r"attention\.(self|attention)\.value$|attention\.v_(lin|proj)$",
    "out": r"attention\.output\.dense$|attention\.(out_lin|o_proj)$",
    "up": r"intermediate\.dense$|\.lin1$|\.fc1$",
    "down": r"\d\.output\.dense$|\.lin2$|\.fc2$",
}


def layers(model: PreTrainedModel, role: str) -> list[nn.Linear]:
    """The layers of one role, block by block, by their names."""
    found = [module for name, module in model.named_modules() if re.search(ROLES[role], name)]
    assert all(isinstance(module, nn.Linear) for module in found)
    return found  # type: ignore[return-value]


def head_squares(model: PreTrainedModel, block: int, head: int) -> float:
    """Sum of the squares of all weights that a head of 8 takes away."""
    rows = slice(8 * head, 8 * head + 8)
    own = [layers(model, role)[block].weight[rows] for role in ("query", "key", "value")]
    return float(sum(part.square().sum() for part in [*own, layers(model, "out")[block].weight[:, rows]]))


def test_the_heads_with_the_smallest_weights_go_and_nothing_else_changes(subject: Any, tmp_path: Path) -> None:
    silenced = copy.deepcopy(subject.model)
    removed = AttentionHeads(keep=2).prune(subject.model, Magnitude(), subject.job)
    assert removed["heads"] == [4, 2]
    for block, out in enumerate(layers(silenced, "out")):
        squares = [head_squares(silenced, block, head) for head in range(4)]
        smallest = sorted(range(4), key=lambda head: squares[head])[:2]
        assert sorted(set(range(4)) - set(smallest)) == list(removed["kept"].values())[block]
        for head in smallest:
            out.weight.data[:, 8 * head : 8 * head + 8] = 0  # whatever the head says, nobody listens
    assert [layer.weight.shape for layer in layers(subject.model, "query")] == [(16, 32)] * 3
    torch.testing.assert_close(subject.answer(), subject.answer(silenced), rtol=0, atol=1e-5)
    reloads(subject, tmp_path)


def reloads(subject: Any, folder: Path) -> None:
    loading.save(subject.model, folder / "saved")
    loaded = loading.load(folder / "saved")
    assert (subject.answer(loaded) - subject.answer()).abs().max().item() == 0.0


def reloads_plainly(subject: Any, folder: Path) -> None:
    reloads(subject, folder)
    assert not (folder / "saved" / "shapes.json").exists()
    plain = type(subject.model).from_pretrained(folder / "saved").eval()
    assert (subject.answer(plain) - subject.answer()).abs().max().item() == 0.0


def test_what_the_documentation_says_of_plain_reloading_with_fewer_heads(subject: Any, tmp_path: Path) -> None:
    AttentionHeads(ratio=0.5).prune(subject.model, Random(), subject.job)
    reloads(subject, tmp_path)
    saved = tmp_path / "saved"
    five = int(transformers_version.split(".")[0]) >= 5
    config_says_it = five and subject.model.config.model_type == "vit"
    assert (saved / "shapes.json").exists() is not config_says_it
    if five and not config_says_it:
        return
    # Judged by transformers alone, which says nothing of tensors that do not fit unless it is asked.
    plain, info = type(subject.model).from_pretrained(saved, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (subject.answer(plain.eval()) - subject.answer()).abs().max().item() == 0.0


def test_heads_that_a_config_was_told_of_are_not_pruned_twice(subject: Any, tmp_path: Path) -> None:
    AttentionHeads(keep=3).prune(subject.model, Magnitude(), subject.job)
    loading.save(subject.model, tmp_path / "once")
    subject.model = loading.load(tmp_path / "once")
    assert not getattr(subject.model.config, "pruned_heads", None)
    Layers(keep=(1, 2)).prune(subject.model, Random(), subject.job)
    FfnWidth(width=20).prune(subject.model, Random(), subject.job)
    AttentionHeads(keep=1).prune(subject.model, Magnitude(), subject.job)
    reloads(subject, tmp_path)
    if int(transformers_version.split(".")[0]) < 5:
        plain = type(subject.model).from_pretrained(tmp_path / "saved").eval()
        assert (subject.answer(plain) - subject.answer()).abs().max().item() == 0.0
        assert plain.config.pruned_heads == {0: [1, 2, 3], 1: [1, 2, 3]}


def test_heads_can_go_in_two_stages_and_train(subject: Any, tmp_path: Path) -> None:
    AttentionHeads(keep=3).prune(subject.model, Magnitude(), subject.job)
    loading.save(subject.model, tmp_path / "once")
    model = loading.load(tmp_path / "once")
    removed = AttentionHeads(keep=1).prune(model, Magnitude(), subject.job)
    assert removed["heads"] == [3, 1]
    subject.model = model
    reloads(subject, tmp_path)
    batch = subject.data.batch("train", range(4))
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "rows")}
    model.train()(**inputs).logits.sum().backward()
    assert all(layer.weight.grad is not None for layer in layers(model, "query"))


def test_the_neurons_with_the_smallest_weights_go_and_nothing_else_changes(subject: Any, tmp_path: Path) -> None:
    silenced = copy.deepcopy(subject.model)
    removed = FfnWidth(ratio=0.6, round_to=8).prune(subject.model, Magnitude(), subject.job)
    assert removed["width"] == [48, 16]  # 0.4 * 48 = 19.2, and 16 is the nearest eight
    for up, down in zip(layers(silenced, "up"), layers(silenced, "down"), strict=True):
        squares = up.weight.square().sum(1) + down.weight.square().sum(0)
        smallest = sorted(range(48), key=lambda neuron: float(squares[neuron]))[:32]
        down.weight.data[:, smallest] = 0
    torch.testing.assert_close(subject.answer(), subject.answer(silenced), rtol=0, atol=1e-5)
    reloads_plainly(subject, tmp_path)


def without(model: PreTrainedModel, blocks: list[int]) -> PreTrainedModel:
    """A model built anew with the other blocks' weights, numbered on: an account that shares nothing with pruning."""
    config = copy.deepcopy(model.config)
    stay = [block for block in range(config.num_hidden_layers) if block not in blocks]
    config.num_hidden_layers = len(stay)
    made = type(model)(config)
    state = {}
    for name, value in model.state_dict().items():
        number = re.search(r"(?<=layer\.)\d+|(?<=layers\.)\d+", name)
        if number is None:
            state[name] = value
        elif int(number[0]) in stay:
            state[f"{name[: number.start()]}{stay.index(int(number[0]))}{name[number.end() :]}"] = value
    made.load_state_dict(state, strict=True)
    return made.eval()


def test_blocks_named_to_stay_do(subject: Any, tmp_path: Path) -> None:
    wanted = without(subject.model, [1])
    removed = Layers(keep=(0, 2)).prune(subject.model, Random(), subject.job)
    assert (removed["blocks"], removed["kept"]) == ([3, 2], [0, 2])
    torch.testing.assert_close(subject.answer(), subject.answer(wanted), rtol=0, atol=1e-5)
    reloads_plainly(subject, tmp_path)


def test_drop_loss_takes_the_block_whose_loss_costs_least_and_then_judges_anew(subject: Any, tmp_path: Path) -> None:
    whole = subject.model
    first = min(range(3), key=lambda block: subject.loss(without(whole, [block])))
    others = [block for block in range(3) if block != first]
    second = min(others, key=lambda block: subject.loss(without(whole, [first, block])))
    removed = Layers(count=2).prune(whole, DropLoss(samples=100), subject.job)
    assert removed["kept"] == [block for block in others if block != second]
    assert set(subject.data.asked) == {"train"}
    reloads_plainly(subject, tmp_path)


@pytest.mark.parametrize("criterion", [Taylor(samples=16), Activation(samples=16), DropLoss(samples=8), Random()])
@pytest.mark.parametrize("structure", [AttentionHeads(ratio=0.5), FfnWidth(width=20), Layers(ratio=0.34)])
def test_every_pair_that_is_allowed_works(structure: Structure, criterion: Any, subject: Any, tmp_path: Path) -> None:
    before = sum(parameter.numel() for parameter in subject.model.parameters())
    if structure.removes not in criterion.judges:
        with pytest.raises(IncompatiblePlanError, match="drop_loss judges blocks and heads, not neurons"):
            structure.check(criterion)
        with pytest.raises(IncompatiblePlanError):
            structure.prune(subject.model, criterion, subject.job)
        return
    structure.check(criterion)
    removed = structure.prune(subject.model, criterion, subject.job)
    after = sum(parameter.numel() for parameter in subject.model.parameters())
    assert removed["params"] == [before, after]
    assert after < before
    assert removed["macs"][1] < removed["macs"][0]
    reloads(subject, tmp_path)


def test_structures_stack(subject: Any, tmp_path: Path) -> None:
    """Fewer blocks, heads and neurons, and then narrower channels of what is left."""
    for structure in (Layers(count=1), AttentionHeads(keep=3), FfnWidth(ratio=0.5), Channels(ratio=0.25)):
        structure.prune(subject.model, Magnitude(), subject.job)
    assert [layer.weight.shape for layer in layers(subject.model, "query")] == [(18, 24)] * 2
    assert [layer.weight.shape for layer in layers(subject.model, "up")] == [(18, 24)] * 2
    reloads(subject, tmp_path)


def test_a_rehearsal_reads_no_data(subject: Any) -> None:
    for structure in (AttentionHeads(keep=2), FfnWidth(ratio=0.5), Layers(count=1)):
        structure.prune(subject.model, Random(), subject.job)
    assert subject.data.asked == []


# -- what is refused


@pytest.mark.parametrize("criterion", [BnScale(), Fpgm(), Lamp()])
@pytest.mark.parametrize("structure", [AttentionHeads(keep=1), FfnWidth(width=1), Layers(count=1)])
def test_criteria_of_channels_alone_are_refused_in_the_plan(structure: Structure, criterion: Any) -> None:
    with pytest.raises(
        IncompatiblePlanError, match=f"{criterion.kind} judges channels, not {structure.removes}"
    ) as found:
        structure.check(criterion)
    assert "magnitude, random, taylor" in str(found.value)


@pytest.mark.parametrize("criterion", [Activation(), DropLoss()])
def test_criteria_of_units_are_refused_for_channels(criterion: Any, subject_of: Any) -> None:
    with pytest.raises(IncompatiblePlanError, match="not channels"):
        Channels(ratio=0.5).check(criterion)
    with pytest.raises(IncompatiblePlanError, match="criteria for channels: bn_scale, fpgm, lamp, magnitude"):
        Channels(ratio=0.5).prune(subject_of("vit").model, criterion, subject_of("vit").job)


def test_each_structure_says_how_it_is_usually_judged() -> None:
    assert Layers(count=1).usual_criterion() == DropLoss()
    assert AttentionHeads(keep=1).usual_criterion() == FfnWidth(width=1).usual_criterion() == Magnitude()
    assert Vocabulary().usual_criterion() is None
    Vocabulary().check(None)
    with pytest.raises(IncompatiblePlanError, match="not magnitude"):
        Vocabulary().check(Magnitude())


def test_the_stage_refuses_before_any_work_and_names_the_criterion_in_its_key() -> None:
    wrong = Prune.model_validate(
        {"kind": "prune", "structure": {"kind": "ffn_width", "ratio": 0.5}, "criterion": "drop_loss"}
    )
    with pytest.raises(IncompatiblePlanError, match="not neurons"):
        wrong.check()
    stage = Prune.model_validate({"kind": "prune", "structure": {"kind": "layers", "count": 1}})
    stage.check()
    assert stage.identity()["criterion"] == {"kind": "drop_loss", "samples": None}
    assert DropLoss() in nested_specs(stage)
    assert Prune.model_validate(stage.model_dump(mode="json")) == stage


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (AttentionHeads(keep=5), "keep is 5, and there are 4 heads"),
        (AttentionHeads(ratio=0.8), "ratio 0.8 would leave no head of 4"),
        (FfnWidth(width=49), "width is 49, and there are 48 neurons"),
        (FfnWidth(ratio=0.99), "ratio 0.99 would leave the feed-forward layer of a block with nothing"),
        (Layers(count=3), "none of 3 blocks"),
        (Layers(ratio=0.7), "none of 3 blocks"),
        (Layers(keep=(0, 3)), "there is no block 3"),
        (Vocabulary(), "reads no tokens and has no vocabulary"),
    ],
)
def test_too_much_is_refused(structure: Structure, message: str, subject_of: Any) -> None:
    subject = subject_of("vit")
    with pytest.raises(ModelError, match=message):
        structure.prune(subject.model, Random(), subject.job)


@pytest.mark.parametrize("structure", [AttentionHeads(keep=1), FfnWidth(width=1), Layers(count=1)])
def test_other_architectures_are_refused(structure: Structure, tiny_model: Any, job: Any) -> None:
    with pytest.raises(ModelError, match="heads, neurons and blocks of a ResNetForImageClassification are not known"):
        structure.prune(tiny_model("resnet"), Random(), job())


@pytest.mark.parametrize("structure", [AttentionHeads(ratio=0), FfnWidth(ratio=0.01, round_to=16), Layers(ratio=0)])
def test_it_warns_where_nothing_goes(structure: Structure, subject_of: Any) -> None:
    subject = subject_of("bert")
    before = copy.deepcopy(subject.model.state_dict())
    structure.prune(subject.model, Random(), subject.job)
    assert all(torch.equal(before[name], value) for name, value in subject.model.state_dict().items())
    assert [text.partition(":")[0] for text in subject.job.progress.warnings] == ["nothing was pruned"]


@pytest.mark.parametrize(
    ("spec", "said", "message"),
    [
        (AttentionHeads, {}, "give either ratio or keep"),
        (AttentionHeads, {"ratio": 0.5, "keep": 2}, "give either ratio or keep"),
        (FfnWidth, {}, "give either ratio or width"),
        (FfnWidth, {"width": 20, "round_to": 8}, "round_to goes with ratio"),
        (Layers, {}, "give one of count, ratio and keep"),
        (Layers, {"count": 1, "keep": [0]}, "give one of count, ratio and keep"),
        (Layers, {"keep": [2, 0]}, "keep must rise"),
        (Layers, {"keep": [0, 2], "steps": 2}, "steps goes with count or ratio"),
    ],
)
def test_slips_are_named(spec: type[Structure], said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec.model_validate({"kind": spec.model_fields["kind"].default, **said})
