"""The sidecar of integers and scales: it comes back as it was, and nothing odd gets in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from edgeforge.core.errors import ModelError
from edgeforge.models.quantized_weights import (
    DESCRIPTION,
    TENSORS,
    LinearWeight,
    PalettizedWeight,
    QuantizedWeights,
    check_model,
    read,
    write,
)


def linear_weight(bits: int = 4, blocks: int = 2) -> LinearWeight:
    rng = np.random.default_rng(bits)
    integers = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), size=(3, 4, 2, 2)).astype(np.int8)
    return LinearWeight(bits, integers, rng.uniform(0.1, 1, size=(3, blocks, 1, 1)).astype(np.float16))


def palettized_weight() -> PalettizedWeight:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 16, size=(6, 5)).astype(np.uint8)
    return PalettizedWeight(4, indices, rng.normal(size=(3, 16)).astype(np.float16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights = {"a.weight": linear_weight(), "b.weight": linear_weight(8, 1), "c.weight": palettized_weight()}
    write(QuantizedWeights(weights, {"d.weight": "small"}, {"kind": "int4_weights"}), tmp_path)
    return tmp_path


def test_dequantize_is_integers_times_the_scale_of_their_block() -> None:
    weight = linear_weight()
    dense = weight.dequantize()
    assert dense.dtype == np.float32
    assert weight.block_size == 2
    assert linear_weight(8, 1).block_size is None
    for out in range(3):
        for channel in range(4):
            expected = weight.integers[out, channel].astype(np.float64) * float(weight.scales[out, channel // 2, 0, 0])
            assert (dense[out, channel] == expected).all()


def test_dequantize_looks_up_the_palette_of_the_group() -> None:
    weight = palettized_weight()
    dense = weight.dequantize()
    assert weight.group_size == 2
    for out in range(6):
        assert (dense[out] == weight.palettes[out // 2][weight.indices[out]].astype(np.float32)).all()


@given(st.integers(-128, 127), st.floats(2.0**-24, 65504, width=16))
def test_an_8_bit_integer_times_a_float16_is_exact_in_float32(integer: int, scale: float) -> None:
    weight = LinearWeight(8, np.full((1, 1), integer, np.int8), np.full((1, 1), scale, np.float16))
    assert float(weight.dequantize()[0, 0]) == integer * scale


@pytest.mark.parametrize("rows", [1, 4, 6, 20, 24])
def test_the_first_rows_are_those_of_the_whole(rows: int) -> None:
    chance = np.random.default_rng(0)
    integers = chance.integers(-8, 8, size=(24, 6)).astype(np.int8)
    scales = chance.uniform(0.1, 1, size=(24, 2)).astype(np.float16)
    indices = chance.integers(0, 4, size=(24, 6)).astype(np.uint8)
    palettes = chance.normal(size=(6, 4)).astype(np.float16)  # one for every 4 rows
    for weight in (LinearWeight(4, integers, scales), PalettizedWeight(2, indices, palettes)):
        part = weight.first(rows)
        assert part.problem() is None
        assert np.array_equal(part.dequantize(), weight.dequantize()[:rows])


def test_what_was_written_is_read(folder: Path) -> None:
    quantized = read(folder)
    assert quantized is not None
    assert quantized.kept == {"d.weight": "small"}
    assert quantized.quantizer == {"kind": "int4_weights"}
    wanted = {"a.weight": linear_weight(), "b.weight": linear_weight(8, 1), "c.weight": palettized_weight()}
    assert quantized.weights.keys() == wanted.keys()
    for name, weight in wanted.items():
        found = quantized.weights[name]
        assert type(found) is type(weight)
        assert found.bits == weight.bits
        for part, value in weight.tensors().items():
            assert found.tensors()[part].dtype == value.dtype
            assert np.array_equal(found.tensors()[part], value)


def test_the_same_numbers_are_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    quantized = read(folder)
    assert quantized is not None
    reordered = dict(reversed(quantized.weights.items()))
    write(QuantizedWeights(reordered, quantized.kept, quantized.quantizer), other)
    for name in (DESCRIPTION, TENSORS):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_a_folder_without_a_sidecar_has_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None


Edit = Callable[[dict[str, Any]], None]


def set_value(name: str, value: Any) -> Edit:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[name] = value if isinstance(value, np.ndarray) else tensors[name].copy()
        if not isinstance(value, np.ndarray):
            tensors[name].reshape(-1)[0] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_value("a.weight.integers", 8), r"a.weight: an integer lies outside \[-8, 7\]"),
        (set_value("a.weight.scales", np.nan), "a.weight: a scale is not a positive number"),
        (set_value("a.weight.scales", np.inf), "a.weight: a scale is not a positive number"),
        (set_value("a.weight.scales", 0), "a.weight: a scale is not a positive number"),
        (set_value("a.weight.scales", -1), "a.weight: a scale is not a positive number"),
        (set_value("a.weight.scales", np.ones((3, 3, 1, 1), np.float16)), "a.weight: scales of shape .* do not divide"),
        (set_value("a.weight.scales", np.ones((2, 2, 1, 1), np.float16)), "a.weight: scales of shape .* do not divide"),
        (set_value("a.weight.scales", np.ones((3, 2), np.float16)), "a.weight: .* as many as each other"),
        (set_value("a.weight.scales", np.ones((3, 2, 1, 1), np.float32)), "a.weight: integers must be int8"),
        (set_value("a.weight.integers", np.zeros((0, 4, 2, 2), np.int8)), "a.weight: .* two or more axes"),
        (set_value("c.weight.indices", 16), "c.weight: an index is not below 16"),
        (set_value("c.weight.palettes", np.inf), "c.weight: a palette holds a number that is not finite"),
        (set_value("c.weight.palettes", np.zeros((4, 16), np.float16)), "c.weight: palettes of shape .* do not divide"),
        (set_value("c.weight.palettes", np.zeros((3, 8), np.float16)), "c.weight: palettes of shape .* do not divide"),
        (set_value("c.weight.indices", np.zeros((6, 5), np.int64)), "c.weight: indices must be uint8"),
        (lambda tensors: tensors.pop("b.weight.scales"), "b.weight.scales is missing"),
    ],
)
def test_odd_numbers_are_refused(folder: Path, edit: Edit, message: str) -> None:
    tensors = load_file(folder / TENSORS)
    edit(tensors)
    save_file(tensors, folder / TENSORS)
    with pytest.raises(ModelError, match=message):
        read(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data.update(format=2),
        lambda data: data.update(extra=1),
        lambda data: data.pop("parameters"),
        lambda data: data["parameters"].update({"a.weight": {"method": "pickled", "bits": 4}}),
        lambda data: data["parameters"].update({"a.weight": {"method": "linear", "bits": 5}}),
        lambda data: data["parameters"].update({"z.weight": {"method": "linear", "bits": 4}}),
        lambda data: data["parameters"].update({"a.weight": {"method": "palettized", "bits": 4}}),
    ],
)
def test_odd_descriptions_are_refused(folder: Path, edit: Edit) -> None:
    data = json.loads((folder / DESCRIPTION).read_text())
    edit(data)
    (folder / DESCRIPTION).write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"quantize the model again"):
        read(folder)


@pytest.mark.parametrize("name", [DESCRIPTION, TENSORS])
def test_truncated_and_missing_files_are_refused(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (folder / name).write_bytes(whole[:length])
        with pytest.raises(ModelError):
            read(folder)
    (folder / TENSORS).unlink()
    with pytest.raises(ModelError):
        read(folder)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5))
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("json")
    (folder / DESCRIPTION).write_text(json.dumps(value))
    with pytest.raises(ModelError):
        read(folder)


class Holder(torch.nn.Module):
    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.a = torch.nn.Module()
        self.a.weight = torch.nn.Parameter(torch.from_numpy(weight))


def test_a_model_must_hold_the_same_numbers() -> None:
    weight = linear_weight()
    quantized = QuantizedWeights({"a.weight": weight})
    dense = weight.dequantize()
    check_model(quantized, Holder(dense), where="here")  # type: ignore[arg-type]
    dense[0, 0, 0, 0] = np.nextafter(dense[0, 0, 0, 0], np.float32(10))
    with pytest.raises(ModelError, match=r"a.weight is not its integers times its scales"):
        check_model(quantized, Holder(dense), where="here")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"b.weight is quantized but no weight of the model"):
        check_model(QuantizedWeights({"b.weight": weight}), Holder(dense), where="here")  # type: ignore[arg-type]
