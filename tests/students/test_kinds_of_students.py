"""Students: shapes, copied weights, what is refused from the teacher's config alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AlbertConfig, PreTrainedModel

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.core.task import Interface
from edgeforge.models import loading
from edgeforge.students.config import Config
from edgeforge.students.layers import Layers
from edgeforge.students.width import Width
from edgeforge.tasks.image_classification import ImageClassification

MakeModel = Callable[[str], PreTrainedModel]
TASK = ImageClassification()
IMAGES = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_configured_student_may_be_of_another_family(tiny_model: MakeModel, tiny_interface: Interface) -> None:
    spec = Config.model_validate({"kind": "config", "architecture": "mobilenet_v2", "depth_multiplier": 0.1})
    student = spec.build(tiny_model("vit"), TASK, tiny_interface)
    assert student.config.model_type == "mobilenet_v2"
    assert student(IMAGES).logits.shape == (3, 4)


def test_half_the_width_is_about_a_quarter_of_the_weights(
    family: str, tiny_model: MakeModel, tiny_interface: Interface
) -> None:
    teacher = tiny_model(family)
    student = Width(multiple=0.5).build(teacher, TASK, tiny_interface)
    ratio = student.num_parameters() / teacher.num_parameters()
    # MobileNetV2's narrowest layers are held at eight channels.
    assert (0.2 if family != "mobilenet_v2" else 0.4) < ratio < (0.4 if family != "mobilenet_v2" else 0.7)
    assert len(list(student.modules())) == len(list(teacher.modules())), "as deep as its teacher"
    assert student(IMAGES).logits.shape == (3, 4)


def test_width_is_taken_from_the_layers_of_a_pruned_teacher(tiny_model: MakeModel, tiny_interface: Interface) -> None:
    """The config of a pruned teacher may still say its old widths."""
    teacher = tiny_model("resnet")
    teacher.config.hidden_sizes = [64, 96]
    student = Width(multiple=0.5).build(teacher, TASK, tiny_interface)
    assert student.config.hidden_sizes == [8, 12]


def test_width_follows_the_seed(tiny_model: MakeModel, tiny_interface: Interface) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(7)
        weights.append(Width(multiple=0.5).build(tiny_model("vit"), TASK, tiny_interface).classifier.weight)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("family", "spec", "kept"),
    [
        ("vit", Layers(keep=(0, 2)), [[0, 2]]),
        ("vit", Layers(keep=(1,)), [[1]]),
        ("vit", Layers(every=2), [[0, 2]]),
        ("resnet", Layers(keep=(0, 2, 3)), [[0], [0, 1]]),
        ("resnet", Layers(every=2), [[0], [0]]),
        ("convnext", Layers(keep=(0, 1, 2)), [[0, 1], [0]]),
    ],
)
def test_kept_blocks_carry_the_teachers_weights(
    family: str, spec: Layers, kept: list[list[int]], tiny_model: MakeModel, tiny_interface: Interface, tmp_path: Path
) -> None:
    teacher = tiny_model(family)
    reference = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    spec.check(teacher.config)
    student = spec.build(teacher, TASK, tiny_interface)
    cls = architecture_of(teacher.config)
    assert cls is not None
    for ours, theirs, indices in zip(cls.stages(student), cls.stages(teacher), kept, strict=True):
        assert len(ours) == len(indices)
        for block, index in zip(ours, indices, strict=True):
            for name, tensor in block.state_dict().items():
                assert torch.equal(tensor, theirs[index].state_dict()[name])
    inside = sum(len(block.state_dict()) for blocks in cls.stages(student) for block in blocks)
    outside = [name for name in student.state_dict() if not is_in_a_block(name)]
    assert inside + len(outside) == len(student.state_dict())
    assert all(torch.equal(student.state_dict()[name], reference[name]) for name in outside)
    with torch.no_grad():
        student.get_parameter(outside[0]).zero_()
    assert all(torch.equal(tensor, reference[name]) for name, tensor in teacher.state_dict().items())
    loading.save(student, tmp_path)
    assert not (tmp_path / "shapes.json").exists()
    with torch.no_grad():
        assert torch.equal(loading.load(tmp_path)(IMAGES).logits, student(IMAGES).logits)


def is_in_a_block(name: str) -> bool:
    return ".layer." in name.removeprefix("vit.encoder") or ".layers." in name


def test_leaving_a_block_out_is_skipping_it(tiny_model: MakeModel, tiny_interface: Interface) -> None:
    """The student computes what the teacher would with that block replaced by the identity."""
    teacher = tiny_model("convnext")
    student = Layers(keep=(0, 2, 3)).build(teacher, TASK, tiny_interface)
    teacher.convnext.encoder.stages[0].layers[1] = torch.nn.Identity()
    with torch.no_grad():
        assert torch.equal(student(IMAGES).logits, teacher(IMAGES).logits)


def test_layers_of_a_pruned_teacher(tiny_model: MakeModel, tiny_interface: Interface, tmp_path: Path) -> None:
    teacher = tiny_model("vit")
    block: Any = teacher.vit.encoder.layer[2] if hasattr(teacher.vit, "encoder") else teacher.vit.layers[2]
    up = block.intermediate.dense if hasattr(block, "intermediate") else block.mlp.fc1
    down = block.output.dense if hasattr(block, "intermediate") else block.mlp.fc2
    up.weight, up.bias = torch.nn.Parameter(up.weight[:9].detach()), torch.nn.Parameter(up.bias[:9].detach())
    down.weight, up.out_features, down.in_features = torch.nn.Parameter(down.weight[:, :9].detach()), 9, 9
    student = Layers(keep=(0, 2)).build(teacher, TASK, tiny_interface)
    loading.save(student, tmp_path)
    with torch.no_grad():
        assert torch.equal(loading.load(tmp_path)(IMAGES).logits, student(IMAGES).logits)


@pytest.mark.parametrize(
    ("family", "spec", "message"),
    [
        ("resnet", Layers(keep=(0, 3)), r"block 2 begins stage 1 and must stay(.|\n)*add 2 to keep"),
        ("convnext", Layers(keep=(1, 2)), "block 0 begins stage 0 and must stay"),
        ("vit", Layers(keep=(0, 3)), r"no block 3: the teacher has 3(.|\n)*0 to 2"),
        ("resnet", Layers(keep=(0, 2, 40)), "no block 40: the teacher has 4"),
        ("mobilenet_v2", Layers(every=2), r"mobilenet_v2 cannot be left out(.|\n)*kind: width"),
        ("mobilenet_v2", Layers(keep=(0,)), "cannot be left out"),
    ],
)
def test_layers_are_refused_from_the_config(
    family: str, spec: Layers, message: str, tiny_model: MakeModel, tiny_interface: Interface
) -> None:
    teacher = tiny_model(family)
    with pytest.raises(ModelError, match=message):
        spec.check(teacher.config)
    with pytest.raises(ModelError, match=message):
        spec.build(teacher, TASK, tiny_interface)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either keep or every"),
        ({"keep": [0], "every": 2}, "either keep or every"),
        ({"keep": []}, "at least 1 item"),
        ({"keep": [0, 0]}, "keep must rise"),
        ({"keep": [2, 1]}, "keep must rise"),
        ({"keep": [-1]}, "greater than or equal to 0"),
        ({"every": 1}, "greater than or equal to 2"),
    ],
)
def test_layers_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Layers.model_validate(fields)


@pytest.mark.parametrize("multiple", [0, -1, 1.01, float("nan")])
def test_widths_that_make_no_sense(multiple: float) -> None:
    with pytest.raises(ValidationError):
        Width(multiple=multiple)


def test_teachers_of_other_families_are_refused() -> None:
    for spec in (Width(multiple=0.5), Layers(every=2)):
        with pytest.raises(ModelError, match=r"albert(.|\n)*kind: config"):
            spec.check(AlbertConfig())


def test_a_teacher_for_other_labels_makes_no_student_by_layers(
    tiny_model: MakeModel, tiny_interface: Interface
) -> None:
    from dataclasses import replace

    with pytest.raises(ModelError, match="gives 4 logits, the task has 2 labels"):
        Layers(every=2).build(tiny_model("vit"), TASK, replace(tiny_interface, labels=("a", "b")))
