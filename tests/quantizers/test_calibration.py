"""Ranges against numpy and against ONNX Runtime's own calibrators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from edgeforge.core.errors import ModelError
from edgeforge.quantizers._calibration import BINS, Calibrator, Method, entropy_limit, percentile_limits


def identity() -> onnx.ModelProto:
    """x -> y = relu(x)."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "graph",
        [value("x", TensorProto.FLOAT, ["batch", "length"])],
        [value("y", TensorProto.FLOAT, ["batch", "length"])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def calibrator(batches: list[np.ndarray]) -> Calibrator:
    return Calibrator(identity(), ["x", "y"], lambda: iter([{"x": batch} for batch in batches]))


def outliers() -> np.ndarray:
    """A normal distribution and two lone values far off."""
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[:2] = -40, 40
    return values.reshape(100, 1000)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, values: np.ndarray) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = iter([{"x": values}])

    def get_next(self) -> Any:
        return next(self.left, None)


def theirs(values: np.ndarray, folder: Path, **options: Any) -> float:
    """The limit that ONNX Runtime's entropy calibrator finds for x."""
    onnx.save(identity(), folder / "model.onnx")
    found = create_calibrator(
        folder / "model.onnx",
        ["Relu"],
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Entropy,
        extra_options=options,
    )
    found.collect_data(Reader(values))
    return float(found.compute_data()["x"].range_value[1])


def test_minmax_spans_all_batches_and_zero() -> None:
    batches = [np.full((2, 1000), 3, np.float32), np.full((1, 1000), 5, np.float32)]
    assert calibrator(batches).ranges("minmax", 100) == {"x": (0.0, 5.0), "y": (0.0, 5.0)}
    assert calibrator([-batches[0]]).ranges("minmax", 100) == {"x": (-3.0, 0.0), "y": (0.0, 0.0)}


@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_percentile_is_numpys(percentile: float) -> None:
    values = np.random.default_rng(0).normal(size=(100, 1000)).astype(np.float32)
    found = calibrator([values[:60], values[60:]]).ranges("percentile", percentile)["x"]
    tail = (100 - percentile) / 2
    expected = np.percentile(values, [tail, 100 - tail])
    np.testing.assert_allclose(found, expected, atol=2 * np.ptp(values) / BINS)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_batches_of_other_lengths_count_by_their_numbers(method: Method) -> None:
    """Texts are as long as the longest of their batch."""
    values = outliers()
    cut = [values[:40, :500], values[:40, 500:], values[40:, :130], values[40:, 130:]]
    assert calibrator(cut).ranges(method, 99.9) == calibrator([values]).ranges(method, 99.9)


def test_magnitudes_are_per_channel() -> None:
    batches = [np.array([[1, -5, 0], [2, 0, 0]], np.float32), np.array([[-3, 1, 0]], np.float32)]
    found = calibrator(batches).magnitudes()
    np.testing.assert_array_equal(found["x"], [3, 5, 0])
    np.testing.assert_array_equal(found["y"], [2, 1, 0])


def test_percentile_of_evenly_filled_bins() -> None:
    assert percentile_limits(np.full(100, 7), (-1.0, 1.0), 90) == pytest.approx((-0.9, 0.9))


def test_entropy_is_not_the_no_op_that_it_is_by_default_elsewhere(tmp_path: Path) -> None:
    values = outliers()
    ours = calibrator([values]).ranges("entropy", 0)["x"]
    assert theirs(values, tmp_path) == pytest.approx(40, abs=0.7)  # 128 bins for 128 levels: nothing to choose from
    with_bins = theirs(values, tmp_path, num_bins=2048)
    assert ours[1] == pytest.approx(with_bins, rel=0.2)
    assert -7 < ours[0] < -4
    assert 4 < ours[1] < 7


def test_entropy_does_not_cut_what_has_no_outliers() -> None:
    values = np.random.default_rng(0).uniform(-1, 1, (100, 1000)).astype(np.float32)
    assert calibrator([values]).ranges("entropy", 0)["x"] == pytest.approx((-1, 1), abs=0.02)


def test_zeros_behind_a_relu_do_not_drown_the_rest() -> None:
    values = np.abs(np.random.default_rng(0).normal(size=(100, 1000))).astype(np.float32)
    alone = calibrator([values]).ranges("entropy", 0)["y"]
    mostly_zero = np.concatenate([values, np.zeros((900, 1000), np.float32)])
    assert calibrator([mostly_zero]).ranges("entropy", 0)["y"] == alone
    assert alone[1] > 3


def test_entropy_keeps_every_bin_where_there_are_no_more_than_levels() -> None:
    assert entropy_limit(np.ones(128, dtype=np.int64), 128) == 128


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    values = np.zeros((1, 1000), np.float32)
    values[0, 7] = bad
    with pytest.raises(ModelError, match="not finite"):
        calibrator([values]).ranges("minmax", 100)
