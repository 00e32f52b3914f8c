"""Faults of ONNX files that hold integers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from injected.cases import Case
from injected.editing import OnnxEdit
from injected.registry import fault

X86, ARM, TEXT8, TEXT4 = "resnet-onnx-x86", "resnet-onnx-arm", "bert-onnx-x86", "bert-onnx-tables4"
DYNAMIC, INT4, INT4_TEXT, INT8 = "bert-onnx-dynamic", "resnet-onnx-int4", "bert-onnx-int4", "resnet-onnx-int8"


def edit(case: Case) -> OnnxEdit:
    return OnnxEdit(case.folder)


@fault("swapped scale", X86, ARM, quick=True)
def swapped_activation_scales(case: Case, _: None) -> None:
    """Two values have each other's scales."""
    with edit(case) as found:
        (first, _), (second, _) = found.values()[2:4]
        one, two = found.get(first.input[1]), found.get(second.input[1])
        found.set(first.input[1], two)
        found.set(second.input[1], one)


@fault("wrong scale", X86, sizes=(2.0, 1.1, 1.01, 1.0001), unit="factor", quick=True)
def activation_scale(case: Case, size: float) -> None:
    """A value is rounded and restored with another scale than was chosen."""
    with edit(case) as found:
        quantize, dequantize = found.values()[1]
        for name in {quantize.input[1], dequantize.input[1]}:
            found.change(name, lambda scale: scale * np.float32(size))


@fault("wrong scale", X86, ARM, sizes=(2.0, 1.01), unit="factor")
def scale_of_one_side(case: Case, size: float) -> None:
    """A value is restored with another scale than it was rounded with."""
    with edit(case) as found:
        quantize, dequantize = found.values()[0]
        dequantize.input[1] = found.add("other", found.get(quantize.input[1]) * np.float32(size))


@fault("wrong scale", X86, sizes=(2.0, 1.1, 1.001), unit="factor of one channel")
def weight_scale(case: Case, size: float) -> None:
    """One channel of a weight has another scale."""
    with edit(case) as found:

        def change(scale: np.ndarray) -> None:
            scale[5] *= np.float32(size)

        found.change(found.decoders(np.int8, 4)[3].input[1], change)


@fault("zero point", ARM, sizes=(8, 1), unit="steps", quick=True)
def shifted_zero_point(case: Case, size: int) -> None:
    """The zero point of a value is off, on both sides."""
    with edit(case) as found:
        quantize, dequantize = found.values()[3]
        for name in {quantize.input[2], dequantize.input[2]}:
            found.change(name, lambda zero: (zero.astype(np.int16) + size).astype(zero.dtype))


@fault("zero point", X86, ARM)
def zero_point_of_one_side(case: Case, _: None) -> None:
    """A value is restored with another zero point than it was rounded with."""
    with edit(case) as found:
        quantize, dequantize = found.values()[3]
        dequantize.input[2] = found.add(
            "other", found.get(quantize.input[2]) + np.asarray(1).astype(np.uint8 if "x86" in case.name else np.int8)
        )


@fault("flipped block", X86, sizes=(8, 2), unit="channels in reverse order", quick=True)
def flipped_integers(case: Case, size: int) -> None:
    """Channels of integers in reverse order."""
    with edit(case) as found:

        def flip(weight: np.ndarray) -> None:
            weight[:size] = weight[:size][::-1].copy()

        found.change(found.decoders(np.int8, 4)[4].input[0], flip)


@fault("wrong integer", X86, ARM, sizes=(64, 8, 1), unit="steps of one integer", quick=True)
def one_wrong_integer(case: Case, size: int) -> None:
    """A single integer of a weight is off."""
    with edit(case) as found:

        def change(weight: np.ndarray) -> None:
            flat = weight.reshape(-1)
            place = int(np.argmin(np.abs(flat.astype(np.int16))))
            flat[place] += size

        found.change(found.decoders(np.int8, 4)[6].input[0], change)


@fault("transposed weight", X86, TEXT8)
def transposed_integers(case: Case, _: None) -> None:
    """Integers of a square weight the wrong way round."""
    with edit(case) as found:
        rank = 4 if "resnet" in case.name else 2
        found.change(
            next(
                node.input[0]
                for node in found.decoders(np.int8, rank)
                if found.get(node.input[0]).shape[-1] == found.get(node.input[0]).shape[-2] > 1
            ),
            lambda weight: weight.swapaxes(-1, -2).copy(),
        )


@fault("channel order", X86)
def stem_of_other_squares(case: Case, _: None) -> None:
    """The stem reads the pixels of a square by column first."""
    with edit(case) as found:
        stem = next(node for node in found.decoders(np.int8, 4) if found.get(node.input[0]).shape[1] == 4)
        found.change(stem.input[0], lambda weight: weight[:, [0, 2, 1, 3]])


@fault("dropped bias", X86, sizes=(1.0, 0.01), unit="share that is lost")
def dropped_bias_of_integers(case: Case, size: float) -> None:
    """A layer of integers without (part of) its bias."""
    with edit(case) as found:
        name = found.of("Conv")[4].input[2]
        made = {output: node for node in found.nodes for output in node.output}
        name = made[name].input[0] if name in made else name
        found.change(name, lambda bias: (bias * (1 - size)).astype(bias.dtype))


@fault("wrong integer", ARM, sizes=(1000, 10, 1), unit="steps of one bias")
def one_wrong_bias(case: Case, size: int) -> None:
    """A single integer bias is off."""
    with edit(case) as found:

        def change(bias: np.ndarray) -> None:
            bias[0] += size

        found.change(found.decoders(np.int32, 1)[2].input[0], change)


@fault("embedding", TEXT8, TEXT4, sizes=("used", "unused"), unit="which two rows", quick=True)
def swapped_rows_of_integers(case: Case, size: str) -> None:
    """Two rows of the word table's integers in each other's places."""
    from injected.onnx_float import WORDS, _unused

    rows = [90, 91] if size == "used" else list(_unused(case))
    with edit(case) as found:
        for name in list(found.tensors):
            array = found.get(name)
            if array.ndim == 2 and len(array) == WORDS and array.dtype in (np.int8, np.uint8):
                array[rows] = array[rows[::-1]]
                found.set(name, array)


@fault("wrong integer", TEXT4, sizes=(4, 1), unit="steps of one 4-bit integer")
def one_code_of_a_table(case: Case, size: int) -> None:
    """A single 4-bit integer of an embedding table is off."""
    with edit(case) as found:
        name = next(node.input[0] for node in found.of("GatherBlockQuantized"))

        def change(packed: np.ndarray) -> None:
            low = packed[70, 3] & 15
            packed[70, 3] = (packed[70, 3] & 0xF0) | ((low + size) % 16)

        found.change(name, change)


@fault("wrong integer", DYNAMIC, sizes=(32, 1), unit="steps of one integer")
def one_integer_of_a_dynamic_file(case: Case, size: int) -> None:
    """A single weight of a file whose activations are rounded at run time is off."""
    with edit(case) as found:

        def change(weight: np.ndarray) -> None:
            flat = weight.reshape(-1)
            flat[int(np.argmin(np.abs(flat.astype(np.int16))))] += size

        found.change(found.of("MatMulInteger")[3].input[1], change)


@fault("zero point", DYNAMIC)
def weight_zero_point(case: Case, _: None) -> None:
    """The weights of a product have a zero point one step off."""
    with edit(case) as found:
        node = found.of("MatMulInteger")[2]
        found.change(node.input[3], lambda zero: zero + np.asarray(1, zero.dtype))


@fault("swapped scale", DYNAMIC, sizes=(2.0, 1.01), unit="factor")
def scale_of_a_dynamic_product(case: Case, size: float) -> None:
    """A product of integers is multiplied by another scale."""
    with edit(case) as found:
        scales = [node for node in found.of("Mul") if any(name in found.tensors for name in node.input)]
        node = next(
            one for one in scales if any(name in found.tensors and found.get(name).size == 1 for name in one.input)
        )
        place = next(i for i, name in enumerate(node.input) if name in found.tensors)
        node.input[place] = found.add("other", found.get(node.input[place]) * np.float32(size))


# -- weights alone


@fault("flipped block", INT4_TEXT, quick=True)
def swapped_halves_of_bytes(case: Case, _: None) -> None:
    """4-bit integers in pairs the wrong way round."""
    with edit(case) as found:
        found.change(found.of("MatMulNBits")[0].input[1], lambda packed: (packed << 4) | (packed >> 4))


@fault("wrong integer", INT4_TEXT, sizes=(8, 1), unit="steps of one 4-bit code", quick=True)
def one_wrong_code(case: Case, size: int) -> None:
    """A single 4-bit code is off."""
    with edit(case) as found:

        def change(packed: np.ndarray) -> None:
            low = packed[1, 0, 2] & 15
            packed[1, 0, 2] = (packed[1, 0, 2] & 0xF0) | ((low + size) % 16)

        found.change(found.of("MatMulNBits")[2].input[1], change)


@fault("wrong scale", INT4_TEXT, sizes=(2.0, 1.01, 1.0005), unit="factor of one block")
def scale_of_one_block(case: Case, size: float) -> None:
    """One block of a weight has another scale."""
    with edit(case) as found:

        def change(scales: np.ndarray) -> None:
            scales.reshape(-1)[3] *= size

        found.change(found.of("MatMulNBits")[1].input[2], change)


@fault("swapped scale", INT8, INT4)
def swapped_channel_scales(case: Case, _: None) -> None:
    """Two output channels have each other's scales."""
    with edit(case) as found:
        name = found.of("DequantizeLinear")[2].input[1]

        def swap(scales: np.ndarray) -> None:
            flat = scales.reshape(-1)
            flat[[0, 1]] = flat[[1, 0]]

        found.change(name, swap)


@fault("wrong number", INT4)
def weight_left_in_float(case: Case, _: None) -> None:
    """A weight that is kept in float was scaled."""
    with edit(case) as found:
        name = next(name for name in found.tensors if found.get(name).dtype == np.float32 and found.get(name).ndim > 1)
        found.change(name, lambda weight: weight * np.float32(1.001))


# -- what a quantizer recorded


def _recorded(case: Case) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((case.folder / "quantization.json").read_text())
    return content


@fault("record", X86, sizes=("gone", "cut", "empty"), unit="")
def broken_record(case: Case, size: str) -> None:
    """The numbers that the quantizer recorded are gone or cut short."""
    path = case.folder / "quantization.json"
    if size == "gone":
        path.unlink()
    else:
        path.write_text("{}" if size == "empty" else path.read_text()[:100])


@fault("calibration", X86, ARM, sizes=(64.0, 16.0, 10.0), unit="times the right range")
def consistent_wide_range(case: Case, size: float) -> None:
    """The quantizer chose, recorded and wrote a range that is too wide: everything agrees with everything else."""
    _requantized(case, lambda batch: batch * np.float32(size))


@fault("calibration", X86, sizes=(0.1, 0.3), unit="times the right range")
def consistent_narrow_range(case: Case, size: float) -> None:
    """The same with ranges that are too narrow."""
    _requantized(case, lambda batch: batch * np.float32(size))


@fault("calibration", X86, "colours-onnx-x86", sizes=("raw pixels",), unit="", quick=True)
def calibrated_without_normalisation(case: Case, _: str) -> None:
    """Calibrated on pixels of 0 to 255 that nobody normalised."""
    pixels = case.bench.data.interface.pixels
    mean, std = (np.asarray(one, np.float32).reshape(1, -1, 1, 1) for one in (pixels.mean, pixels.std))
    _requantized(case, lambda batch: (batch * std + mean) * 255)


@fault("calibration", X86, quick=True)
def calibrated_on_blank_images(case: Case, _: None) -> None:
    """Calibrated on images without content."""
    _requantized(case, lambda batch: np.zeros_like(batch) - 1)


@fault("calibration", X86, sizes=(8.0,), unit="times the deviation of pixels")
def calibrated_on_noise(case: Case, size: float) -> None:
    """Calibrated on Gaussian noise."""
    chance = np.random.default_rng(0)
    _requantized(case, lambda batch: chance.standard_normal(batch.shape).astype(np.float32) * np.float32(size))


def _requantized(case: Case, change: Any) -> None:
    """The case's file made again by its quantizer, calibrated on changed inputs."""
    import torch
    from injected.cases import SCHEMES

    _, quantizer = SCHEMES[case.name.split("-", 1)[1]]
    data, folder = case.bench.data, case.root / "requantized"

    class Changed:
        interface = data.interface

        def size(self, split: Any) -> int:
            return int(data.size(split))

        def batch(self, split: Any, indices: Any, **options: Any) -> Any:
            batch = data.batch(split, indices, **options)
            return {**batch, "pixel_values": torch.from_numpy(change(batch["pixel_values"].numpy()))}

    job = case.bench.job(folder)
    task = job.task.model_copy()
    changed = _Opened(task, Changed())
    facts = quantizer.quantize(case.inputs["unquantized"], dataclasses.replace(job, task=changed))
    case.put("file", case.bench.artifact(folder, "onnx", {"quantization": facts}))


class _Opened:
    """A task that opens other data."""

    def __init__(self, task: Any, data: Any) -> None:
        self._task, self._data = task, data

    def open(self, model: Any = None) -> Any:
        return self._data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)
