"""Compressed programs: each must compute exactly what coremltools' own decompressed copy of it does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools")

import coremltools as ct
import coremltools.optimize.coreml as cto

from edgeforge.runtimes._mil.constexpr import lut_to_dense, lut_to_sparse, sparse_blockwise_shift_scale
from edgeforge.runtimes._mil.program import read_function
from edgeforge.runtimes.coreml_reference import open_model, reference_predictions

LINEAR, PALETTES = cto.OpLinearQuantizerConfig, cto.OpPalettizerConfig
BLOCKS = {"granularity": "per_block", "block_size": 8}
GROUPS = {"granularity": "per_grouped_channel", "group_size": 8, "channel_axis": 0}
Step = Callable[[Any], Any]


def quantized(**options: Any) -> Step:
    config = cto.OptimizationConfig(global_config=LINEAR(weight_threshold=0, **options))
    return lambda model: cto.linear_quantize_weights(model, config)


def palettized(joint: bool = False, **options: Any) -> Step:
    config = cto.OptimizationConfig(global_config=PALETTES(weight_threshold=0, **options))
    return lambda model: cto.palettize_weights(model, config, joint_compression=joint)


def pruned(sparsity: float = 0.6) -> Step:
    config = cto.OptimizationConfig(
        global_config=cto.OpMagnitudePrunerConfig(target_sparsity=sparsity, weight_threshold=0)
    )
    return lambda model: cto.prune_weights(model, config)


def pruned_by(pruner: Any) -> Step:
    config = cto.OptimizationConfig(global_config=pruner)
    return lambda model: cto.prune_weights(model, config)


def few_values(model: Any) -> Any:
    """Floats again, of four different numbers for each weight."""
    return cto.decompress_weights(palettized(mode="kmeans", nbits=2)(model))


def two_halves(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A palette of one's own: the mean of the numbers below zero, and of the others."""
    above = weight >= 0
    lut = np.array([weight[~above].mean(), weight[above].mean()], dtype=weight.dtype)
    return lut, above.astype(np.uint8)


def jointly_quantized(**options: Any) -> Step:
    config = cto.OptimizationConfig(global_config=LINEAR(weight_threshold=0, **options))
    return lambda model: cto.linear_quantize_weights(model, config, joint_compression=True)


RECIPES: dict[str, tuple[str, list[Step]]] = {
    "int8": ("iOS18", [quantized(mode="linear_symmetric", dtype="int8")]),
    "uint8 asymmetric": ("iOS18", [quantized(mode="linear", dtype="uint8")]),
    "int8 per tensor": ("iOS18", [quantized(mode="linear", dtype="int8", granularity="per_tensor")]),
    "int4": ("iOS18", [quantized(mode="linear_symmetric", dtype="int4")]),
    "int4 in blocks": ("iOS18", [quantized(mode="linear_symmetric", dtype="int4", **BLOCKS)]),
    "uint4 in blocks": ("iOS18", [quantized(mode="linear", dtype="uint4", **BLOCKS)]),
    **{
        f"{bits}-bit palette": ("iOS18", [palettized(mode="kmeans", nbits=bits)]) for bits in (1, 2, 3, 4, 6, 8)
    },
    "uniform palette": ("iOS18", [palettized(mode="uniform", nbits=4)]),
    "palettes per group": ("iOS18", [palettized(mode="kmeans", nbits=3, **GROUPS)]),
    "palette with a scale per channel": (
        "iOS18",
        [palettized(mode="kmeans", nbits=4, enable_per_channel_scale=True)],
    ),
    "palette of vectors": ("iOS18", [palettized(mode="kmeans", nbits=4, cluster_dim=4)]),
    "palette of few values": ("iOS18", [few_values, palettized(mode="unique")]),
    "palette of one's own": ("iOS18", [palettized(mode="custom", lut_function=two_halves)]),
    "sparse": ("iOS18", [pruned()]),
    "sparse by threshold": (
        "iOS18",
        [
            pruned_by(
                cto.OpThresholdPrunerConfig(threshold=0.1, minimum_sparsity_percentile=0.01, weight_threshold=0)
            )
        ],
    ),
    "sparse in blocks": (
        "iOS18",
        [pruned_by(cto.OpMagnitudePrunerConfig(target_sparsity=0.5, block_size=2, dim=0, weight_threshold=0))],
    ),
    "2 of 4 sparse": (
        "iOS18",
        [pruned_by(cto.OpMagnitudePrunerConfig(n_m_ratio=(2, 4), dim=1, weight_threshold=0))],
    ),
    "sparse palette in int8": (
        "iOS18",
        [
            pruned(),
            palettized(joint=True, mode="kmeans", nbits=4),
            jointly_quantized(mode="linear_symmetric", dtype="int8", granularity="per_tensor"),
        ],
    ),
    "int8 in blocks": ("iOS18", [quantized(mode="linear_symmetric", dtype="int8", **BLOCKS)]),
    "uint8 symmetric per tensor": (
        "iOS18",
        [quantized(mode="linear_symmetric", dtype="uint8", granularity="per_tensor")],
    ),
    "sparse palette": ("iOS18", [pruned(), palettized(joint=True, mode="kmeans", nbits=4)]),
    "sparse int8": ("iOS18", [pruned(), jointly_quantized(mode="linear_symmetric", dtype="int8")]),
    "sparse int8 asymmetric": ("iOS18", [pruned(), jointly_quantized(mode="linear", dtype="int8")]),
    "palette in int8": (
        "iOS18",
        [
            palettized(mode="kmeans", nbits=4),
            jointly_quantized(mode="linear_symmetric", dtype="int8", granularity="per_tensor"),
        ],
    ),
    "iOS 16 int8": ("iOS16", [quantized(mode="linear", dtype="int8")]),
    "iOS 16 palette": ("iOS16", [palettized(mode="kmeans", nbits=4)]),
    "iOS 16 6-bit palette": ("iOS16", [palettized(mode="kmeans", nbits=6)]),
    "iOS 16 sparse": ("iOS16", [pruned()]),
}  # fmt: skip
FAST = {"int4 in blocks", "3-bit palette", "sparse palette", "sparse int8 asymmetric", "iOS 16 6-bit palette"}


class Network(torch.nn.Module):
    """A convolution, a depthwise one and two linear layers; every size divides by the blocks and groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(8, 16, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.hidden = torch.nn.Linear(16, 32)
        self.last = torch.nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x)))).mean((2, 3))
        found: torch.Tensor = self.last(torch.tanh(self.hidden(x)))
        return found


INPUT = np.random.default_rng(0).normal(size=(1, 8, 6, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def float_model() -> Callable[[str], Any]:
    """Deployment target -> the network, converted to float16."""
    with torch.no_grad():
        program = torch.export.export(Network().eval(), (torch.from_numpy(INPUT),)).run_decompositions({})
    made: dict[str, Any] = {}

    def convert(target: str) -> Any:
        if target not in made:
            made[target] = ct.convert(
                program,
                inputs=[ct.TensorType(name="x", shape=INPUT.shape)],
                outputs=[ct.TensorType(name="y")],
                minimum_deployment_target=getattr(ct.target, target),
                skip_model_load=True,
            )
        return made[target]

    return convert


def saved(model: Any, path: Path) -> Path:
    model.save(str(path))
    return path


def compressed_operations(path: Path) -> set[str]:
    from edgeforge.runtimes._mil.package import open_package

    body = read_function(open_package(path), "main").body
    return {operation.type for operation in body.operations if operation.type.startswith("constexpr_")}


@pytest.mark.parametrize(
    "recipe", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_it_equals_its_decompressed_copy(recipe: str, float_model: Callable[[str], Any], tmp_path: Path) -> None:
    target, steps = RECIPES[recipe]
    original = model = float_model(target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in steps:
            model = step(model)
    path = saved(model, tmp_path / "compressed.mlpackage")
    plain = saved(cto.decompress_weights(model), tmp_path / "plain.mlpackage")
    assert compressed_operations(path)
    assert not compressed_operations(plain)
    models = [open_model(one) for one in (path, plain)]
    found, expected = (model.predict({"x": INPUT})["y"] for model in models)
    assert np.array_equal(found, expected)
    at_every_run = [step.operation.type for step in models[0]._evaluator._body.steps]
    assert not any(name.startswith("constexpr_") for name in at_every_run), "weights are decompressed at every run"
    untouched = open_model(saved(original, tmp_path / "float.mlpackage")).predict({"x": INPUT})["y"]
    assert not np.array_equal(found, untouched)


# -- the examples in coremltools' documentation; its own tools do not write sparse palettes of vectors


def test_palettes_per_group() -> None:
    indices = torch.tensor([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]], dtype=torch.uint8)
    lut = torch.tensor([[1.0, 5.0, 9.0, 13.0], [2.0, 10.0, 18.0, 26.0]]).reshape(2, 1, 4, 1)
    expected = [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]]
    assert lut_to_dense(indices, lut).tolist() == expected


@pytest.mark.parametrize("axis", [1, 2])
def test_palette_of_vectors(axis: int) -> None:
    indices = torch.tensor([[[0, 0], [1, 0]], [[1, 1], [0, 0]]], dtype=torch.uint8)
    lut = torch.tensor([[10, 11, 12], [20, 21, 22]]).reshape(1, 1, 1, 2, 3)
    columns = [[[10, 10], [11, 11], [12, 12], [20, 10], [21, 11], [22, 12]]]
    columns += [[[20, 20], [21, 21], [22, 22], [10, 10], [11, 11], [12, 12]]]
    rows = [[[10, 11, 12, 10, 11, 12], [20, 21, 22, 10, 11, 12]]]
    rows += [[[20, 21, 22, 20, 21, 22], [10, 11, 12, 10, 11, 12]]]
    assert lut_to_dense(indices, lut, torch.tensor(axis)).tolist() == (columns if axis == 1 else rows)


def test_sparse_palette_of_vectors() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
    indices = torch.tensor([0, 1, 1, 0, 1, 1, 0, 0, 1], dtype=torch.uint8)
    lut = torch.tensor([[2.0, 2.0], [3.0, 3.0]]).reshape(1, 1, 2, 2)
    found_mask, found = lut_to_sparse(mask, indices, lut, torch.tensor(0))
    assert found_mask.tolist() == [row for row in mask.tolist() for _ in range(2)]
    one = [2.0, 3.0, 2.0, 3.0, 3.0, 2.0, 3.0, 3.0, 2.0, 3.0, 3.0, 2.0, 2.0, 3.0, 2.0, 2.0, 3.0, 3.0]
    assert found.tolist() == one


def test_sparse_scales() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    data = torch.tensor([10, 11, 3, 4, 5, 6, 7, 8, 9], dtype=torch.int8)
    scale, offset = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[1, 2, 3, 4]], dtype=torch.int8)
    found_mask, found = sparse_blockwise_shift_scale(mask, data, scale, offset)
    assert found_mask is mask
    assert found.tolist() == pytest.approx([0.9, 1.8, 0.2, 0.4, 0.6, 0.9, 1.2, 0.7, 1.4])


# -- activations in 8 bits


def activations_quantized(model: Any, samples: list[dict[str, np.ndarray]]) -> Any:
    config = cto.OptimizationConfig(
        op_type_configs={
            name: cto.experimental.OpActivationLinearQuantizerConfig(mode="linear_symmetric")
            for name in ("conv", "linear")
        }
    )
    with reference_predictions():
        return cto.linear_quantize_activations(model, config, samples)


def scales(path: Path) -> list[float]:
    """Of every quantize operation, in order."""
    from edgeforge.runtimes._mil.package import open_package

    body = read_function(open_package(path), "main").body
    return [
        float(body.constants[str(operation.arguments["scale"])].read())
        for operation in body.operations
        if operation.type == "quantize"
    ]


def test_activations_are_quantized_off_the_mac(float_model: Callable[[str], Any], tmp_path: Path) -> None:
    """The ranges are those over all samples: in another order they give the same program, and no value clips."""
    original = float_model("iOS18")
    rng = np.random.default_rng(1)
    samples = [{"x": rng.normal(size=INPUT.shape).astype(np.float32) * factor} for factor in (4, 1)]
    weights = quantized(mode="linear_symmetric", dtype="int8")
    path = saved(weights(activations_quantized(original, samples)), tmp_path / "w8a8.mlpackage")
    other = saved(activations_quantized(original, samples[::-1]), tmp_path / "other.mlpackage")
    found = scales(path)
    assert len(found) >= 4
    assert found == scales(other)
    largest = max(float(np.abs(sample["x"]).max()) for sample in samples)
    assert found[0] == pytest.approx(2 * largest / 254, rel=2e-3)
    model, reference = open_model(path), open_model(saved(original, tmp_path / "float.mlpackage"))
    for sample in samples:
        expected = reference.predict(sample)["y"]
        error = np.abs(model.predict(sample)["y"] - expected).max() / (expected.max() - expected.min())
        assert 0 < error < 0.05


def test_after_the_context_coremltools_is_as_it_was(float_model: Callable[[str], Any]) -> None:
    model = float_model("iOS18")
    with reference_predictions():
        assert model.predict({"x": INPUT})["y"].shape == (1, 8)
    with pytest.raises(Exception, match=r"Unable to load CoreML|only supported on macOS"):
        model.predict({"x": INPUT})
