"""Scores of heads, neurons and blocks of decoders, with labels for tokens: by hand, and by really removing them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from edgeforge.core.errors import DataError
from edgeforge.core.stage import Job
from edgeforge.core.task import NO_LABEL
from edgeforge.criteria import Criterion, Units, _samples
from edgeforge.criteria.activation import Activation
from edgeforge.criteria.drop_loss import DropLoss
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.criteria.taylor import Taylor

COUNTS = {"groups": 2, "queries": 4, "neurons": 128, "blocks": 1}
LENGTH, VOCABULARY = 8, 352


class Data:
    """12 windows of 5 to 8 tokens, padded to 8. Window n has n % 4 labels, the third in four none but one."""

    def __init__(self) -> None:
        self.interface: Any = SimpleNamespace(
            per_token=True, text=SimpleNamespace(max_length=LENGTH, vocabulary_size=VOCABULARY)
        )
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, VOCABULARY, (12, LENGTH), generator=generator)
        self.mask = (torch.arange(LENGTH)[None] < (5 + torch.arange(12) % 4)[:, None]).long()
        self.labels = torch.full_like(self.ids, NO_LABEL)
        for row in range(12):
            for place in range(row % 4):
                self.labels[row, place] = self.ids[row, place + 1]
        self.batches: list[int] = []

    def size(self, split: str) -> int:
        assert split == "train"
        return 12

    def batch(self, split: str, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = torch.tensor(list(indices))
        self.batches.append(len(rows))
        mask = self.mask[rows]
        return {
            "input_ids": self.ids[rows] * mask,
            "attention_mask": mask,
            "labels": self.labels[rows],
            "rows": rows,
        }


def cross_entropy(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


def job(data: Data) -> Job:
    task: Any = SimpleNamespace(open=lambda model: data, loss=cross_entropy)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    progress: Any = SimpleNamespace(update=lambda *_: None)
    return Job(task, Path(), 0, lambda: accelerator, progress, Path())


def units(model: PreTrainedModel, what: str) -> list[Units]:
    """Written out here, so that they are an account of their own."""
    made = []
    for number, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        sides: tuple[tuple[nn.Module, bool], ...]
        if what == "neurons":
            sides = ((mlp.gate_proj, True), (mlp.up_proj, True), (mlp.down_proj, False))
            made.append(Units(f"{number}", "neurons", COUNTS[what], sides, mlp.down_proj, layer))
        elif what == "blocks":
            sides = tuple((one, True) for one in layer.modules())
            made.append(Units(f"{number}", "blocks", 1, sides, layer, layer))
        else:
            sides = ((attention.q_proj, True), (attention.o_proj, False))
            if what == "groups":
                sides += ((attention.k_proj, True), (attention.v_proj, True))
            made.append(Units(f"{number}", "heads", COUNTS[what], sides, attention.o_proj, layer))
    return made


Place = tuple[torch.Tensor, Any]


def places(model: PreTrainedModel, what: str, block: int, unit: int) -> list[list[Place]]:
    """What a unit takes from each layer: tensors and where in them."""
    layer = model.model.layers[block]
    attention, mlp = layer.self_attn, layer.mlp
    if what == "blocks":
        return [[(tensor, ...) for tensor in one.parameters(recurse=False)] for one in layer.modules()]

    def run(layer: nn.Linear, *, rows: bool) -> list[Place]:
        size = layer.weight.shape[0 if rows else 1] // COUNTS[what]
        part = slice(unit * size, unit * size + size)
        if not rows:
            return [(layer.weight, (slice(None), part))]
        return [(layer.weight, part)] + ([(layer.bias, part)] if layer.bias is not None else [])

    if what == "neurons":
        return [run(mlp.gate_proj, rows=True), run(mlp.up_proj, rows=True), run(mlp.down_proj, rows=False)]
    found = [run(attention.q_proj, rows=True), run(attention.o_proj, rows=False)]
    if what == "groups":
        found += [run(attention.k_proj, rows=True), run(attention.v_proj, rows=True)]
    return found


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def model(request: pytest.FixtureRequest, tiny_lm: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return tiny_lm(request.param)


@pytest.mark.parametrize("what", sorted(COUNTS))
def test_magnitude_is_the_sum_of_all_squared_weights(what: str, model: PreTrainedModel) -> None:
    """Norms and gates too; biases not."""
    found = Magnitude().units(model, units(model, what), job(Data()))
    for block in range(3):
        for unit in {0, COUNTS[what] - 1}:
            squares = [
                float(tensor[place].square().sum())
                for layer in places(model, what, block, unit)
                for tensor, place in layer
                if not any(tensor is bias for name, bias in model.named_parameters() if name.endswith("bias"))
            ]
            assert float(found[block][unit]) == pytest.approx(sum(squares), rel=1e-5)


@pytest.mark.parametrize("what", sorted(COUNTS))
def test_taylor_by_finite_differences(what: str, model: PreTrainedModel) -> None:
    """Mini-batches of one window; those without a label have no say."""
    data = Data()
    data.interface.text.max_length = _samples.LOGITS_AT_ONCE // VOCABULARY  # one window makes too many logits already
    found = Taylor(samples=12).units(model, units(model, what), job(data))
    assert data.batches == [1] * 12
    exact = in_double_precision(model)
    for block, unit in ((1, COUNTS[what] - 1),):
        changes = [
            _change(exact, layer, data.batch("train", [row])) ** 2
            for row in range(12)
            if row % 4
            for layer in places(exact, what, block, unit)
            if layer
        ]
        assert float(found[block][unit]) == pytest.approx(sum(changes) / 9, rel=2e-3, abs=1e-10)
    assert all(parameter.grad is None for parameter in model.parameters())


def in_double_precision(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose norms, too, do not round to single precision."""
    exact = copy.deepcopy(model).double()
    for norm in exact.modules():
        if hasattr(norm, "variance_epsilon"):
            norm.forward = lambda states, norm=norm: (  # type: ignore[assignment]
                norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.variance_epsilon)
            )
    return exact


def _change(model: PreTrainedModel, layer: list[Place], batch: dict[str, torch.Tensor]) -> float:
    """d loss / d scale at 1 of these weights together, by central differences in double precision."""
    step, losses = 1e-5, []
    for scale in (1 + step, 1 - step):
        kept = [tensor.data[place].clone() for tensor, place in layer]
        for tensor, place in layer:
            tensor.data[place] *= scale
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        losses.append(float(cross_entropy(logits, batch)))
        for (tensor, place), value in zip(layer, kept, strict=True):
            tensor.data[place] = value
    return (losses[0] - losses[1]) / (2 * step)


def loss(model: PreTrainedModel, data: Data) -> float:
    """The mean over all 18 labelled tokens, one window at a time and without padding."""
    total, count = 0.0, 0
    for row in range(12):
        length = int(data.mask[row].sum())
        with torch.no_grad():
            likely = model(input_ids=data.ids[row : row + 1, :length]).logits[0].double().log_softmax(-1)
        for place in range(row % 4):
            total, count = total - float(likely[place, data.labels[row, place]]), count + 1
    assert count == 18
    return total / count


@pytest.mark.parametrize("at_once", [12, 5, 1])
def test_drop_loss_is_the_loss_of_a_model_really_without_it(
    at_once: int, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many windows fit into memory: every labelled token counts the same."""
    data = Data()
    monkeypatch.setattr(_samples, "LOGITS_AT_ONCE", at_once * LENGTH * VOCABULARY)
    found = {
        what: DropLoss(samples=99).units(model, units(model, what), job(data)) for what in COUNTS if what != "neurons"
    }
    assert max(data.batches) == at_once
    whole, size = loss(model, data), model.model.layers[0].self_attn.head_dim
    for block in range(3):
        for what, wide in (("queries", size), ("groups", 2 * size)):
            for unit in range(COUNTS[what]):
                cut = copy.deepcopy(model)
                cut.model.layers[block].self_attn.o_proj.weight.data[:, unit * wide : unit * wide + wide] = 0
                assert float(found[what][block][unit]) == pytest.approx(loss(cut, data) - whole, abs=1e-5)
        cut = copy.deepcopy(model)
        del cut.model.layers[block]
        cut.config.num_hidden_layers = 2
        for number, layer in enumerate(cut.model.layers):
            layer.self_attn.layer_idx = number
        assert float(found["blocks"][block][0]) == pytest.approx(loss(cut, data) - whole, abs=1e-5)


def test_what_comes_before_a_left_out_unit_is_computed_once(model: PreTrainedModel) -> None:
    ran: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    DropLoss(samples=4).units(model, units(model, "blocks"), job(Data()))
    assert ran == [0, 1, 2, *(1, 2), *(2,), *()]
    ran.clear()
    DropLoss(samples=4).units(model, units(model, "groups"), job(Data()))
    assert ran == [0, 1, 2, *[0, 1, 2] * 2, *[1, 2] * 2, *[2] * 2]


def test_activation_by_hand(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean over the real tokens, labelled or not, of what passes the gate and of what a head says."""
    data = Data()
    monkeypatch.setattr(_samples, "LOGITS_AT_ONCE", 5 * LENGTH * VOCABULARY)
    found = {what: Activation(samples=12).units(model, units(model, what), job(data)) for what in COUNTS}
    assert set(data.batches) == {5, 2}
    seen: dict[tuple[int, str], torch.Tensor] = {}
    for number, layer in enumerate(model.model.layers):
        for name, module in (("in", layer.mlp), ("heads", layer.self_attn.o_proj), ("block", layer)):
            module.register_forward_hook(
                lambda _m, args, out, key=(number, name): seen.update({key: args[0], (*key, "out"): out})  # type: ignore[dict-item]
            )
    with torch.no_grad():
        model(input_ids=data.ids * data.mask, attention_mask=data.mask)
    real = data.mask.bool()
    for number, layer in enumerate(model.model.layers):
        given = seen[number, "in"][real]
        with torch.no_grad():
            neurons = (functional.silu(layer.mlp.gate_proj(given)) * layer.mlp.up_proj(given)).abs().mean(0)
        torch.testing.assert_close(found["neurons"][number], neurons, rtol=1e-4, atol=1e-6)
        for what in ("groups", "queries"):
            heads = seen[number, "heads"][real].unflatten(-1, (COUNTS[what], -1)).square().sum(-1).sqrt().mean(0)
            torch.testing.assert_close(found[what][number], heads, rtol=1e-4, atol=1e-6)
        before, after = seen[number, "block"][real], seen[number, "block", "out"][real]  # type: ignore[index]
        cosines = (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))
        assert float(found["blocks"][number]) == pytest.approx(float(1 - cosines.mean()), rel=1e-4)


@pytest.mark.parametrize("criterion", [Taylor(samples=6), Activation(samples=6), DropLoss(samples=6)])
def test_the_model_is_left_as_it_was(criterion: Criterion, model: PreTrainedModel) -> None:
    before = copy.deepcopy(model.state_dict())
    first = torch.cat(criterion.units(model.train(), units(model, "groups"), job(Data())))
    assert torch.equal(torch.cat(criterion.units(model, units(model, "groups"), job(Data()))), first)
    assert model.training
    assert model.config.use_cache is True
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("criterion", [Taylor(), DropLoss()])
def test_windows_without_any_label_are_named(criterion: Criterion, tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    data, model = Data(), tiny_lm("llama")
    data.labels[:] = NO_LABEL
    with pytest.raises(
        DataError, match=rf"none of the 12 training samples that {criterion.kind} looked at has a label"
    ):
        criterion.units(model, units(model, "blocks"), job(data))
    assert Activation().units(model, units(model, "blocks"), job(data))[0].isfinite()


def test_how_many_windows_are_enough(tiny_lm: Callable[[str], PreTrainedModel]) -> None:
    class Many(Data):
        def size(self, split: str) -> int:
            return 500

        def batch(self, split: str, indices: Sequence[int]) -> dict[str, torch.Tensor]:
            return super().batch(split, [index % 12 for index in indices])

    model = tiny_lm("llama")
    for criterion, windows in ((DropLoss(), 16), (Activation(), 64), (Taylor(), 64)):
        data = Many()
        criterion.units(model, units(model, "blocks"), job(data))
        assert sum(data.batches) == windows
