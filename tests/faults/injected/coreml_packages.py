"""Faults of Core ML packages."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from injected.cases import Case
from injected.editing import (
    argument,
    blobs,
    change_numbers,
    constant_of,
    edit_json,
    operations_of,
    read_instead,
    scale_scalar,
    spec_of,
    weights_of,
)
from injected.registry import fault

from edgeforge.models import loading
from edgeforge.runtimes import coreml as runtime

IMAGES, INT4, INT8, PALETTES = (f"resnet-coreml-{scheme}" for scheme in ("float", "int4", "int8", "palettes"))
TEXTS, FLEXIBLE, TEXT4, COLOURS = (
    "bert-coreml-float",
    "roberta-coreml-flexible",
    "bert-coreml-int4",
    "colours-coreml-float",
)
SCALE = "constexpr_blockwise_shift_scale"


# -- weights


@fault("wrong number", IMAGES, TEXTS, sizes=(14, 8, 3), unit="bit of one float16 that is flipped", quick=True)
def flipped_bit(case: Case, size: int) -> None:
    """A bit of one weight is flipped."""
    place = max(blobs(case.folder, "const", "val"), key=lambda one: one[1])

    def flip(numbers: np.ndarray) -> None:
        numbers.view(np.uint16)[7] ^= np.uint16(1 << size)

    change_numbers(case.folder, place, flip)


@fault("wrong integer", INT4, TEXT4, sizes=(8, 1), unit="steps of one 4-bit code", quick=True)
def one_code(case: Case, size: int) -> None:
    """A single 4-bit code is off."""
    start, _ = blobs(case.folder, SCALE, "data")[1]
    with weights_of(case.folder) as content:
        content[start + 5] = (content[start + 5] & 0xF0) | ((content[start + 5] + size) & 15)


@fault("wrong integer", INT8, sizes=(64, 1), unit="steps of one integer")
def one_integer(case: Case, size: int) -> None:
    """A single 8-bit integer is off."""
    start, _ = blobs(case.folder, SCALE, "data")[2]
    with weights_of(case.folder) as content:
        content[start + 9] = (content[start + 9] + size) % 256


@fault("flipped block", INT4, INT8, sizes=(32, 1), unit="bytes")
def flipped_bytes(case: Case, size: int) -> None:
    """Bytes of integers are inverted."""
    start, _ = blobs(case.folder, SCALE, "data")[1]
    with weights_of(case.folder) as content:
        content[start : start + size] = bytes(255 - byte for byte in content[start : start + size])


@fault("swapped scale", INT4, TEXT4, quick=True)
def swapped_scales(case: Case, _: None) -> None:
    """Two blocks have each other's scales."""
    place = blobs(case.folder, SCALE, "scale")[0]

    def swap(scales: np.ndarray) -> None:
        first = int(np.flatnonzero(scales[1:] != scales[:-1])[0])
        scales[[first, first + 1]] = scales[[first + 1, first]]

    change_numbers(case.folder, place, swap)


@fault("wrong scale", INT8, INT4, sizes=(2.0, 1.01, 1.001), unit="factor of one scale")
def one_scale(case: Case, size: float) -> None:
    """A single scale is off."""
    place = blobs(case.folder, SCALE, "scale")[0]
    change_numbers(case.folder, place, lambda scales: scales.put(3, scales[3] * np.float16(size)))


@fault("palette", PALETTES, sizes=(4, 1), unit="places in the palette", quick=True)
def index_off(case: Case, size: int) -> None:
    """A weight takes another entry of its palette."""
    start, _ = blobs(case.folder, "constexpr_lut_to_dense", "indices")[0]
    with weights_of(case.folder) as content:
        content[start] = (content[start] & 0xF0) | ((content[start] + size) & 15)


@fault("palette", PALETTES, sizes=(2.0, 1.01, 1.001), unit="factor of one entry")
def palette_entry(case: Case, size: float) -> None:
    """An entry of a palette is off."""
    place = blobs(case.folder, "constexpr_lut_to_dense", "lut")[1]
    change_numbers(case.folder, place, lambda values: values.put(5, values[5] * np.float16(size)))


@fault("palette", PALETTES)
def rotated_palette(case: Case, _: None) -> None:
    """Palettes begin at their second entry."""
    place = blobs(case.folder, "constexpr_lut_to_dense", "lut")[0]

    def rotate(values: np.ndarray) -> None:
        values[:] = np.roll(values.reshape(-1, 16), -1, axis=1).reshape(-1)

    change_numbers(case.folder, place, rotate)


@fault("dropped bias", IMAGES, TEXTS, quick=True)
def program_without_bias(case: Case, _: None) -> None:
    """A layer without its bias."""
    with spec_of(case.folder) as spec:
        kind = "conv" if "resnet" in case.name else "linear"
        del operations_of(spec, kind)[3].inputs["bias"]


@fault("swapped layers", TEXTS, INT4)
def layers_of_each_other(case: Case, _: None) -> None:
    """Two layers of one shape read each other's weights."""
    with spec_of(case.folder) as spec:
        kind = "linear" if "bert" in case.name else "conv"
        # Both are constants, which then stand before everything that reads them.
        constants_first(spec)
        types = {one.outputs[0].name: str(one.outputs[0].type) for one in operations_of(spec)}
        seen: dict[str, Any] = {}
        for layer in operations_of(spec, kind):
            weight = layer.inputs["weight"].arguments[0]
            other = seen.setdefault(types[weight.name], weight)
            if other is not weight:
                weight.name, other.name = other.name, weight.name
                return
        raise AssertionError("no two alike")


def constants_first(spec: Any) -> None:
    main = spec.mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    copies = [type(one).FromString(one.SerializeToString()) for one in operations]
    ordered = sorted(copies, key=lambda one: not one.type.startswith("const"))
    for place, one in enumerate(ordered):
        operations[place].CopyFrom(one)


@fault("embedding", TEXTS, sizes=("used", "unused"), unit="which two rows", quick=True)
def swapped_rows_of_a_package(case: Case, size: str) -> None:
    """Two rows of the word table in each other's places."""
    from injected.onnx_float import WIDTH, WORDS, _unused

    rows = [90, 91] if size == "used" else list(_unused(case))
    place = next(one for one in blobs(case.folder, "const", "val") if one[1] == 2 * WORDS * WIDTH)

    def swap(numbers: np.ndarray) -> None:
        table = numbers.reshape(WORDS, WIDTH)
        table[rows] = table[rows[::-1]]

    change_numbers(case.folder, place, swap)


# -- wiring


@fault("wiring", IMAGES, quick=True)
def missing_relu(case: Case, _: None) -> None:
    """A ReLU is left out."""
    with spec_of(case.folder) as spec:
        relu = operations_of(spec, "relu")[3]
        read_instead(spec, relu.outputs[0].name, relu.inputs["x"].arguments[0].name)


@fault("wiring", IMAGES)
def residual_of_another_place(case: Case, _: None) -> None:
    """A residual connection adds the same branch twice."""
    with spec_of(case.folder) as spec:
        add = operations_of(spec, "add")[2]
        add.inputs["y"].arguments[0].name = add.inputs["x"].arguments[0].name


@fault("wrong semantics", TEXTS)
def gelu_by_tanh(case: Case, _: None) -> None:
    """GELU by its tanh approximation."""
    with spec_of(case.folder) as spec:
        for one in operations_of(spec, "gelu"):
            argument(spec, one, "mode").immediateValue.tensor.strings.values[0] = "TANH_APPROXIMATION"


@fault("wrong semantics", TEXTS)
def softmax_along_another_axis(case: Case, _: None) -> None:
    """Softmax over the wrong axis."""
    with spec_of(case.folder) as spec:
        argument(spec, operations_of(spec, "softmax")[0], "axis").immediateValue.tensor.ints.values[0] = 2


@fault("wrong scale", TEXTS, "vit-coreml-int4", sizes=(1.4, 1.1), unit="factor")
def program_attention_scale(case: Case, size: float) -> None:
    """Attention scores are divided by another number."""
    with spec_of(case.folder) as spec:
        scales = [one for one in operations_of(spec, "mul") if "const" in one.inputs["y"].arguments[0].name]
        scale_scalar(argument(spec, scales[-1], "y"), size)


@fault("attention mask", TEXTS, FLEXIBLE, quick=True)
def mask_without_effect(case: Case, _: None) -> None:
    """What is added to the scores of padding is (nearly) nothing."""
    with spec_of(case.folder) as spec:
        for one in operations_of(spec, "select"):
            if "a" in one.inputs and one.inputs["a"].arguments[0].name.endswith("bounded_to_fp16"):
                scale_scalar(constant_of(spec, one.inputs["a"].arguments[0].name), 1e-5)


@fault("wrong semantics", IMAGES)
def other_side_padded(case: Case, _: None) -> None:
    """Padding at the other side of a strided convolution."""
    with spec_of(case.folder) as spec:
        for one in operations_of(spec, "conv"):
            pad = argument(spec, one, "pad").immediateValue.tensor.ints.values
            strides = argument(spec, one, "strides").immediateValue.tensor.ints.values
            if list(strides) == [2, 2] and list(pad) == [1, 1, 1, 1]:
                pad[:] = [0, 2, 0, 2]
                argument(spec, one, "pad_type").immediateValue.tensor.strings.values[0] = "custom"
                return
        raise AssertionError("no such convolution")


@fault("wrong number", TEXTS, sizes=(0.1, 0.01), unit="epsilon of one layer_norm")
def program_epsilon(case: Case, size: float) -> None:
    """Layer normalization with another epsilon."""
    with spec_of(case.folder) as spec:
        value = argument(spec, operations_of(spec, "layer_norm")[2], "epsilon").immediateValue.tensor
        value.bytes.values = np.float16(size).tobytes()


# -- the interface


@fault("labels", IMAGES, TEXTS, quick=True)
def shuffled_classes(case: Case, _: None) -> None:
    """Two labels of the classifier in each other's places."""
    with spec_of(case.folder) as spec:
        values = operations_of(spec, "classify")[0].inputs["classes"].arguments[0].value.immediateValue.list.values
        first = type(values[0]).FromString(values[0].SerializeToString())
        values[0].CopyFrom(values[1])
        values[1].CopyFrom(first)


@fault("labels", IMAGES)
def scores_without_softmax(case: Case, _: None) -> None:
    """The label is chosen by scores that are no probabilities."""
    with spec_of(case.folder) as spec:
        softmax = operations_of(spec, "softmax")[-1]
        read_instead(spec, softmax.outputs[0].name, softmax.inputs["x"].arguments[0].name)


@fault("preprocessing", IMAGES, COLOURS, quick=True)
def package_without_normalisation(case: Case, _: None) -> None:
    """Pixels of 0 to 255 go into the network as they are."""
    with spec_of(case.folder) as spec:
        conv = operations_of(spec, "conv")[0]
        cast = operations_of(spec, "cast")[0]
        conv.inputs["x"].arguments[0].name = cast.outputs[0].name


@fault("preprocessing", IMAGES, sizes=(2.0, 1.1, 1.01), unit="factor")
def package_with_another_factor(case: Case, size: float) -> None:
    """Pixels are multiplied by another number."""
    with spec_of(case.folder) as spec:
        scale_scalar(argument(spec, operations_of(spec, "mul")[0], "y"), size)


@fault("channel order", COLOURS, quick=True)
def bgr_images(case: Case, _: None) -> None:
    """The package asks for images in the order blue, green, red."""
    with spec_of(case.folder) as spec:
        image = spec.description.input[0].type.imageType
        image.colorSpace = type(image).ColorSpace.Value("BGR")


@fault("channel order", COLOURS)
def program_stem_in_bgr(case: Case, _: None) -> None:
    """The first convolution's input channels in the order blue, green, red."""
    with spec_of(case.folder) as spec:
        name = operations_of(spec, "conv")[0].inputs["weight"].arguments[0].name
        offset = constant_of(spec, name).blobFileValue.offset
        shape = [int(one.constant.size) for one in constant_of(spec, name).type.tensorType.dimensions]
    size = 2 * int(np.prod(shape))
    path = case.folder / runtime.PACKAGE / runtime.WEIGHTS_FILE
    start = int.from_bytes(path.read_bytes()[offset + 16 : offset + 24], "little")

    def turn(numbers: np.ndarray) -> None:
        numbers[:] = numbers.reshape(shape)[:, ::-1].reshape(-1)

    change_numbers(case.folder, (start, size), turn)


@fault("interface", IMAGES)
def other_image_size(case: Case, _: None) -> None:
    """The package asks for wider images than its program takes."""
    with spec_of(case.folder) as spec:
        spec.description.input[0].type.imageType.width += 1


@fault("interface", TEXTS)
def float_mask(case: Case, _: None) -> None:
    """The mask is to be handed over as floats."""
    with spec_of(case.folder) as spec:
        array = spec.description.input[1].type.multiArrayType
        array.dataType = type(array).ArrayDataType.Value("FLOAT32")


@fault("interface", TEXTS, FLEXIBLE)
def other_default_length(case: Case, _: None) -> None:
    """The package asks for longer texts than its program takes."""
    with spec_of(case.folder) as spec:
        for value in spec.description.input:
            value.type.multiArrayType.shape[1] = 128


@fault("stale cache", IMAGES)
def recipe_of_another_model(case: Case, _: None) -> None:
    """The package says that it was made of another artifact."""
    with spec_of(case.folder) as spec:
        spec.description.metadata.userDefined[runtime.RECIPE_KEY] = "1" * 64


@fault("tokenizer", TEXTS)
def other_padding_in_metadata(case: Case, _: None) -> None:
    """The package tells apps to fill up with another token."""
    with spec_of(case.folder) as spec:
        said = json.loads(spec.description.metadata.userDefined[runtime.TOKENS_KEY])
        spec.description.metadata.userDefined[runtime.TOKENS_KEY] = json.dumps({**said, "pad_id": 4})


@fault("tokenizer", TEXTS)
def tokenizer_of_another_package(case: Case, _: None) -> None:
    """The tokenizer beside the package has two words in each other's places."""

    def change(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        words["meeting"], words["prize"] = words["prize"], words["meeting"]

    edit_json(case.folder / "tokenizer.json", change)


# -- float16, and files that are not whole


@fault("float16 overflow", IMAGES, sizes=(1e7, 1e5), unit="factor between two layers", quick=True)
def overflow(case: Case, size: float) -> None:
    """One layer gives numbers so large that float16 has none, and the next one makes them small again: in float32 the
    function is the same."""
    from edgeforge.exporters.coreml import Coreml

    model = loading.load(case.inputs["model"].path)
    layers = model.resnet.encoder.stages[1].layers[1].layer
    for number, factor in ((0, size), (1, 1 / size)):
        norm = layers[number].normalization
        norm.weight.data *= factor
        if not number:
            norm.bias.data *= factor
    # The second normalization sees inputs that much larger; its statistics follow, as they would in training.
    layers[1].normalization.weight.data *= size
    layers[1].normalization.running_mean.data *= size
    layers[1].normalization.running_var.data *= size**2
    folder = case.root / "large"
    loading.save(model, folder)
    made = case.bench.artifact(folder, "torch")
    for role in ("model", "reference"):
        case.put(role, made)
    file = case.root / "large.coreml"
    Coreml().export(made, case.bench.job(file))
    case.put("file", case.bench.artifact(file, "coreml"))


@fault("truncated file", INT4, sizes=(0.3, -1), unit="share that is left, or a byte less", quick=True)
def truncated_weights(case: Case, size: float) -> None:
    """The weights end early."""
    path = case.folder / runtime.PACKAGE / runtime.WEIGHTS_FILE
    content = path.read_bytes()
    end = max(start + count for start, count in blobs(case.folder, SCALE, "scale"))
    path.write_bytes(content[: end - 1 if size < 0 else int(size * len(content))])


@fault("truncated file", TEXTS, sizes=(0.5, 0.99), unit="share that is left")
def truncated_program(case: Case, size: float) -> None:
    """The program ends early."""
    path = case.folder / runtime.PACKAGE / runtime.MODEL_FILE
    content = path.read_bytes()
    path.write_bytes(content[: int(size * len(content))])


@fault("unsafe file", IMAGES)
def manifest_that_leaves_the_package(case: Case, _: None) -> None:
    """The manifest names a file outside of the package."""

    def change(content: dict[str, Any]) -> None:
        for item in content["itemInfoEntries"].values():
            item["path"] = "../../../elsewhere"

    edit_json(case.folder / runtime.PACKAGE / runtime.MANIFEST, change)
