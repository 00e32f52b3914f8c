"""Scores of heads, neurons and blocks against formulas by hand, finite differences and models really without them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion, Units
from edgeforge.criteria.activation import Activation
from edgeforge.criteria.bn_scale import BnScale
from edgeforge.criteria.drop_loss import DropLoss
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.criteria.random import Random
from edgeforge.criteria.taylor import MINI_BATCH, Taylor

BLOCKS, HEADS, SIZE, NEURONS = 2, 2, 4, 6
Place = tuple[torch.Tensor, Any]


def make() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=HEADS * SIZE,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=NEURONS,
        max_position_embeddings=16,
        num_labels=3,
    )
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


class Data:
    """40 texts of 3 to 6 tokens, padded to 6; 3 labels."""

    interface: Any = SimpleNamespace(per_token=False)

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, 20, (40, 6), generator=generator)
        self.mask = (torch.arange(6)[None] < (3 + torch.arange(40) % 4)[:, None]).long()
        self.asked: list[list[int]] = []

    def size(self, split: str) -> int:
        assert split == "train"
        return 40

    def batch(self, split: str, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        assert split == "train"
        rows = torch.tensor(list(indices))
        self.asked.append(rows.tolist())
        ids, mask = self.ids[rows], self.mask[rows]
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": rows % 3, "rows": rows}

    def inputs(self, rows: Sequence[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        mask = self.mask[list(rows)]
        return {"input_ids": self.ids[list(rows)] * mask, "attention_mask": mask}, torch.tensor(list(rows)) % 3


def job(data: Data, seed: int = 0) -> Job:
    task: Any = SimpleNamespace(
        open=lambda model: data, loss=lambda logits, batch: functional.cross_entropy(logits, batch["labels"])
    )
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    progress: Any = SimpleNamespace(update=lambda *_: None)
    return Job(task, Path(), seed, lambda: accelerator, progress, Path())


def parts(model: BertForSequenceClassification, block: int) -> dict[str, nn.Linear]:
    layer = model.bert.encoder.layer[block]
    own = layer.attention.self
    return {
        "query": own.query,
        "key": own.key,
        "value": own.value,
        "out": layer.attention.output.dense,
        "up": layer.intermediate.dense,
        "down": layer.output.dense,
    }


def units(model: BertForSequenceClassification, part: str) -> list[Units]:
    made = []
    for block in range(BLOCKS):
        layers, layer = parts(model, block), model.bert.encoder.layer[block]
        if part == "heads":
            sides = tuple((layers[name], name != "out") for name in ("query", "key", "value", "out"))
            made.append(Units(f"{block}.heads", "heads", HEADS, sides, layers["out"], layer))
        elif part == "neurons":
            sides = ((layers["up"], True), (layers["down"], False))
            made.append(Units(f"{block}.neurons", "neurons", NEURONS, sides, layers["down"], layer))
        else:
            made.append(Units(f"{block}", "blocks", 1, tuple((one, True) for one in layer.modules()), layer, layer))
    return made


def places(model: BertForSequenceClassification, part: str, block: int, unit: int) -> Iterator[list[Place]]:
    """What a unit takes from each layer: tensors and where in them."""
    layers = parts(model, block)
    if part == "heads":
        rows = slice(unit * SIZE, unit * SIZE + SIZE)
        for name in ("query", "key", "value"):
            yield [(layers[name].weight, rows), (layers[name].bias, rows)]
        yield [(layers["out"].weight, (slice(None), rows))]
    elif part == "neurons":
        yield [(layers["up"].weight, unit), (layers["up"].bias, unit)]
        yield [(layers["down"].weight, (slice(None), unit))]
    else:
        for module in model.bert.encoder.layer[block].modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                yield [(module.weight, ...), (module.bias, ...)]


ALL = [
    (part, block, unit)
    for part, count in (("heads", HEADS), ("neurons", NEURONS), ("blocks", 1))
    for block in range(BLOCKS)
    for unit in range(count)
]


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


def test_magnitude_is_the_sum_of_all_squared_weights(data: Data) -> None:
    model = make()
    for part, block, unit in ALL:
        found = Magnitude().units(model, units(model, part), job(data))
        weights = [layer[0] for layer in places(model, part, block, unit)]  # without the biases
        wanted = sum(float(tensor[place].square().sum()) for tensor, place in weights)
        assert float(found[block][unit]) == pytest.approx(wanted, rel=1e-5)


def test_taylor_by_finite_differences(data: Data) -> None:
    """Per layer and mini-batch the change of the loss when all of a unit's weights there are scaled, squared."""
    model, exact = make(), make().double()
    data.asked.clear()
    found = {part: Taylor(samples=32).units(model, units(model, part), job(data)) for part in ("heads", "blocks")}
    found["neurons"] = Taylor(samples=32).units(model, units(model, "neurons"), job(data))
    batches = [data.inputs(rows) for rows in data.asked[:2]]
    assert [len(rows) for rows in data.asked] == [MINI_BATCH] * 6
    for part, block, unit in ALL:
        wanted = sum(
            change(exact, layer, *batch) ** 2 for layer in places(exact, part, block, unit) for batch in batches
        ) / len(batches)
        assert float(found[part][block][unit]) == pytest.approx(wanted, rel=2e-3, abs=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


def change(model: nn.Module, layer: list[Place], inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
    """d loss / d scale at 1 of these weights together, by central differences in double precision."""
    step, losses = 1e-5, []
    for scale in (1 + step, 1 - step):
        kept = [tensor.data[place].clone() for tensor, place in layer]
        for tensor, place in layer:
            tensor.data[place] *= scale
        with torch.no_grad():
            losses.append(float(functional.cross_entropy(model(**inputs).logits, labels)))
        for (tensor, place), value in zip(layer, kept, strict=True):
            tensor.data[place] = value
    return (losses[0] - losses[1]) / (2 * step)


def loss(model: nn.Module, data: Data) -> float:
    """Of all 40, one text at a time and without padding."""
    total = 0.0
    for row in range(40):
        inputs, label = data.inputs([row])
        length = int(inputs["attention_mask"].sum())
        with torch.no_grad():
            total += float(functional.cross_entropy(model(input_ids=inputs["input_ids"][:, :length]).logits, label))
    return total / 40


def test_drop_loss_is_the_loss_of_a_model_really_without_it(data: Data) -> None:
    model = make()
    whole = loss(model, data)
    heads = DropLoss(samples=40).units(model, units(model, "heads"), job(data))
    blocks = DropLoss(samples=99).units(model, units(model, "blocks"), job(data))
    for block in range(BLOCKS):
        for head in range(HEADS):
            cut = copy.deepcopy(model)
            rows = slice(head * SIZE, head * SIZE + SIZE)
            parts(cut, block)["value"].weight.data[rows] = 0  # such a head says nothing
            parts(cut, block)["value"].bias.data[rows] = 0
            assert float(heads[block][head]) == pytest.approx(loss(cut, data) - whole, abs=1e-5)
        cut = copy.deepcopy(model)
        del cut.bert.encoder.layer[block]
        assert float(blocks[block][0]) == pytest.approx(loss(cut, data) - whole, abs=1e-5)


def test_activation_of_heads_and_neurons_by_hand(data: Data) -> None:
    """Mean over the real tokens of the length of what a head says, and of |what a neuron puts out|."""
    model = make()
    heads = Activation(samples=40).units(model, units(model, "heads"), job(data))
    neurons = Activation(samples=40).units(model, units(model, "neurons"), job(data))
    inputs, _ = data.inputs(range(40))
    said: dict[tuple[str, int], torch.Tensor] = {}
    for block, layer in enumerate(model.bert.encoder.layer):
        layer.attention.self.register_forward_hook(
            lambda _m, _i, out, block=block: said.__setitem__(("heads", block), out[0])
        )
        layer.intermediate.register_forward_hook(
            lambda _m, _i, out, block=block: said.__setitem__(("neurons", block), out)
        )
    with torch.no_grad():
        model(**inputs)
    tokens = [(row, token) for row in range(40) for token in range(6) if inputs["attention_mask"][row, token]]
    for block in range(BLOCKS):
        for head in range(HEADS):
            lengths = [
                said["heads", block][token][head * SIZE : head * SIZE + SIZE].square().sum().sqrt() for token in tokens
            ]
            assert float(heads[block][head]) == pytest.approx(float(sum(lengths)) / len(tokens), rel=1e-4)
        for neuron in range(NEURONS):
            sizes = [abs(float(said["neurons", block][token][neuron])) for token in tokens]
            assert float(neurons[block][neuron]) == pytest.approx(sum(sizes) / len(tokens), rel=1e-4)


def test_activation_of_blocks_is_block_influence(data: Data) -> None:
    model = make()
    found = Activation(samples=40).units(model, units(model, "blocks"), job(data))
    inputs, _ = data.inputs(range(40))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    real = inputs["attention_mask"].bool()
    for block in range(BLOCKS):
        before, after = states[block][real], states[block + 1][real]
        cosines = (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))
        assert found[block].shape == (1,)
        assert float(found[block]) == pytest.approx(float(1 - cosines.mean()), rel=1e-4)


@pytest.mark.parametrize("criterion", [Taylor(samples=20), Activation(samples=20), DropLoss(samples=20), Random()])
def test_scores_follow_from_the_seed_and_leave_the_model_as_it_was(criterion: Criterion, data: Data) -> None:
    model = make().train()
    before = copy.deepcopy(model.state_dict())

    def scores(seed: int) -> torch.Tensor:
        return torch.cat(criterion.units(model, units(model, "heads"), job(data, seed)))

    first = scores(0)
    assert first.shape == (BLOCKS * HEADS,)
    assert first.dtype == torch.float32
    assert len(set(first.tolist())) == BLOCKS * HEADS
    assert torch.equal(scores(0), first)
    assert not torch.equal(scores(1), first)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("criterion", "part"), [(DropLoss(), "neurons"), (BnScale(), "heads"), (BnScale(), "blocks")])
def test_what_a_criterion_cannot_judge_it_refuses(criterion: Criterion, part: str, data: Data) -> None:
    model = make()
    with pytest.raises(IncompatiblePlanError, match=f"not {part}"):
        criterion.units(model, units(model, part), job(data))
    with pytest.raises(IncompatiblePlanError, match=r"activation, magnitude, random, taylor|activation, drop_loss"):
        criterion.check_judges(part)  # type: ignore[arg-type]
