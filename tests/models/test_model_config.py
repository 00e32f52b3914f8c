"""New models from the pipeline file: flat and nested spelling, unknown keys, seeds, shapes that do not fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from edgeforge.core.errors import ModelError
from edgeforge.core.kinds import OneOf
from edgeforge.core.task import Input, Interface
from edgeforge.models import Model
from edgeforge.models.config import Config
from edgeforge.students import Student
from edgeforge.tasks.image_classification import ImageClassification

FLAT = {"kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}


def model_spec(value: Any) -> Any:
    return TypeAdapter(Annotated[Model, OneOf("edgeforge.models")]).validate_python(value)


def student_spec(value: Any) -> Any:
    return TypeAdapter(Annotated[Student, OneOf("edgeforge.students")]).validate_python(value)


@pytest.mark.parametrize("parse", [model_spec, student_spec])
def test_flat_and_nested_mean_the_same(parse: Any) -> None:
    flat = parse(FLAT)
    nested = parse(
        {
            "kind": "config",
            "architecture": {k: v for k, v in FLAT.items() if k not in ("kind", "architecture")} | {"kind": "resnet"},
        }
    )
    assert flat == nested
    assert flat.architecture.hidden_sizes == (8, 16)
    assert parse(flat.model_dump(mode="json")) == flat
    assert parse({"kind": "config", "architecture": "vit"}).architecture.kind == "vit"


@pytest.mark.parametrize("parse", [model_spec, student_spec])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": [8]}, "unknown key 'hidden_size'; perhaps you meant 'hidden_sizes'"),
        ({"archtecture": "resnet"}, "unknown key 'archtecture'; perhaps you meant 'architecture'"),
        ({"architecture": "resnet50"}, "unknown architecture 'resnet50'; perhaps you meant 'resnet'"),
        ({"architecture": {"kind": "resnet", "depth": [1]}}, "unknown key 'embedding_size'"),
        ({"hidden_sizes": [8, -16]}, "greater than or equal to 1"),
        ({"depths": [1]}, "hidden_sizes has 2 stages and depths has 1"),
        ({"layer_type": "botleneck"}, "'basic' or 'bottleneck'"),
    ],
)
def test_mistakes_are_named(parse: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse(FLAT | change)


def test_a_nested_mistake_is_named() -> None:
    with pytest.raises(ValidationError, match="unknown key 'depth'; perhaps you meant 'depths'"):
        model_spec({"kind": "config", "architecture": {"kind": "resnet", "depth": [1]}})


def test_building_follows_the_seed(tiny_interface: Interface) -> None:
    spec, task = model_spec(FLAT), ImageClassification()
    torch.manual_seed(3)
    first = spec.build(task, tiny_interface)
    torch.manual_seed(3)
    second = spec.build(task, tiny_interface)
    third = spec.build(task, tiny_interface)
    weights = [model.resnet.embedder.embedder.convolution.weight for model in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert not first.training
    assert first.dtype == torch.float32
    assert first(torch.zeros(2, 1, 16, 16)).logits.shape == (2, 4)


def test_the_digest_is_the_specs() -> None:
    assert model_spec(FLAT).digest() == model_spec(FLAT).digest()
    assert model_spec(FLAT).digest() != model_spec(FLAT | {"depths": [1, 2]}).digest()


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({"architecture": "vit", "patch_size": 3}, (1, 16, 16), "patch_size 3 does not divide"),
        ({"architecture": "convnext"}, (1, 16, 16), r"cannot take inputs of 1x16x16(.|\n)*smaller patches"),
        ({"architecture": "convnext"}, (3, 8, 8), "cannot take inputs of 3x8x8"),
    ],
)
def test_shapes_that_cannot_work_are_refused(
    fields: dict[str, Any], shape: tuple[int, ...], message: str, tiny_interface: Interface
) -> None:
    interface = replace(tiny_interface, inputs=(Input("pixel_values", shape),))
    with pytest.raises(ModelError, match=message):
        Config.model_validate({"kind": "config", **fields}).build(ImageClassification(), interface)
