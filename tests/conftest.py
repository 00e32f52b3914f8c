"""Fixtures for every test: a small image interface and one tiny model per family, made from configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 2]},
    "mobilenet_v2": {"depth_multiplier": 0.1, "finegrained_output": False},
    "vit": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "patch_size": 4,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [2, 2], "patch_size": 2, "layer_scale_init_value": 1.0},
}
"""The fields of each family's tiny model; all take 16x16 images and have under 50,000 parameters."""


@pytest.fixture
def tiny_interface() -> Interface:
    """One-channel 16x16 images, four labels."""
    return Interface(
        input_name="image",
        input_shape=(1, 16, 16),
        output_name="logits",
        labels=("north", "east", "south", "west"),
        mean=(0.5,),
        std=(0.25,),
    )


@pytest.fixture
def tiny_model(tiny_interface: Interface) -> Callable[[str], PreTrainedModel]:
    """Family name -> its tiny image classifier, the same weights at every call, batch statistics not trivial."""

    def make(family: str) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForImageClassification

        from edgeforge.architectures import Architecture
        from edgeforge.core.kinds import discover

        cls = discover("edgeforge.architectures", Architecture)[family]
        spec = cls.model_validate({"kind": family, **TINY[family]})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForImageClassification.from_config(spec.config(tiny_interface)).float()
            # The library's initial weights are so small that some signals die; here every layer must matter.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.xavier_normal_(parameter)
            norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            momenta = [norm.momentum for norm in norms]
            for norm in norms:
                norm.momentum = 1.0
            model.train()(torch.randn(32, *tiny_interface.input_shape))
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        return model.eval()

    return make


@pytest.fixture(params=sorted(TINY))
def family(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(request.param)


@dataclass
class Notes:
    """Progress that keeps what was warned of."""

    warnings: list[str] = field(default_factory=list)

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Digits:
    """The real task on the digits that ship with scikit-learn, and artifacts of tiny models for it, made once."""

    def __init__(self, root: Path) -> None:
        from edgeforge.tasks.image_classification import ImageClassification

        self.task = ImageClassification()
        self.data = self.task.open()
        self.root = root
        self.made: dict[str, Artifact] = {}

    def job(self, folder: Path) -> Job:
        folder.mkdir(parents=True, exist_ok=True)
        return Job(self.task, folder, 0, None, Notes())  # type: ignore[arg-type]

    def artifact(self, folder: Path, format: str, facts: Mapping[str, Any] | None = None) -> Artifact:
        """What is in `folder`, as if it were sealed."""
        files = hash_folder(folder)
        return Artifact(folder.name, "", format, folder, digest_files(files), files, {}, {}, facts or {})

    def torch(self, family: str) -> Artifact:
        """The family's tiny model, its weights random and its batch statistics those of real images."""
        import torch
        from transformers import AutoModelForImageClassification

        from edgeforge.architectures import Architecture
        from edgeforge.core.kinds import discover
        from edgeforge.models import loading

        if f"{family}.torch" not in self.made:
            cls = discover("edgeforge.architectures", Architecture)[family]
            config = cls.model_validate({"kind": family, **TINY[family]}).config(self.data.interface)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModelForImageClassification.from_config(config).float()
                norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
                for norm in norms:
                    norm.momentum = None
                    norm.weight.data.uniform_(0.5, 1.5)
                    norm.bias.data.normal_(0, 0.3)
                model.train()
                with torch.no_grad():
                    model(self.data.batch("train", range(256))["pixel_values"])
            for norm in norms:
                norm.momentum = 0.1
            folder = self.root / f"{family}.torch"
            loading.save(model.eval(), folder)
            self.made[f"{family}.torch"] = self.artifact(folder, "torch")
        return self.made[f"{family}.torch"]

    def onnx(self, family: str) -> Artifact:
        """The same model as a float ONNX file."""
        from edgeforge.exporters.onnx import Onnx

        if f"{family}.onnx" not in self.made:
            folder = self.root / f"{family}.onnx"
            facts = Onnx().export(self.torch(family), self.job(folder))
            self.made[f"{family}.onnx"] = self.artifact(folder, "onnx", facts)
        return self.made[f"{family}.onnx"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Digits, and tiny models as torch and ONNX artifacts."""
    return Digits(tmp_path_factory.mktemp("digits"))
