"""The prune stage: what it writes, what it says, and what it refuses before any work."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.stage import Job
from edgeforge.data.npz import Npz
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.models import loading
from edgeforge.models.footprint import footprint
from edgeforge.stages.finetune import Finetune
from edgeforge.stages.prune import Prune
from edgeforge.tasks.image_classification import ImageClassification
from edgeforge.training.recipe import Recovery

HALF = {"kind": "channels", "ratio": 0.5}


class Progress:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        assert 0 < done <= total

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ImageClassification:
    """64 gray images of 16x16 with four labels, as the tiny models take them."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("prune") / "images.npz"
    images, labels = rng.integers(0, 256, (80, 16, 16), np.uint8), np.arange(80) % 4
    np.savez(path, x_train=images[:64], y_train=labels[:64], x_test=images[64:], y_test=labels[64:])
    return ImageClassification(data=Npz(path=str(path)))


def pruned(
    model: PreTrainedModel, task: ImageClassification, folder: Path, said: Mapping[str, Any], *, seed: int = 0
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Run the stage as a run would: from a saved artifact into a folder, and load what it wrote."""
    source, target = folder / "in", folder / "out"
    loading.save(model, source)
    artifact = Artifact("key", "train", "torch", source, "", {}, {}, {})
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"))
    job = Job(task, target, seed, lambda: accelerator, Progress())
    stage = Prune.model_validate({"kind": "prune", "structure": HALF, **said})
    facts = stage.run({"model": artifact}, job)
    return loading.load(target), facts


@pytest.mark.parametrize("criterion", ["magnitude", {"kind": "taylor", "samples": 32}, "lamp", "fpgm", "random"])
def test_it_writes_a_pruned_model_and_says_what_it_removed(
    criterion: Any,
    tiny_model: Callable[[str], PreTrainedModel],
    task: ImageClassification,
    tmp_path: Path,
) -> None:
    model = tiny_model("vit")
    interface = task.open().interface
    before = footprint(model, interface)
    result, facts = pruned(model, task, tmp_path, {"criterion": criterion})
    after = footprint(result, interface)
    assert after["params"] < before["params"] / 2
    assert {name: facts[name] for name in after} == after
    assert facts["removed"]["params"] == [before["params"], after["params"]]
    assert facts["removed"]["macs"] == [before["macs"], after["macs"]]
    assert facts["removed"]["layers"]["vit.embeddings.patch_embeddings.projection"] == [32, 16]
    batch = task.open().batch("test", range(4))
    with torch.no_grad():
        assert result(batch["pixel_values"]).logits.shape == (4, 4)


def test_equal_seeds_write_equal_files(
    tiny_model: Callable[[str], PreTrainedModel], task: ImageClassification, tmp_path: Path
) -> None:
    def written(seed: int, run: int) -> bytes:
        folder = tmp_path / str(run)
        pruned(tiny_model("resnet"), task, folder, {"criterion": {"kind": "taylor", "samples": 32}}, seed=seed)
        return (folder / "out" / "model.safetensors").read_bytes()

    assert written(0, 0) == written(0, 1)
    assert written(0, 0) != written(1, 2)


# -- before any work


def test_a_rehearsal_gives_the_shape_that_the_run_will_give(
    family: str, tiny_model: Callable[[str], PreTrainedModel], task: ImageClassification, tmp_path: Path
) -> None:
    said = {"structure": {**HALF, "steps": 3}, "criterion": {"kind": "taylor", "samples": 16}}
    result, _ = pruned(tiny_model(family), task, tmp_path, said)
    model = tiny_model(family)
    rehearsed = Prune.model_validate({"kind": "prune", **said}).rehearse(model, task)
    shapes = {name: value.shape for name, value in result.state_dict().items()}
    assert {name: value.shape for name, value in rehearsed.state_dict().items()} == shapes


def test_a_rehearsal_of_a_real_size_takes_no_time_worth_mentioning(task: ImageClassification) -> None:
    """CPU time, so that a busy machine changes nothing. No gradients, whatever the criterion."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        num_channels=1, image_size=16, patch_size=4, hidden_size=192, num_attention_heads=3, intermediate_size=768
    )
    config.num_labels = 4
    model = ViTForImageClassification(config)
    stage = Prune.model_validate({"kind": "prune", "structure": HALF, "criterion": "taylor"})
    task.open()
    started = time.process_time()
    stage.rehearse(model, task)
    assert time.process_time() - started < 2


def test_what_cannot_work_is_found_in_rehearsal(
    tiny_model: Callable[[str], PreTrainedModel], task: ImageClassification
) -> None:
    stage = Prune.model_validate({"kind": "prune", "structure": HALF, "criterion": "bn_scale"})
    stage.rehearse(tiny_model("resnet"), task)
    with pytest.raises(IncompatiblePlanError, match="bn_scale needs BatchNorm layers"):
        stage.rehearse(tiny_model("vit"), task)
    stage = Prune.model_validate({"kind": "prune", "structure": {"kind": "channels", "ratio": 0.9}})
    with pytest.raises(ModelError, match=r"would leave resnet\.embedder\.embedder\.convolution with nothing"):
        stage.rehearse(tiny_model("resnet"), task)


# -- the spec


def test_recovery_is_a_step_of_its_own() -> None:
    plain = Prune.model_validate({"kind": "prune", "structure": HALF})
    said = {"epochs": 3, "losses": ["soft_targets"], "teacher": "model"}
    stage = Prune.model_validate({"kind": "prune", "structure": HALF, "recover": said})
    assert stage.identity() == plain.identity()
    assert isinstance(stage.recover, Recovery)
    following = Finetune(kind="finetune", **dict(stage.recover))
    assert following.epochs == 3
    assert following.losses == (SoftTargets(kind="soft_targets"),)


def test_what_changes_the_result_is_in_the_identity() -> None:
    def identity(**said: Any) -> Any:
        return Prune.model_validate({"kind": "prune", "structure": HALF, **said}).identity()

    assert identity() == identity(name="other")
    assert identity() != identity(criterion="lamp")
    assert identity() != identity(structure={**HALF, "round_to": 8})
    assert identity(criterion={"kind": "taylor", "samples": 1}) != identity(criterion="taylor")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "structure"),
        ({"structure": "chanels"}, "perhaps you meant 'channels'"),
        ({"structure": HALF, "criterion": "tailor"}, "perhaps you meant 'taylor'"),
        ({"structure": {**HALF, "ratoi": 0.1}}, "perhaps you meant 'ratio'"),
        ({"structure": HALF, "recover": {"epoch": 3}}, "perhaps you meant 'epochs'"),
    ],
)
def test_slips_are_named(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Prune.model_validate({"kind": "prune", **said})
