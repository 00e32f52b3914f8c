"""Channel pruning on every family: what is removed, that nothing else changes, and that it survives the disk."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel, ResNetForImageClassification, ViTForImageClassification

from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.criteria.bn_scale import BnScale
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.criteria.random import Random
from edgeforge.models import loading
from edgeforge.structures.channels import Channels

Jobs = Callable[..., Job]
SCOPES: list[dict[str, Any]] = [
    {"ratio": 0.5},
    {"ratio": 0.3, "round_to": 4},
    {"ratio": 0.4, "scope": "global"},
    {"ratio": 0.4, "scope": "isomorphic", "steps": 3},
]


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def answer(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(images()).logits
    return logits


def widths(model: PreTrainedModel) -> dict[str, int]:
    kinds = (nn.Conv2d, nn.Linear)
    return {name: layer.weight.shape[0] for name, layer in model.named_modules() if isinstance(layer, kinds)}


def warnings(job: Job) -> list[str]:
    found: list[str] = job.progress.warnings  # type: ignore[attr-defined]
    return found


# -- every family


@pytest.mark.parametrize("said", SCOPES, ids=lambda said: said.get("scope", "local"))
def test_a_pruned_model_is_smaller_runs_and_reloads_exactly(
    model: PreTrainedModel, said: dict[str, Any], job: Jobs, tmp_path: Path
) -> None:
    before, params = widths(model), sum(p.numel() for p in model.parameters())
    removed = Channels(**said).prune(model, Magnitude(), job())
    assert removed["params"] == [params, sum(p.numel() for p in model.parameters())]
    assert removed["params"][1] < params
    assert removed["macs"][1] < removed["macs"][0]
    after = widths(model)
    assert removed["layers"] == {name: [before[name], after[name]] for name in before if before[name] != after[name]}
    logits = answer(model)
    assert logits.shape == (3, 4)
    loading.save(model, tmp_path)
    assert (answer(loading.load(tmp_path)) - logits).abs().max().item() == 0.0


def test_every_layer_loses_its_share(model: PreTrainedModel, job: Jobs) -> None:
    """Half of everything, but for the classifier; head sizes halve too, so the heads stay."""
    before = widths(model)
    Channels(ratio=0.5).prune(model, Magnitude(), job())
    final = [name for name in before if name.startswith("classifier")]
    assert widths(model) == {name: width if name in final else width // 2 for name, width in before.items()}


def test_a_model_in_training_stays_in_training(model: PreTrainedModel, job: Jobs) -> None:
    model.train()
    Channels(ratio=0.5).prune(model, Random(), job())
    assert all(module.training for module in model.modules())


def test_the_same_seed_prunes_the_same_channels(model: PreTrainedModel, job: Jobs) -> None:
    def pruned(seed: int) -> dict[str, torch.Tensor]:
        clone = copy.deepcopy(model)
        Channels(ratio=0.5, steps=2).prune(clone, Random(), job(seed))
        return clone.state_dict()

    first, again, other = pruned(0), pruned(0), pruned(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_a_pruned_model_exports(model: PreTrainedModel, job: Jobs, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    Channels(ratio=0.4, scope="global").prune(model, Magnitude(), job())
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (),
        path,
        kwargs={"pixel_values": images(2)},
        dynamo=True,
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}},
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images(3).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), answer(model), rtol=1e-4, atol=1e-5)


# -- only what was chosen is removed


def removed_rows(old: torch.Tensor, new: torch.Tensor) -> list[int]:
    """Positions in `old` (distinct numbers) that `new` lacks."""
    assert len(set(old.tolist())) == len(old)
    return [position for position, value in enumerate(old.tolist()) if value not in set(new.tolist())]


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_it_answers_as_the_old_model_with_those_channels_silenced(
    name: str, tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    """An independent account: a batch normalization with weight and bias 0 puts out what a removed channel did."""
    model, silenced = tiny_model(name), tiny_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    silenced.load_state_dict(model.state_dict())
    Channels(ratio=0.4, scope="global").prune(model, Magnitude(), job())
    count = 0
    for path, module in silenced.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            rows = removed_rows(module.weight, model.get_submodule(path).weight)  # type: ignore[arg-type]
            module.weight.data[rows] = 0
            module.bias.data[rows] = 0
            count += len(rows)
    assert count > 0
    torch.testing.assert_close(answer(model), answer(silenced), rtol=1e-4, atol=1e-5)


def test_attention_drops_the_same_place_in_every_head_and_rescales(
    tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    model, silenced = tiny_model("vit"), tiny_model("vit")
    Channels(ratio=0.5, ignore=("vit.embeddings",)).prune(model, Magnitude(), job())
    queries = ("query", "q_proj")
    for path, module in silenced.named_modules():
        leaf = path.rpartition(".")[2]
        projection = leaf in (*queries, "key", "k_proj", "value", "v_proj")
        if not (projection or path.endswith((".intermediate.dense", ".mlp.fc1"))):
            continue
        assert isinstance(module, nn.Linear)
        rows = removed_rows(module.weight[:, 0], model.get_submodule(path).weight[:, 0])  # type: ignore[index]
        if projection:
            assert sorted({row % 8 for row in rows}) == sorted(row % 8 for row in rows if row < 8)
            assert len(rows) == 16
        scale = 2**0.5 if leaf in queries else 1.0  # 4 ** -0.5 instead of 8 ** -0.5
        module.weight.data *= scale
        module.bias.data *= scale
        module.weight.data[rows] = 0
        module.bias.data[rows] = 0
    torch.testing.assert_close(answer(model), answer(silenced), rtol=1e-4, atol=1e-5)


def test_attention_numbers_are_those_of_a_model_built_anew(
    tiny_model: Callable[[str], PreTrainedModel], job: Jobs, tmp_path: Path
) -> None:
    """Stale scaling would train at one temperature and be reloaded at another."""
    model = tiny_model("vit")
    Channels(ratio=0.5).prune(model, Magnitude(), job())
    loading.save(model, tmp_path)
    assert not (tmp_path / "shapes.json").exists()
    built = ViTForImageClassification(ViTForImageClassification.config_class.from_pretrained(tmp_path))
    names = ("num_attention_heads", "attention_head_size", "head_dim", "all_head_size", "scaling")
    checked = 0
    for path, module in model.named_modules():
        for name in names:
            if hasattr(module, name):
                assert getattr(module, name) == getattr(built.get_submodule(path), name), (path, name)
                checked += 1
    assert checked >= 3 * 3


def test_the_smallest_channels_go(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    """One inner layer of a ResNet: 16 filters, its normalization, and the next layer's inputs; the lower half goes."""
    model = tiny_model("resnet")
    path = "resnet.encoder.stages.0.layers.0.layer"
    first, norm, second = (
        model.get_submodule(f"{path}.{name}") for name in ("0.convolution", "0.normalization", "1.convolution")
    )
    score = [
        sum(float((values**2).sum()) for values in (first.weight[c], norm.weight[c], second.weight[:, c]))  # type: ignore[index]
        for c in range(16)
    ]
    kept = sorted(sorted(range(16), key=lambda c: score[c])[8:])
    wanted = first.weight[kept][:, 0, 0, 0]  # type: ignore[index]
    Channels(ratio=0.5, ignore=("resnet.embedder",)).prune(model, Magnitude(), job())
    assert torch.equal(model.get_submodule(f"{path}.0.convolution").weight[:, 0, 0, 0], wanted)  # type: ignore[index]


# -- scopes and steps


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_widths_are_multiples_or_as_they_were(
    scope: Any, steps: int, tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    model = tiny_model("resnet")
    before = widths(model)
    Channels(ratio=0.2, scope=scope, round_to=10, steps=steps).prune(model, Magnitude(), job())
    after = widths(model)
    assert all(after[name] % 10 == 0 or after[name] == before[name] for name in before)
    assert any(after[name] == 20 for name in before)


def test_every_step_judges_what_the_last_one_left(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    seen = []

    class Watching(Magnitude):
        def importance(self, model: nn.Module, job: Job) -> Any:
            seen.append(model.get_submodule("resnet.embedder.embedder.convolution").weight.shape[0])  # type: ignore[union-attr,index]
            return super().importance(model, job)

    Channels(ratio=0.5, steps=4).prune(tiny_model("resnet"), Watching(), job())
    assert seen == [8, 7, 6, 5]


def test_steps_end_at_the_same_widths(model: PreTrainedModel, job: Jobs) -> None:
    clone = copy.deepcopy(model)
    Channels(ratio=0.45).prune(model, Magnitude(), job())
    Channels(ratio=0.45, steps=4).prune(clone, Magnitude(), job())
    assert widths(clone) == widths(model)


def test_global_removes_the_share_of_all_channels_and_spares_each_layer(
    tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    model = tiny_model("resnet")
    before = widths(model)
    Channels(ratio=0.6, scope="global", max_ratio=0.75).prune(model, Magnitude(), job())
    after = widths(model)
    # One layer stands for those that share its channels: stem, the stages' outputs, one inner layer per block.
    groups = [name for name in before if name.endswith("layer.0.convolution") or "shortcut" in name or "embed" in name]
    assert sum(after[name] for name in groups) == int(0.4 * sum(before[name] for name in groups) + 1e-9)
    assert all(after[name] >= before[name] // 4 for name in groups)
    assert len({after[name] / before[name] for name in groups}) > 1


def test_isomorphic_layers_are_ranked_among_themselves(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    model = tiny_model("vit")
    before = widths(model)
    Channels(ratio=0.5, scope="isomorphic").prune(model, Magnitude(), job())
    after = widths(model)
    for part in (".query", ".intermediate.dense", ".q_proj", ".mlp.fc1"):
        layers = [name for name in before if name.endswith(part)]
        assert sum(after[name] for name in layers) == sum(before[name] for name in layers) // 2


# -- what a user can ask of single layers


def test_ratios_of_their_own(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    model = tiny_model("resnet")
    ratios = {"resnet.encoder.stages.1": 0.5, "resnet.encoder.stages.1.layers.1.layer.0*": 0.75}
    Channels(ratio=0.25, ratios=ratios).prune(model, Magnitude(), job())
    found = widths(model)
    assert found["resnet.encoder.stages.0.layers.0.layer.0.convolution"] == 12
    assert found["resnet.encoder.stages.1.layers.0.layer.0.convolution"] == 12
    assert found["resnet.encoder.stages.1.layers.1.layer.0.convolution"] == 6


def test_coupled_layers_take_the_smallest_ratio_that_was_given(
    tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    model = tiny_model("resnet")
    ratios = {"*stages.1.layers.0.shortcut*": 0.5, "*stages.1.layers.1.layer.1*": 0.25}
    Channels(ratio=0.0, ratios=ratios).prune(model, Magnitude(), job())
    found = widths(model)
    assert {width for name, width in found.items() if "stages.1" in name and "layer.0." not in name} == {18}


def test_ignored_layers_keep_what_they_share(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    model = tiny_model("resnet")
    before = widths(model)
    Channels(ratio=0.5, ignore=("resnet.encoder.stages.1.layers.1.layer.1",)).prune(model, Magnitude(), job())
    after = widths(model)
    kept = {name for name in before if after[name] == before[name] and not name.startswith("classifier")}
    assert kept == {
        "resnet.encoder.stages.1.layers.0.shortcut.convolution",
        "resnet.encoder.stages.1.layers.0.layer.1.convolution",
        "resnet.encoder.stages.1.layers.1.layer.1.convolution",
    }


@pytest.mark.parametrize("field", ["ignore", "ratios"])
def test_a_pattern_that_matches_nothing_is_refused(
    field: str, tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    pattern = "resnet.embeder.embedder.convolution"
    said: dict[str, Any] = {field: [pattern] if field == "ignore" else {pattern: 0.5}}
    with pytest.raises(ModelError, match=rf"{field}: '{pattern}' .*perhaps 'resnet.embedder.embedder.convolution'"):
        Channels(ratio=0.5, **said).prune(tiny_model("resnet"), Magnitude(), job())


def test_the_classifier_cannot_be_given_a_ratio(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    with pytest.raises(ModelError, match=r"'classifier\*' matches no layer that could be pruned"):
        Channels(ratio=0.5, ratios={"classifier*": 0.5}).prune(tiny_model("vit"), Magnitude(), job())


def test_a_layer_as_wide_as_the_classifier_is_pruned(job: Jobs) -> None:
    """What makes the logits is found by following the graph, not by counting labels."""
    config = ResNetForImageClassification.config_class(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic", num_labels=4
    )
    model = ResNetForImageClassification(config)
    Channels(ratio=0.5).prune(model, Magnitude(), job())
    assert [width for name, width in widths(model).items() if not name.startswith("classifier")] == [2] * 6


# -- refusals and warnings


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"ratio": 0.9}, r"ratio 0.9 would leave resnet.embedder.embedder.convolution with nothing: it has 8 channels"),
        ({"ratio": 0.1, "ratios": {"*embedder*": 0.95}}, r"ratios: '\*embedder\*' 0.95 would leave resnet.embedder"),
        ({"ratio": 0.95, "scope": "global", "max_ratio": 0.99}, r"ratio 0.95 would leave a layer with nothing"),
    ],
)
def test_a_ratio_that_leaves_nothing_says_which_would_work(
    said: dict[str, Any], message: str, tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    model = tiny_model("resnet")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=message) as caught:
        Channels(**said).prune(model, Magnitude(), job())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert caught.value.remedy is not None
    largest = float(caught.value.remedy.partition("at most ")[2].partition(",")[0])
    said = {**said, "ratio": largest} if "ratios" not in said else {**said, "ratios": {"*embedder*": largest}}
    Channels(**said).prune(model, Magnitude(), job())


def test_heads_are_named_where_they_are_too_narrow(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    with pytest.raises(ModelError, match=r"(query|q_proj) .*it has 8 channels in each of its 4 groups or heads"):
        Channels(ratio=0.9).prune(tiny_model("vit"), Magnitude(), job())


def test_weights_that_are_no_numbers_are_refused(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    model = tiny_model("resnet")
    model.get_submodule("resnet.embedder.embedder.convolution").weight.data[0] = torch.nan  # type: ignore[index,union-attr]
    with pytest.raises(ModelError, match="not finite"):
        Channels(ratio=0.5).prune(model, Magnitude(), job())


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"ratio": 0.0}, "nothing was pruned: the ratio is 0"),
        ({"ratio": 0.5, "ignore": ["resnet"]}, "nothing was pruned: every layer is ignored"),
        ({"ratio": 0.3, "round_to": 64}, "nothing was pruned: no smaller multiple of 64 channels"),
        ({"ratio": 0.3, "round_to": 16}, "resnet.embedder.embedder.convolution and 3 more kept all channels"),
    ],
)
def test_less_than_was_asked_for_is_said(
    said: dict[str, Any], message: str, tiny_model: Callable[[str], PreTrainedModel], job: Jobs
) -> None:
    model, before, now = tiny_model("resnet"), widths(tiny_model("resnet")), job()
    Channels(**said).prune(model, Magnitude(), now)
    (warning,) = warnings(now)
    assert warning.startswith(message)
    assert (widths(model) == before) is message.startswith("nothing")


def test_no_warning_where_all_went_well(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    now = job()
    Channels(ratio=0.5, scope="global").prune(tiny_model("resnet"), Magnitude(), now)
    assert warnings(now) == []


def test_layers_the_criterion_cannot_judge_are_named(tiny_model: Callable[[str], PreTrainedModel], job: Jobs) -> None:
    """One inner layer of a ResNet without its normalization."""
    model, now = tiny_model("resnet"), job()
    path = "resnet.encoder.stages.0.layers.0.layer.0"
    model.get_submodule(path).normalization = nn.Identity()
    Channels(ratio=0.5).prune(model, BnScale(), now)
    assert warnings(now) == [f"{path}.convolution kept all channels: the criterion has no say on it"]
    assert widths(model)[f"{path}.convolution"] == 16


@pytest.mark.parametrize(
    "said",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"ratio": 0.95, "scope": "global"},
        {"ratio": 0.5, "steps": 0},
        {"ratio": 0.5, "round_to": 0},
        {"ratio": 0.5, "ratios": {"a": 1.0}},
        {},
    ],
)
def test_impossible_options_are_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Channels.model_validate({"kind": "channels", **said})
