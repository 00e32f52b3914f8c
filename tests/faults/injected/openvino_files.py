"""Faults of OpenVINO files."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from injected.cases import SCHEMES, Case
from injected.editing import OpenvinoEdit
from injected.onnx_quantized import _Opened
from injected.registry import fault

from edgeforge import openvino_graph

FLOAT, HALF, INT8, TEXT, TEXT8, TEXT4 = (
    "resnet-openvino-float",
    "resnet-openvino-half",
    "resnet-openvino-int8",
    "bert-openvino-float",
    "bert-openvino-int8",
    "bert-openvino-weights4",
)


def edit(case: Case) -> OpenvinoEdit:
    return OpenvinoEdit(case.folder)


@fault("wrong number", FLOAT, HALF, sizes=(0.5, 0.01), unit="relative change of one weight", quick=True)
def one_weight(case: Case, size: float) -> None:
    """A single weight is off."""
    with edit(case) as found:
        layer = list(found.layers.values())[3]

        def change(weight: np.ndarray) -> None:
            weight.reshape(-1)[5] *= 1 + size

        found.change(layer.node, layer.port, change)


@fault("dropped bias", FLOAT, TEXT, sizes=(1.0, 0.01), unit="share that is lost")
def bias_of_a_layer(case: Case, size: float) -> None:
    """A layer without (part of) its bias."""
    with edit(case) as found:
        places = [place for layer in found.layers.values() if (place := openvino_graph.bias_of(layer))]
        addition, port = places[-1]
        found.change(addition, port, lambda bias: bias * (1 - size))


@fault("wiring", FLOAT)
def relu_left_out(case: Case, _: None) -> None:
    """A ReLU is left out."""
    with edit(case) as found:
        node = found.of("Relu")[3]
        node.output(0).replace(node.input_value(0))


@fault("embedding", TEXT, TEXT4, sizes=("used", "unused"), unit="which two rows", quick=True)
def rows_of_a_table(case: Case, size: str) -> None:
    """Two rows of the word table in each other's places."""
    from injected.onnx_float import WORDS, _unused

    rows = [90, 91] if size == "used" else list(_unused(case))
    with edit(case) as found:
        layer = next(
            one for one in found.layers.values() if one.activation is None and one.weight.get_shape()[0] == WORDS
        )
        node = openvino_graph.stored(layer.weight)
        packed = node.get_element_type().get_type_name() in ("i4", "u4")
        array = np.array(node.data)
        table = array.view(np.uint8).reshape(WORDS, -1) if packed else array.reshape(WORDS, -1)
        table[rows] = table[rows[::-1]]
        ov = openvino_graph.load_openvino()
        if packed:
            bits = openvino_graph.integers(node).reshape(WORDS, -1)
            bits[rows] = bits[rows[::-1]]
            after = ov.op.Constant(ov.Type.i4, ov.Shape(list(node.get_output_shape(0))), bits.reshape(-1).tolist())
        else:
            after = ov.op.Constant(table.reshape(array.shape))
        for reader in list(node.output(0).get_target_inputs()):
            reader.replace_source_output(after.output(0))


@fault("wrong integer", INT8, TEXT8, sizes=(32, 2), unit="steps of one integer", quick=True)
def integer_of_a_layer(case: Case, size: int) -> None:
    """A single integer of a weight is off."""
    with edit(case) as found:
        layers = [one for one in found.layers.values() if openvino_graph.is_quantized(one)]

        def change(weight: np.ndarray) -> None:
            flat = weight.reshape(-1)
            flat[int(np.argmin(np.abs(flat.astype(np.int16))))] += size

        found.integers(layers[2], change)


@fault("wrong scale", INT8, sizes=(2.0, 1.1), unit="factor of one channel")
def scale_of_a_channel(case: Case, size: float) -> None:
    """One channel of a weight has another scale."""
    with edit(case) as found:
        layer = next(one for one in found.layers.values() if openvino_graph.is_quantized(one))

        def change(scales: np.ndarray) -> None:
            scales.reshape(-1)[2] *= size

        found.scales(layer, change)


@fault("swapped scale", TEXT4)
def scales_of_two_blocks(case: Case, _: None) -> None:
    """Two blocks have each other's scales."""
    with edit(case) as found:
        layers = [one for one in found.layers.values() if openvino_graph.is_quantized(one)]

        def swap(scales: np.ndarray) -> None:
            flat = scales.reshape(-1)
            flat[[0, 1]] = flat[[1, 0]]

        found.scales(layers[3], swap)


@fault("wrong scale", INT8, sizes=(2.0, 1.01), unit="factor")
def recorded_range(case: Case, size: float) -> None:
    """A value is rounded within another range than was chosen."""
    with edit(case) as found:
        node = found.of("FakeQuantize")[2]
        for port in range(1, 5):
            found.change(node, port, lambda ends: ends * np.float32(size))


@fault("calibration", INT8, sizes=(10.0,), unit="times the right range", quick=True)
def calibrated_on_other_data(case: Case, size: float) -> None:
    """Calibrated on inputs of another magnitude."""
    _, quantizer = SCHEMES["openvino-int8"]
    data, folder = case.bench.data, case.root / "requantized"

    class Changed:
        interface = data.interface

        def size(self, split: Any) -> int:
            return int(data.size(split))

        def batch(self, split: Any, indices: Any, **options: Any) -> Any:
            batch = data.batch(split, indices, **options)
            return {**batch, "pixel_values": batch["pixel_values"] * size}

    job = case.bench.job(folder)
    quantizer.quantize(case.inputs["unquantized"], dataclasses.replace(job, task=_Opened(job.task, Changed())))
    case.put("file", case.bench.artifact(folder, "openvino"))


@fault("truncated file", FLOAT, sizes=(0.5, 0.999), unit="share that is left")
def truncated_bin(case: Case, size: float) -> None:
    """The weights end early."""
    path = case.folder / openvino_graph.WEIGHTS
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content))])


@fault("interface", FLOAT)
def batch_of_one(case: Case, _: None) -> None:
    """The file takes single samples only."""
    with edit(case) as found:
        found.graph.reshape([1, 1, 8, 8])
