"""On a model that was really trained, a criterion must beat the control."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from edgeforge.core.stage import Job
from edgeforge.criteria import Criterion
from edgeforge.criteria.bn_scale import BnScale
from edgeforge.criteria.random import Random
from edgeforge.criteria.taylor import Taylor
from edgeforge.structures.channels import Channels
from edgeforge.tasks.image_classification import ImageClassification

SEEDS = (0, 1, 2)
STEPS, BATCH = 400, 64


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        pass


def on_cpu() -> Any:
    return SimpleNamespace(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def task() -> ImageClassification:
    return ImageClassification(image_size=16)


@pytest.fixture(scope="module")
def trained(task: ImageClassification) -> list[dict[str, torch.Tensor]]:
    """Weights for each seed, by a plain loop that shares nothing with edgeforge's."""
    found = []
    data = task.open()
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = new().train()
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
        for _ in range(STEPS):
            batch = data.batch("train", torch.randint(data.size("train"), (BATCH,)).tolist())
            nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        assert accuracy(model, task) > 0.96
        found.append(model.state_dict())
    return found


def new() -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[2, 2, 2],
            layer_type="basic",
            num_labels=10,
        )
    )


def accuracy(model: nn.Module, task: ImageClassification) -> float:
    data = task.open()
    batch = data.batch("test", range(data.size("test")))
    with torch.no_grad():
        predicted = model.eval()(batch["pixel_values"]).logits.argmax(-1)
    return float((predicted == batch["labels"]).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("said", [{"ratio": 0.15}, {"ratio": 0.3, "scope": "global"}], ids=["local", "global"])
@pytest.mark.parametrize("criterion", [Taylor(), BnScale()], ids=["taylor", "bn_scale"])
def test_it_keeps_more_accuracy_than_random_channels(
    criterion: Criterion, said: dict[str, Any], trained: list[dict[str, torch.Tensor]], task: ImageClassification
) -> None:
    """Mean of three seeds, before any recovery."""

    def mean(judge: Criterion) -> float:
        found = []
        for seed, weights in zip(SEEDS, trained, strict=True):
            model = new()
            model.load_state_dict(weights)
            Channels(**said).prune(model, judge, Job(task, Path(), seed, on_cpu, Silent()))
            found.append(accuracy(model, task))
        return sum(found) / len(found)

    assert mean(criterion) > mean(Random())
