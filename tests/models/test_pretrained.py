"""Pretrained models: folders, heads, labels, what does not fit, the hub (never reached)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from transformers import PreTrainedModel

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.task import Input, Interface
from edgeforge.models import loading
from edgeforge.models.pretrained import Pretrained
from edgeforge.tasks.image_classification import ImageClassification

MakeModel = Callable[[str], PreTrainedModel]
TASK = ImageClassification()


def head_of(model: PreTrainedModel) -> torch.nn.Linear:
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]


@pytest.fixture
def folder(family: str, tiny_model: MakeModel, tmp_path: Path) -> Path:
    loading.save(tiny_model(family), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def vit_folder(tiny_model: MakeModel, tmp_path: Path) -> Path:
    tiny_model("vit").save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_a_folder_of_save_pretrained_or_of_ours(
    folder: Path, family: str, tiny_model: MakeModel, tiny_interface: Interface, tmp_path: Path
) -> None:
    tiny_model(family).save_pretrained(tmp_path / "theirs")
    for place in (folder, tmp_path / "theirs"):
        model = Pretrained(path=str(place)).build(TASK, tiny_interface)
        assert not model.training
        for name, tensor in tiny_model(family).state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name])


def test_a_new_head_keeps_the_backbone(
    folder: Path, family: str, tiny_model: MakeModel, tiny_interface: Interface
) -> None:
    interface = replace(tiny_interface, labels=tuple("abcdefg"))
    torch.manual_seed(1)
    model = Pretrained(path=str(folder), new_head=True).build(TASK, interface)
    torch.manual_seed(1)
    again = Pretrained(path=str(folder), new_head=True).build(TASK, interface)
    old = tiny_model(family)
    for name, tensor in old.base_model.state_dict().items():
        assert torch.equal(tensor, model.base_model.state_dict()[name])
    assert head_of(model).out_features == 7
    assert torch.equal(head_of(model).weight, head_of(again).weight)
    assert model.config.num_labels == model.num_labels == 7
    assert model.config.id2label[6] == "g"
    loss = model(torch.zeros(2, 1, 16, 16), labels=torch.tensor([0, 6])).loss
    assert torch.isfinite(loss)


def test_a_new_head_is_fresh_for_as_many_labels_too(
    folder: Path, tiny_model: MakeModel, family: str, tiny_interface: Interface
) -> None:
    model = Pretrained(path=str(folder), new_head=True).build(TASK, tiny_interface)
    assert not torch.equal(head_of(model).weight, head_of(tiny_model(family)).weight)


def test_a_new_head_on_a_pruned_model(tiny_model: MakeModel, tiny_interface: Interface, tmp_path: Path) -> None:
    model = tiny_model("resnet")
    layer = model.resnet.encoder.stages[0].layers[0].layer
    layer[0].convolution.weight = torch.nn.Parameter(layer[0].convolution.weight[:3].detach().clone())
    layer[0].convolution.out_channels = 3
    layer[0].normalization = torch.nn.BatchNorm2d(3)
    layer[1].convolution.weight = torch.nn.Parameter(layer[1].convolution.weight[:, :3].detach().clone())
    layer[1].convolution.in_channels = 3
    loading.save(model.eval(), tmp_path)
    assert (tmp_path / "shapes.json").exists()
    interface = replace(tiny_interface, labels=("yes", "no"))
    built = Pretrained(path=str(tmp_path), new_head=True).build(TASK, interface)
    assert built(torch.zeros(1, 1, 16, 16)).logits.shape == (1, 2)
    loading.save(built, tmp_path / "again")
    assert loading.load(tmp_path / "again").config.id2label == {0: "yes", 1: "no"}


def test_a_backbone_without_a_head(vit_folder: Path, tiny_interface: Interface, tmp_path: Path) -> None:
    from transformers import ViTModel

    torch.manual_seed(0)
    backbone = ViTModel(loading.load(vit_folder).config)
    backbone.save_pretrained(tmp_path / "backbone")
    with pytest.raises(ModelError, match=r"is a ViTModel, the task needs a ViTForImageClassification(.|\n)*new_head"):
        Pretrained(path=str(tmp_path / "backbone")).build(TASK, tiny_interface)
    model = Pretrained(path=str(tmp_path / "backbone"), new_head=True).build(TASK, tiny_interface)
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name])
    loading.save(model, tmp_path / "saved")
    loading.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("a", "b")}, r"has 4 labels, the task has 2(.|\n)*new_head: true"),
        ({"labels": ("east", "north", "south", "west")}, r"labels in another order \(north, east, south"),
        ({"inputs": (Input("pixel_values", (3, 16, 16)),)}, "takes 1 input channels, the data has 3"),
        ({"inputs": (Input("pixel_values", (1, 32, 32)),)}, r"cannot take inputs of 1x32x32(.|\n)*image_size"),
    ],
)
def test_what_does_not_fit_the_task(
    vit_folder: Path, tiny_interface: Interface, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        Pretrained(path=str(vit_folder)).build(TASK, replace(tiny_interface, **changes))
    assert str(vit_folder) in str(caught.value)


def test_other_names_for_the_labels_are_taken_from_the_task(vit_folder: Path, tiny_interface: Interface) -> None:
    interface = replace(tiny_interface, labels=("n", "e", "s", "w"))
    assert Pretrained(path=str(vit_folder)).build(TASK, interface).config.id2label[3] == "w"


def test_weights_that_are_not_numbers(tiny_model: MakeModel, tiny_interface: Interface, tmp_path: Path) -> None:
    model = tiny_model("resnet")
    with torch.no_grad():
        model.resnet.embedder.embedder.convolution.weight[0, 0, 0, 0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"embedder\.convolution\.weight holds values that are not numbers"):
        Pretrained(path=str(tmp_path)).build(TASK, tiny_interface)


def test_a_model_of_another_family(tiny_interface: Interface, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=10, dim=8, n_layers=1, n_heads=2, hidden_dim=8, max_position_embeddings=8)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no ImageClassification class for distilbert"):
        Pretrained(path=str(tmp_path)).build(TASK, tiny_interface)


# -- digests


def test_the_digest_is_of_the_content_not_the_place(vit_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(vit_folder, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("no part of the model")
    digest = Pretrained(path=str(vit_folder)).digest()
    assert Pretrained(path=str(tmp_path / "copy")).digest() == digest
    assert Pretrained(path=str(vit_folder), new_head=True).digest() != digest
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert Pretrained(path=str(tmp_path / "copy")).digest() != digest


def test_the_digest_refuses_damage_before_any_work(vit_folder: Path) -> None:
    weights = vit_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ModelError, match="not a whole safetensors file"):
        Pretrained(path=str(vit_folder)).digest()
    weights.rename(vit_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="is a pickle"):
        Pretrained(path=str(vit_folder)).digest()


# -- places


@pytest.mark.parametrize(
    "path", ["no/such/folder", "./missing", "/missing", "missing", "~/missing/x", "a/../b", "a b/c"]
)
def test_paths_that_are_neither_folder_nor_hub_id(path: str) -> None:
    with pytest.raises(ModelError, match="no such folder, and it is no hub id"):
        Pretrained(path=path).digest()


def test_a_revision_of_a_local_folder_is_a_mistake(vit_folder: Path) -> None:
    with pytest.raises(ModelError, match="a local folder has no revisions"):
        Pretrained(path=str(vit_folder), revision="main").digest()


def test_the_hub_is_asked_for_safetensors_json_and_text_only(
    vit_folder: Path, tiny_interface: Interface, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, tuple(allow_patterns)))
        return str(vit_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    spec = Pretrained(path="someone/some-vit", revision="v2")
    assert spec.digest() == Pretrained(path=str(vit_folder)).digest()
    assert isinstance(spec.build(TASK, tiny_interface), PreTrainedModel)
    assert {(repo, revision) for repo, revision, _ in asked} == {("someone/some-vit", "v2")}
    patterns = asked[0][2]
    assert all(pattern.endswith((".json", ".safetensors", ".txt", ".jinja", "README.md")) for pattern in patterns)


def http_error(cls: Any) -> Exception:
    """The client's errors want a response, and which kind depends on its version."""
    error = cls.__new__(cls)
    Exception.__init__(error, "message of the client")
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (hub_errors.RepositoryNotFoundError, ModelError, "no such model or revision"),
        (hub_errors.RevisionNotFoundError, ModelError, "no such model or revision"),
        (hub_errors.GatedRepoError, ModelError, "access to it must be asked for"),
        (hub_errors.LocalEntryNotFoundError, EnvironmentProblem, "cannot be fetched"),
        (hub_errors.OfflineModeIsEnabled, EnvironmentProblem, "HF_HUB_OFFLINE"),
        (TimeoutError, EnvironmentProblem, "cannot be fetched"),
    ],
)
def test_a_hub_that_refuses(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], expected: type[Exception], message: str
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise http_error(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(expected, match=message) as caught:
        Pretrained(path="someone/some-vit").digest()
    assert "someone/some-vit" in str(caught.value)


def test_offline_without_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real client, told to stay offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="cannot be fetched from the Hugging Face hub"):
        Pretrained(path="someone/some-vit").digest()
