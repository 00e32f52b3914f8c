from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from edgeforge.device import shipped_folder
from edgeforge.estimators import Estimate, Refusal, _features, estimator_for, fitted
from edgeforge.estimators.fitted import DeviceFits, Fit, Fitted, fits_of

FILES = sorted((shipped_folder() / "estimates").glob("*.yaml"))


def network(folder: Path, *, size: int = 64, width: int = 64, layers: int = 4, groups: int = 1) -> Path:
    """A row of 3 x 3 convolutions of equal width."""
    kernel = np.zeros((width, width // groups, 3, 3), np.float32)
    nodes, name = [], "x"
    for layer in range(layers):
        out = "y" if layer == layers - 1 else f"v{layer}"
        nodes.append(helper.make_node("Conv", [name, "w"], [out], pads=[1, 1, 1, 1], group=groups))
        name = out
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, (1, width, size, size)) for end in "xy"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "w")])
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "model.onnx"
    )
    return folder


def ask(folder: Path, device: str = "galaxy_s24", format: str = "onnx") -> Any:
    (answer,) = Fitted().estimate(device, folder, format)
    return answer


def test_the_sum_by_hand(tmp_path: Path) -> None:
    raw = yaml.safe_load((shipped_folder() / "estimates/galaxy_s24.yaml").read_text(encoding="utf-8"))
    fit = next(fit for fit in raw["fits"] if (fit["unit"], fit["precision"]) == ("npu", "float"))
    elements = 64 * 64 * 64
    macs = 4 * elements * 64 * 9
    terms = {
        "base": 1,
        "gmacs": macs / 1e9,
        "weights": 4 * 64 * 64 * 9 / 1e6,
        "layer_traffic": 8 * elements / 1e6,
        "inputs": elements / 1e6,
        "outputs": elements / 1e6,
    }
    expected = sum(value * fit["coefficients_ms"].get(name, 0) for name, value in terms.items())
    answer = ask(network(tmp_path))
    assert isinstance(answer, Estimate)
    assert answer.latency_ms == pytest.approx(expected)
    assert answer.interval80_ms == pytest.approx(tuple(expected * end for end in fit["interval80"]))
    assert (answer.rows, answer.error) == (fit["rows"], fit["error"])
    assert "quic/ai-hub-models" in answer.source


def test_more_work_never_takes_less_time(tmp_path: Path) -> None:
    before = 0.0
    for layers in (1, 2, 8, 32):
        folder = tmp_path / str(layers)
        folder.mkdir()
        now = ask(network(folder, layers=layers)).latency_ms
        assert now > before
        before = now


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_fits_are_physical(path: Path) -> None:
    fits = DeviceFits.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    terms = _features.Work((), 0, 0).terms()
    assert "BSD-3-Clause" in fits.licence
    assert len({(fit.unit, fit.precision) for fit in fits.fits}) == len(fits.fits)
    for fit in fits.fits:
        assert fit.coefficients_ms.keys() <= terms.keys()
        assert all(value > 0 for value in fit.coefficients_ms.values())
        assert "gmacs" in fit.coefficients_ms  # so that no class of multiplications is free
        low, high = fit.interval80
        assert 0 < low < 1 < high
        assert fit.rows >= 10


def test_what_there_are_no_measurements_of_is_refused(tmp_path: Path) -> None:
    network(tmp_path)
    (nothing,) = Fitted().estimate("h100", tmp_path, "onnx")
    assert "h100" in nothing.reason
    assert "coreml" in ask(tmp_path, format="coreml").reason
    cpu, npu = Fitted().estimate("dragonwing_q_6690", tmp_path, "onnx")
    assert isinstance(cpu, Refusal)
    assert cpu.unit == "cpu"
    assert "no float model" in cpu.reason
    assert isinstance(npu, Refusal)


def test_graphs_far_from_all_that_was_measured_are_refused(tmp_path: Path) -> None:
    assert "GMACs" in ask(network(tmp_path, size=4, width=8, layers=1)).reason
    assert "grouped convolutions" in ask(network(tmp_path, size=128, width=64, layers=16, groups=8)).reason


def test_a_file_that_is_mostly_float_is_no_integer_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(tmp_path)
    monkeypatch.setattr(_features, "precision", lambda model: "w8a8")
    assert "only 0 % of its multiplications" in ask(tmp_path).reason


def test_only_devices_with_fits_have_an_estimator() -> None:
    found = estimator_for("galaxy_s25")
    assert isinstance(found, Fitted)
    assert estimator_for("iphone_16") is None
    assert len({found.digest(path.stem) for path in FILES}) == len(FILES)


def test_a_negative_interval_or_unknown_field_is_no_fit() -> None:
    fits = fits_of("galaxy_s24")
    assert fits is not None
    plain = fits.fits[0].model_dump()
    with pytest.raises(ValueError, match="error"):
        Fit.model_validate({**plain, "error": -0.1})
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Fit.model_validate({**plain, "coefficients_ms": {**plain["coefficients_ms"], "gmacs": -1e-6}})
    with pytest.raises(ValueError, match="unknown key"):
        Fit.model_validate({**plain, "slope": 1})
    assert fitted.FAR > 1
