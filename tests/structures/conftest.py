"""A job without data, and models that the shared families do not cover."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge.core.stage import Job
from edgeforge.core.task import Interface

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Progress:
    """Remembers its warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def job(tiny_interface: Interface) -> Callable[..., Any]:
    """seed -> a job whose task knows its interface and nothing else."""
    task: Any = SimpleNamespace(open=lambda: SimpleNamespace(interface=tiny_interface))

    def make(seed: int = 0) -> Job:
        return Job(task, Path(), seed, lambda: pytest.fail("no device is needed"), Progress())  # type: ignore[arg-type,return-value]

    return make


@pytest.fixture(params=["bottleneck", "convnext", "mobilenet_v2", "resnet", "vit"])
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Each family in turn, and a ResNet of bottlenecks."""
    if request.param != "bottleneck":
        return tiny_model(request.param)
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck", num_labels=4
    )
    made = ResNetForImageClassification(config)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
    return made.eval()
