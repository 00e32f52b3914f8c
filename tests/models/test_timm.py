"""timm models: their own weights, round trips, published folders. Where timm runs; torchvision may be a stub."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from edgeforge.core.errors import MissingExtraError, ModelError
from edgeforge.core.task import Input, Interface
from edgeforge.models import loading
from edgeforge.models.timm import Timm
from edgeforge.tasks.image_classification import ImageClassification

TASK = ImageClassification()
HAS_TIMM = importlib.util.find_spec("timm") is not None

PARTS = (
    "datasets datasets.folder datasets.utils io models models.feature_extraction ops ops.misc transforms "
    "transforms.functional transforms.v2 transforms.v2.functional"
)


class Anything:
    def __init__(self, *_: Any, **__: Any) -> None: ...


class InterpolationMode:
    NEAREST, NEAREST_EXACT, BILINEAR, BICUBIC = "nearest", "nearest-exact", "bilinear", "bicubic"
    BOX, HAMMING, LANCZOS = "box", "hamming", "lanczos"


class Stub(ModuleType):
    """timm imports much of torchvision and, for building models, uses none of it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return InterpolationMode if name == "InterpolationMode" else Anything


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    if not HAS_TIMM:
        pytest.skip("timm is not installed")
    stubbed = []
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        stubbed = ["torchvision", *(f"torchvision.{part}" for part in PARTS.split())]
        for name in stubbed:  # parents first
            sys.modules[name] = Stub(name)
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], leaf, sys.modules[name])
    import timm as library

    yield library
    for name in stubbed:
        sys.modules.pop(name, None)


NAMES = ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_timms_own_and_reload_exactly(
    name: str, timm: Any, tiny_interface: Interface, tmp_path: Path
) -> None:
    interface = replace(
        tiny_interface, inputs=(Input("pixel_values", (1, 64, 64) if "swin" not in name else (1, 56, 56)),)
    )
    images = torch.randn(2, *interface.image_shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(4)
    model = Timm(name=name).build(TASK, interface)
    torch.manual_seed(4)
    size = {"img_size": interface.image_shape[1]} if "vit" in name or "swin" in name else {}
    reference = timm.create_model(name, num_classes=4, in_chans=1, **size).eval()
    with torch.no_grad():
        logits = model(images).logits
        assert torch.equal(logits, reference(images))
        loading.save(model, tmp_path)
        again = loading.load(tmp_path)
        assert torch.equal(again(images).logits, logits)
    assert again.config.id2label == {0: "north", 1: "east", 2: "south", 3: "west"}


@pytest.mark.slow
def test_published_weights(
    timm: Any, tiny_interface: Interface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder as timm pushes it to the hub: its own config.json, tensor names without the wrapper's."""
    from safetensors.torch import save_file

    reference = timm.create_model("resnet18", num_classes=7).eval()
    save_file(reference.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    published = {"architecture": "resnet18", "num_classes": 7, "label_names": list("abcdefg"), "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(published))
    asked = []
    monkeypatch.setattr("edgeforge.models._hub.fetch", lambda *arguments: asked.append(arguments) or tmp_path)
    interface = replace(tiny_interface, inputs=(Input("pixel_values", (3, 64, 64)),), labels=tuple("abcdefg"))
    images = torch.randn(2, 3, 64, 64)
    model = Timm(name="resnet18.a1_in1k", pretrained=True).build(TASK, interface)
    assert asked[0] == ("timm/resnet18.a1_in1k", None)
    with torch.no_grad():
        assert torch.equal(model(images).logits, reference(images))
    with pytest.raises(ModelError, match="has 7 labels, the task has 2"):
        Timm(name="resnet18", pretrained=True).build(TASK, replace(interface, labels=("a", "b")))
    adapted = Timm(name="resnet18", pretrained=True, new_head=True).build(TASK, replace(interface, labels=("a", "b")))
    assert adapted(images).logits.shape == (2, 2)
    loading.save(adapted, tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loading.load(tmp_path / "saved")(images).logits, adapted(images).logits)
    assert Timm(name="resnet18", pretrained=True).digest() != Timm(name="resnet18").digest()


@pytest.mark.slow
def test_names_and_shapes_that_do_not_fit(timm: Any, tiny_interface: Interface) -> None:
    with pytest.raises(ModelError, match="timm has no model 'resnet81'; perhaps you meant 'resnet18'"):
        Timm(name="resnet81").build(TASK, tiny_interface)
    with pytest.raises(ModelError, match="takes square images"):
        Timm(name="vit_tiny_patch16_224").build(
            TASK, replace(tiny_interface, inputs=(Input("pixel_values", (1, 16, 32)),))
        )


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_without_timm(tiny_interface: Interface) -> None:
    with pytest.raises(MissingExtraError, match=r"edgeforge\[timm\]"):
        Timm(name="resnet18").build(TASK, tiny_interface)


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("hf-hub:someone/evil", None),
        ("local-dir:/tmp/evil", None),
        ("resnet18", {"checkpoint_path": "evil.pth"}),
        ("resnet18", {"pretrained_cfg_overlay": {"file": "evil.pth"}}),
        ("resnet18", {"img_size": 10**9}),
        ("resnet18", {"in_chans": "3"}),
        ("resnet18", ["checkpoint_path"]),
        (None, None),
    ],
)
def test_folders_that_make_timm_load_other_files_are_refused(
    architecture: Any, model_args: Any, tmp_path: Path
) -> None:
    config = {"model_type": "timm_wrapper", "architecture": architecture, "model_args": model_args}
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["TimmWrapperForImageClassification"]}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="could load other files"):
        loading.load(tmp_path)


@pytest.mark.parametrize("name", ["", "hf-hub:a/b", "../x", "ResNet18", "a.b.c"])
def test_names_are_plain(name: str) -> None:
    with pytest.raises(ValidationError):
        Timm(name=name)


def test_a_new_head_needs_an_old_one() -> None:
    with pytest.raises(ValidationError, match="new_head is for pretrained models"):
        Timm(name="resnet18", new_head=True)
