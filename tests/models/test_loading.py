"""Saving and loading: exact, without pickles, without trust in what a folder says."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.task import Interface
from edgeforge.models import loading

MakeModel = Callable[[str], PreTrainedModel]


@pytest.fixture
def images(tiny_interface: Interface) -> torch.Tensor:
    return torch.randn(5, *tiny_interface.image_shape, generator=torch.Generator().manual_seed(1))


class Logits(nn.Module):
    """torch-pruning wants tensors out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images).logits


def attentions(model: PreTrainedModel) -> list[Any]:
    """Attention modules of a ViT, under transformers 4 (query) or 5 (q_proj)."""
    return [module for module in model.modules() if hasattr(module, "query") or hasattr(module, "q_proj")]


def query_of(attention: Any) -> nn.Linear:
    return attention.query if hasattr(attention, "query") else attention.q_proj


def prune(model: PreTrainedModel, images: torch.Tensor, **options: Any) -> None:
    """Prune with torch-pruning, heads and scaling set right afterwards, as edgeforge's `channels` must do."""
    heads = {}
    for attention in attentions(model):
        names = ("query", "key", "value") if hasattr(attention, "query") else ("q_proj", "k_proj", "v_proj")
        heads |= {getattr(attention, name): attention.num_attention_heads for name in names}
    classifier = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer.out_features == 4]
    more: dict[str, Any] = {"num_heads": heads, "prune_head_dims": True} if heads else {}
    pruner = torch_pruning.pruner.BasePruner(
        Logits(model),
        images,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        ignored_layers=classifier,
        **more,
        **options,
    )
    pruner.step()
    for attention in attentions(model):
        query = query_of(attention)
        head_size = query.out_features // attention.num_attention_heads
        for name, value in {
            "attention_head_size": head_size,
            "head_dim": head_size,
            "all_head_size": query.out_features,
        }.items():
            if hasattr(attention, name):
                setattr(attention, name, value)
        attention.scaling = head_size**-0.5
    model.eval()


def assert_same(model: PreTrainedModel, other: PreTrainedModel, images: torch.Tensor) -> None:
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    with torch.no_grad():
        assert (model(images).logits - other(images).logits).abs().max() == 0.0


def test_a_round_trip_is_exact(family: str, tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model(family)
    loading.save(model, tmp_path / "saved")
    again = loading.load(tmp_path / "saved")
    assert type(again) is type(model)
    assert not again.training
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert_same(model, again, images)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]


def test_uniform_pruning_is_written_into_the_config(
    family: str, tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path
) -> None:
    """ResNet, ViT and ConvNeXt configs can say uniform widths: then plain from_pretrained reads the folder."""
    model = tiny_model(family)
    before = sum(parameter.numel() for parameter in model.parameters())
    prune(model, images, pruning_ratio=0.5)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.6 * before
    loading.save(model, tmp_path)
    assert_same(model, loading.load(tmp_path), images)
    assert (tmp_path / "shapes.json").exists() == (family == "mobilenet_v2")
    if family != "mobilenet_v2":
        assert_same(model, type(model).from_pretrained(tmp_path).eval(), images)


def test_global_pruning_is_written_beside_the_config(
    family: str, tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path
) -> None:
    """Widths that differ from layer to layer, which no config can say."""
    model = tiny_model(family)
    prune(model, images, pruning_ratio=0.4, global_pruning=True, max_pruning_ratio=0.8)
    loading.save(model, tmp_path)
    assert (tmp_path / "shapes.json").exists()
    assert_same(model, loading.load(tmp_path), images)
    loading.save(loading.load(tmp_path), tmp_path / "again")
    for name in ("config.json", "shapes.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_widths_of_one_layer_reload_with_every_attribute(
    tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path
) -> None:
    """A hand-pruned MobileNetV2 block: depthwise groups, batch norm and neighbours, one layer only."""
    model = tiny_model("mobilenet_v2")
    block = model.mobilenet_v2.layer[3]
    kept = 5
    for layer in (block.expand_1x1, block.conv_3x3):
        layer.convolution.weight = nn.Parameter(layer.convolution.weight[:kept].detach().clone())
        norm = nn.BatchNorm2d(kept, eps=layer.normalization.eps, momentum=layer.normalization.momentum)
        norm.load_state_dict({name: t[:kept] if t.dim() else t for name, t in layer.normalization.state_dict().items()})
        layer.normalization = norm
    block.expand_1x1.convolution.out_channels = kept
    block.conv_3x3.convolution.in_channels = kept
    block.conv_3x3.convolution.out_channels = kept
    block.conv_3x3.convolution.groups = kept
    reduce = block.reduce_1x1.convolution
    reduce.weight, reduce.in_channels = nn.Parameter(reduce.weight[:, :kept].detach().clone()), kept
    model.eval()
    loading.save(model, tmp_path)
    again = loading.load(tmp_path)
    assert_same(model, again, images)
    depthwise = again.mobilenet_v2.layer[3].conv_3x3.convolution
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (kept, kept, kept)
    assert again.mobilenet_v2.layer[3].conv_3x3.normalization.num_features == kept


def test_attention_scaling_does_not_drift(tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path) -> None:
    """Narrower heads with the scaling of the wider ones: a reload must not recompute it."""
    model = tiny_model("vit")
    wide = attentions(model)[0].scaling
    prune(model, images, pruning_ratio=0.5)
    narrow = attentions(model)[0].scaling
    assert narrow == pytest.approx(4**-0.5)
    for attention in attentions(model):
        attention.scaling = wide
    loading.save(model, tmp_path)
    again = loading.load(tmp_path)
    assert [attention.scaling for attention in attentions(again)] == [wide] * 3
    assert_same(model, again, images)
    for attention in attentions(again):
        attention.scaling = narrow
    with torch.no_grad():
        assert not torch.equal(model(images).logits, again(images).logits), "else this test shows nothing"


def test_head_dims_of_one_block_reload(tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path) -> None:
    """A ViT whose second block has heads of 5 instead of 8: not in any config, head counts and scaling recorded."""
    model = tiny_model("vit")
    attention = attentions(model)[1]
    old_names = hasattr(attention, "query")
    for name in ("query", "key", "value") if old_names else ("q_proj", "k_proj", "v_proj"):
        layer = getattr(attention, name)
        rows = layer.weight.view(4, 8, 32)[:, :5].reshape(20, 32).detach().clone()
        bias = layer.bias.view(4, 8)[:, :5].reshape(20).detach().clone()
        layer.weight, layer.bias, layer.out_features = nn.Parameter(rows), nn.Parameter(bias), 20
    output = model.vit.encoder.layer[1].attention.output.dense if old_names else attention.o_proj
    columns = output.weight.view(32, 4, 8)[:, :, :5].reshape(32, 20).detach().clone()
    output.weight, output.in_features = nn.Parameter(columns), 20
    for name, value in {"attention_head_size": 5, "head_dim": 5, "all_head_size": 20, "scaling": 5**-0.5}.items():
        if hasattr(attention, name):
            setattr(attention, name, value)
    loading.save(model, tmp_path)
    assert (tmp_path / "shapes.json").exists()
    assert_same(model, loading.load(tmp_path), images)


def test_a_changed_number_that_nothing_records_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Never a file that loads as another function."""
    model = tiny_model("resnet")
    model.resnet.encoder.stages[0].layers[0].layer[0].convolution.stride = (2, 2)
    with pytest.raises(ModelError, match=r"convolution\.stride is \(2, 2\), its config says \(1, 1\)"):
        loading.save(model, tmp_path)
    model = tiny_model("resnet")
    model.resnet.encoder.stages[0].layers[1] = nn.Identity()
    with pytest.raises(ModelError, match="cannot be written"):
        loading.save(model, tmp_path)


def test_shared_weights_are_written(tmp_path: Path, tiny_model: MakeModel, images: torch.Tensor) -> None:
    model = tiny_model("convnext")
    model.convnext.encoder.stages[0].layers[1].pwconv1.weight = (
        model.convnext.encoder.stages[0].layers[0].pwconv1.weight
    )
    loading.save(model, tmp_path / "plain")
    assert_same(model, loading.load(tmp_path / "plain"), images)
    prune(model.float(), images, pruning_ratio=0.4, global_pruning=True)
    loading.save(model, tmp_path / "pruned")
    assert_same(model, loading.load(tmp_path / "pruned"), images)


def test_saving_and_loading_leave_the_model_and_the_seed_alone(
    family: str, tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path
) -> None:
    model = tiny_model(family)
    prune(model, images, pruning_ratio=0.5)
    config, numbers = model.config, model.config.to_dict()
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    loading.save(model, tmp_path)
    loading.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), expected)
    assert model.config is config
    assert {**numbers, "architectures": None} == {**config.to_dict(), "architectures": None}


def test_the_same_model_gives_the_same_bytes(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        loading.save(tiny_model(family), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_saving_over_a_pruned_model_leaves_no_stale_shapes(
    tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path
) -> None:
    pruned, whole = tiny_model("resnet"), tiny_model("resnet")
    prune(pruned, images, pruning_ratio=0.4, global_pruning=True)
    loading.save(pruned, tmp_path)
    loading.save(whole, tmp_path)
    assert_same(whole, loading.load(tmp_path), images)


def test_loaded_weights_outlive_their_file(tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("resnet")
    loading.save(model, tmp_path)
    again = loading.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert_same(model, again, images)


def test_half_precision_and_shards_load_as_float32(tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("vit")
    model.half().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = loading.load(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert_same(model.float(), again, images)


def test_a_folder_that_cannot_be_written(tiny_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        loading.save(tiny_model("resnet"), tmp_path / "file" / "folder")


def test_mobilenet_statistics_outlast_one_batch(
    tiny_model: MakeModel, tiny_interface: Interface, tmp_path: Path
) -> None:
    """The library's class would forget all but the last batch; built and loaded models both remember."""
    from edgeforge.models.config import Config
    from edgeforge.tasks.image_classification import ImageClassification

    loading.save(tiny_model("mobilenet_v2"), tmp_path)
    spec = Config.model_validate({"kind": "config", "architecture": "mobilenet_v2", "depth_multiplier": 0.1})
    for model in (loading.load(tmp_path), spec.build(ImageClassification(), tiny_interface)):
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        norm.reset_running_stats()
        norm.train()(torch.full((2, norm.num_features, 2, 2), 10.0))
        assert torch.allclose(norm.running_mean, torch.tensor(1.0))


# -- damaged and hostile folders


@pytest.fixture
def folder(tiny_model: MakeModel, tmp_path: Path) -> Path:
    loading.save(tiny_model("resnet"), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pruned_folder(tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path) -> Path:
    model = tiny_model("vit")
    prune(model, images, pruning_ratio=0.4, global_pruning=True)
    loading.save(model, tmp_path / "pruned")
    return tmp_path / "pruned"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        loading.load(folder)
    assert caught.value.where is not None
    assert str(folder) in caught.value.where
    assert caught.value.remedy


def test_missing_things(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
    refused(folder / "config.json", "this is a file")
    (folder / "config.json").rename(folder / "config.txt")
    refused(folder, r"config\.json is missing")
    (folder / "config.txt").rename(folder / "config.json")
    (folder / "model.safetensors").unlink()
    refused(folder, r"model\.safetensors is missing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.PTH", "last.ckpt"])
def test_pickles_are_refused(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / name)
    refused(folder, f"{name} is a pickle(.|\n)*save_pretrained")
    refused(folder / name, "this is a file(.|\n)*safetensors")


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_no_pickle_is_opened_beside_safetensors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save(Bomb(), folder / "pytorch_model.bin")
    loading.load(folder)
    assert not (folder / "exploded").exists()


def test_remote_code_is_ignored_or_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / "evil.py").write_text(
        "import pathlib; pathlib.Path('exploded').touch()\nclass Model: pass\nclass Config: pass\n"
    )
    edit_json(
        folder / "config.json",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"},
        _attn_implementation="someone/kernel",
        attn_implementation="someone/kernel",
    )
    model = loading.load(folder)
    assert type(model).__module__.startswith("transformers.")
    assert "someone" not in str(model.config)
    edit_json(folder / "config.json", model_type="evil")
    refused(folder, "model_type 'evil' is not one of transformers")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["resnet"]}, "model_type"),
        ({"architectures": None}, "architectures names None"),
        ({"architectures": ["torch"]}, "architectures names 'torch'"),
        ({"architectures": ["ViTForImageClassification"]}, "no resnet class"),
        ({"architectures": ["AutoModel"]}, "architectures names 'AutoModel'"),
        ({"architectures": [["x"]]}, "architectures"),
        ({"architectures": {"x": 1}}, "architectures"),
        ({"quantization_config": {"quant_method": "gptq"}}, "'quantization_config' is set"),
        ({"hidden_sizes": "wide"}, "(can be built|not a resnet config)"),
        ({"hidden_act": "os.system"}, "(can be built|not a resnet config)"),
        ({"hidden_sizes": [10**9, 10**9]}, "(far larger|can be built)"),
        ({"depths": [10**9, 2]}, "far larger model than the weights hold"),
        ({"embedding_size": 10**7}, "far larger"),
        ({"embedding_size": 12}, "of another shape than the config says"),
        ({"depths": [2, 1]}, "in the weights, but not in the model"),
        ({"depths": [2, 3]}, "missing from the weights"),
    ],
)
def test_configs_that_do_not_fit(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "config.json", **changes)
    refused(folder, message)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": NaN', "\x00", "[" * 100_000])
def test_configs_that_are_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, r"cannot be read as JSON|not a JSON object")


def test_configs_nested_without_end(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 300 + "1" + "}" * 300)
    refused(folder, "nested too deeply")


def test_adapters_are_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    refused(folder, "adapter")


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "not a whole safetensors file")


def test_a_header_that_lies(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refused(folder, "not a whole safetensors file")
    path.write_bytes(b"\x80\x04pickle me, please, I am long enough for a header")
    refused(folder, "not a whole safetensors file")


@pytest.mark.parametrize("change", ["lost", "extra", "shape"])
def test_other_tensors(folder: Path, pruned_folder: Path, change: str) -> None:
    for place in (folder, pruned_folder):
        weights = load_file(place / "model.safetensors")
        name = next(name for name in weights if name.startswith("classifier") and name.endswith("weight"))
        if change == "lost":
            del weights[name]
        elif change == "extra":
            weights["classifier.other"] = torch.zeros(1)
        else:
            weights[name] = weights[name][:-1].clone()
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
        message = {"lost": "missing from the weights", "extra": "not in the model", "shape": "of another shape"}
        refused(place, message[change])


def test_shards_must_lie_in_the_folder(tiny_model: MakeModel, tmp_path: Path) -> None:
    tiny_model("vit").save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    first = next(iter(json.loads(index.read_text())["weight_map"].values()))
    (tmp_path / first).unlink()
    refused(tmp_path, f"{first} is missing")
    for name in ("../other.safetensors", "/etc/passwd", "model.bin", 3):
        edit_json(index, weight_map={"classifier.weight": name})
        refused(tmp_path, "weight_map")
    edit_json(index, weight_map=[])
    refused(tmp_path, "weight_map")


@pytest.mark.parametrize(
    ("path", "layer", "message"),
    [
        ("", {"attributes": {"forward": 1}}, "may not be set"),
        ("", {"attributes": {"num_labels": 7}}, "may not be set"),
        ("", {"attributes": {"__class__": 1}}, "may not be set"),
        ("classifier", {"attributes": {"in_features": 3}}, "may not be set"),
        ("classifier", {"attributes": {"scaling": 0.5}}, "may not be set"),
        ("classifier", {"attributes": {"weight": "x"}}, "should be a valid"),
        ("ATTENTION", {"attributes": {"scaling": -1.0}}, "positive number"),
        ("ATTENTION", {"attributes": {"num_attention_heads": 0}}, "positive number"),
        ("ATTENTION", {"attributes": {"num_attention_heads": True}}, "should be a valid"),
        ("ATTENTION", {"attributes": {"num_attention_heads": 2.5}}, "may not be set"),
        ("ATTENTION", {"attributes": {"scaling": 10**400}}, "positive number"),
        ("vit.nowhere", {}, "no module 'vit.nowhere'"),
        ("classifier", {"tensors": {"weight": [4]}}, "no tensor 'weight' of 1 axes"),
        ("classifier", {"tensors": {"gamma": [4]}}, "no tensor 'gamma'"),
        ("classifier", {"tensors": {"weight": [4, -1]}}, "greater than or equal to 1"),
        ("classifier", {"tensors": {"weight": [4, 10**12]}}, "less than"),
        ("classifier", {"tensors": {"weight": [4, 2**30]}}, "of another shape"),
        ("classifier", {"code": "import os"}, "unknown key 'code'"),
    ],
)
def test_hostile_sidecars(pruned_folder: Path, path: str, layer: dict[str, Any], message: str) -> None:
    sidecar = json.loads((pruned_folder / "shapes.json").read_text())
    if path == "ATTENTION":
        path = next(name for name, item in sidecar["modules"].items() if item["attributes"])
    sidecar["modules"][path] = layer
    (pruned_folder / "shapes.json").write_text(json.dumps(sidecar))
    refused(pruned_folder, message)


def test_heads_that_only_the_config_says_are_gone(tiny_model: MakeModel, tmp_path: Path) -> None:
    loading.save(tiny_model("vit"), tmp_path)
    edit_json(tmp_path / "config.json", pruned_heads={})
    loading.load(tmp_path)
    edit_json(tmp_path / "config.json", pruned_heads={"0": [1]})
    refused(tmp_path, r"transformers 4 pruned heads(.|\n)*structure: attention_heads")


def test_groups_must_divide(tiny_model: MakeModel, images: torch.Tensor, tmp_path: Path) -> None:
    model = tiny_model("mobilenet_v2")
    prune(model, images, pruning_ratio=0.3)
    loading.save(model, tmp_path)
    sidecar = json.loads((tmp_path / "shapes.json").read_text())
    path = next(name for name, item in sidecar["modules"].items() if item["attributes"])
    sidecar["modules"][path]["attributes"]["groups"] += 1
    (tmp_path / "shapes.json").write_text(json.dumps(sidecar))
    refused(tmp_path, "groups do not divide|of another shape")


def test_sidecars_that_are_no_sidecar(pruned_folder: Path) -> None:
    (pruned_folder / "shapes.json").write_text("{")
    refused(pruned_folder, "cannot be read as JSON")
    (pruned_folder / "shapes.json").write_text('{"format": 2, "modules": {}}')
    refused(pruned_folder, "less than or equal to 1")


def test_nothing_but_tensors_is_written(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


ODD_VALUES: list[Any] = [None, True, -1, 0, 1.5, 2**40, "x", "", [], {}, [[1]], {"a": 1}, float("inf"), "../x"]


@pytest.mark.parametrize("name", ["config.json", "shapes.json", "model.safetensors"])
def test_no_damage_ends_in_anything_but_a_model_error(pruned_folder: Path, name: str) -> None:
    """Random bytes and odd values: what loads is a model, what does not is refused with a remedy."""
    whole = (pruned_folder / name).read_bytes()
    rng = random.Random(name)
    refusals = 0
    for _ in range(60):
        damaged = whole
        if name.endswith(".json") and rng.random() < 0.7:
            damaged = json.dumps(replace_something(json.loads(whole), rng)).encode()
        else:
            place = rng.randrange(min(len(whole), 3000))
            damaged = whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :]
        (pruned_folder / name).write_bytes(damaged)
        try:
            loading.load(pruned_folder)
        except ModelError as error:
            assert error.remedy
            refusals += 1
    assert refusals > 10


def replace_something(data: Any, rng: random.Random) -> Any:
    node = data
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not (isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7):
            break
        node = node[key]
    node[key] = rng.choice(ODD_VALUES)
    return data
