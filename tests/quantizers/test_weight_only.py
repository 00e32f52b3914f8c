"""Weight-only quantizers: the numbers against other libraries' and by hand, and what they leave in the artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.models import loading, quantized_weights
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._weights import linear, palettize
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_weights import Int8Weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def squared_error(weight: np.ndarray, quantized: Any) -> float:
    return float(np.square(quantized.dequantize() - weight, dtype=np.float64).sum())


# -- the numbers


@pytest.mark.parametrize("bits", [4, 8])
def test_per_channel_integers_are_those_of_torch(bits: int) -> None:
    weight = gaussian(8, 6, 3, 3)
    ours = linear(weight, bits, None)
    end = 2 ** (bits - 1) - 1
    scales = torch.from_numpy(np.abs(weight).max(axis=(1, 2, 3)) / end).half().float()
    assert np.array_equal(ours.scales.reshape(-1), scales.half().numpy())
    theirs = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weight), scales, torch.zeros(8, dtype=torch.int32), 0, -end - 1, end
    )
    assert np.array_equal(ours.dequantize(), theirs.numpy())


def test_each_block_of_input_channels_is_quantized_alone() -> None:
    weight = gaussian(5, 12, 2, 2) * np.linspace(0.1, 10, 12, dtype=np.float32)[None, :, None, None]
    ours = linear(weight, 4, 4)
    assert ours.scales.shape == (5, 3, 1, 1)
    for block in range(3):
        alone = linear(weight[:, 4 * block : 4 * block + 4], 4, None)
        assert np.array_equal(ours.integers[:, 4 * block : 4 * block + 4], alone.integers)
        assert np.array_equal(ours.scales[:, block : block + 1], alone.scales)


@pytest.mark.parametrize("block_size", [32, 5])
def test_channels_that_blocks_do_not_divide_have_one_scale(block_size: int) -> None:
    weight = gaussian(4, 12)
    ours = linear(weight, 4, block_size)
    assert ours.block_size is None
    assert np.array_equal(ours.integers, linear(weight, 4, None).integers)


floats = st.floats(-1e4, 1e4, width=32) | st.floats(-(2.0**-20), 2.0**-20, width=32)


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, (2, 4, 1, 2), elements=floats), st.sampled_from([4, 8]), st.booleans())
def test_any_weight_becomes_a_valid_one_within_half_a_step(weight: np.ndarray, bits: int, search: bool) -> None:
    ours = linear(weight, bits, 2, search=search)
    assert ours.problem() is None
    if not search:
        steps = np.repeat(ours.scales.astype(np.float64), 2, axis=1)
        # A float16 scale may be smaller than the exact one by 1 part in 2000, so the largest weight may clip.
        slack = np.abs(weight).max() * 2**-11 + 2.0**-25 * 2 ** (bits - 1)
        assert (np.abs(ours.dequantize() - weight) <= steps / 2 + slack).all()


def test_zeros_stay_zeros_and_tiny_weights_are_finite() -> None:
    weight = np.zeros((2, 4), np.float32)
    weight[1] = 1e-9
    ours = linear(weight, 4, None, search=True)
    assert ours.problem() is None
    assert (ours.dequantize() == 0).all()


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, (2, 6), elements=st.floats(-10, 10, width=32)))
def test_searching_is_never_worse(weight: np.ndarray) -> None:
    assert squared_error(weight, linear(weight, 4, None, search=True)) <= squared_error(weight, linear(weight, 4, None))


def test_searching_gains_a_fifth_on_gaussian_weights() -> None:
    weight = gaussian(64, 128)
    searched, plain = (squared_error(weight, linear(weight, 4, 32, search=search)) for search in (True, False))
    assert searched < 0.8 * plain


DISTRIBUTIONS = {
    "normal": lambda rng: rng.normal(size=2000),
    "laplace": lambda rng: rng.laplace(size=2000),
    "heavy tails": lambda rng: rng.standard_t(3, size=2000),
    "few": lambda rng: rng.normal(size=60),
    "outlier": lambda rng: np.concatenate([rng.normal(size=1999), [40.0]]),
    "two lumps": lambda rng: np.concatenate([rng.normal(-5, 0.1, size=500), rng.normal(3, 0.5, size=1500)]),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_palette_is_as_good_as_scikit_learns_k_means(name: str) -> None:
    from sklearn.cluster import KMeans

    values = DISTRIBUTIONS[name](np.random.default_rng(0)).astype(np.float32)
    theirs = KMeans(16, n_init=10, random_state=0).fit(values[:, None])
    ours = palettize(values.reshape(1, -1), 4, 1)
    rounding = np.square(values).sum() * 2.0**-22  # the palette is float16
    assert squared_error(values.reshape(1, -1), ours) <= 1.01 * theirs.inertia_ + rounding


def test_each_weight_takes_the_nearest_value_of_its_groups_palette() -> None:
    weight = gaussian(8, 6, 3, 3)
    ours = palettize(weight, 4, 4)
    assert ours.palettes.shape == (2, 16)
    assert ours.problem() is None
    for channel in range(8):
        palette = ours.palettes[channel // 4].astype(np.float64)
        distance = np.abs(weight[channel].astype(np.float64)[..., None] - palette)
        assert np.allclose(np.abs(ours.dequantize()[channel] - weight[channel]), distance.min(axis=-1), atol=1e-12)


def test_groups_that_do_not_divide_share_one_palette() -> None:
    assert palettize(gaussian(6, 40), 4, 4).palettes.shape == (1, 16)


def test_fewer_distinct_values_than_the_palette_are_kept_exactly() -> None:
    weight = np.random.default_rng(0).choice(np.float32([-1, 0, 0.5, 2]), size=(4, 50))
    assert squared_error(weight, palettize(weight, 4, 4)) == 0


# -- the artifact


class Notes:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        assert 0 < done <= total

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def quantized(
    quantizer: Quantizer, model: PreTrainedModel, interface: Interface, folder: Path
) -> tuple[Path, dict[str, Any], list[str]]:
    """Run a quantizer on a model; its artifact's folder, facts and warnings."""
    source, target = folder / "model", folder / "quantized"
    loading.save(model, source)
    target.mkdir()
    task = SimpleNamespace(open=lambda _: SimpleNamespace(interface=interface))
    artifact = Artifact(
        key="0" * 64, kind="train", format="torch", path=source, digest="", files={}, parents={}, recipe={}
    )
    notes = Notes()
    job = Job(task=task, folder=target, seed=0, make_accelerator=lambda: None, progress=notes)  # type: ignore[arg-type,return-value]
    return target, dict(quantizer.quantize(artifact, job)), notes.warnings


SCHEMES = {
    "int8": Int8Weights(min_elements=64),
    "int8 blocks": Int8Weights(min_elements=64, block_size=4),
    "int4": Int4Weights(min_elements=64, block_size=8),
    "int4 per channel": Int4Weights(min_elements=64, block_size=None, scale_search=False),
    "palettes": Int4Weights(min_elements=64, method="palettize", group_size=4),
}


@pytest.mark.parametrize(("name", "scheme"), [*(("resnet", scheme) for scheme in SCHEMES), ("vit", "int4")])
def test_the_artifact_is_the_quantized_model(
    name: str, scheme: str, tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    model = tiny_model(name)
    folder, facts, warnings = quantized(SCHEMES[scheme], model, tiny_interface, tmp_path)
    after = loading.load(folder)
    sidecar = quantized_weights.read(folder)
    assert sidecar is not None
    assert warnings == []
    quantized_weights.check_model(sidecar, after, where="")
    weights = {path: p for path, p in model.named_parameters() if p.dim() >= 2}
    covered = {path for path in weights if path in sidecar.weights}
    assert covered | sidecar.kept.keys() == weights.keys()
    assert not covered & sidecar.kept.keys()
    total = sum(p.numel() for p in model.parameters())
    assert facts["coverage_percent"] == pytest.approx(100 * sum(weights[path].numel() for path in covered) / total)
    assert facts["coverage_percent"] > 80
    images = torch.randn(16, *tiny_interface.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, now = model(images).logits, after(images).logits
    error = ((now - before).norm() / before.norm()).item()
    assert 0 < error < (0.03 if scheme.startswith("int8") else 0.5)


def test_small_and_other_weights_stay_float_for_a_stated_reason(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    folder, facts, _ = quantized(Int8Weights(min_elements=300), tiny_model("vit"), tiny_interface, tmp_path)
    kept = facts["kept_float"]
    assert kept["classifier.weight"] == "fewer than 300 elements"
    assert kept["vit.embeddings.position_embeddings"] == "not of a layer that is quantized"
    assert "vit.encoder.layer.0.intermediate.dense.weight" not in kept
    before, after = tiny_model("vit").state_dict(), loading.load(folder).state_dict()
    for name in kept:
        assert torch.equal(before[name], after[name])


def test_an_artifact_is_the_same_bytes_every_time(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    contents = []
    for attempt in ("a", "b"):
        (tmp_path / attempt).mkdir()
        folder, _, _ = quantized(SCHEMES["palettes"], tiny_model("resnet"), tiny_interface, tmp_path / attempt)
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_a_quantizer_that_changes_nothing_warns(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    quantizer = Int4Weights(min_elements=10**9)
    folder, facts, warnings = quantized(quantizer, tiny_model("resnet"), tiny_interface, tmp_path)
    assert facts["coverage_percent"] == 0
    assert "nothing was quantized" in warnings[0]
    assert quantized_weights.read(folder) is not None


def test_weights_that_are_not_finite_are_refused(
    tiny_model: Callable[[str], PreTrainedModel], tiny_interface: Interface, tmp_path: Path
) -> None:
    model = tiny_model("resnet")
    with torch.no_grad():
        model.classifier[1].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"classifier.1.weight holds numbers that are not finite"):
        quantized(Int4Weights(), model, tiny_interface, tmp_path)


def test_plan_warns_where_onnx_only_gets_smaller() -> None:
    assert Int4Weights().advice("coreml", "images") is None
    assert Int8Weights().advice("coreml", "images") is None
    assert "slower" in (Int4Weights().advice("onnx", "images") or "")
    assert "slower" in (Int8Weights().advice("onnx", "images") or "")
    with pytest.raises(IncompatiblePlanError, match="no palettes"):
        Int4Weights(method="palettize").check("onnx")
    Int4Weights(method="palettize").check("coreml")
    Int4Weights().check("onnx")
