"""Faults of language models in ONNX (keys and values are inputs and outputs) and in Core ML (they are states)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from injected.cases import Case
from injected.coreml_packages import constants_first
from injected.editing import (
    OnnxEdit,
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
from onnx import helper, numpy_helper

from edgeforge import gguf_names
from edgeforge.runtimes import coreml as runtime

ONNX, ONNX4, COREML, COREML4 = (
    "llama-onnx-float",
    "llama-onnx-int4",
    "llama-coreml-float",
    "llama-coreml-int4",
)
HEAD, WIDTH, WORDS = 16, 64, 352
SCALE = "constexpr_blockwise_shift_scale"


def edit(case: Case) -> OnnxEdit:
    return OnnxEdit(case.folder)


# -- ONNX: what is remembered


@fault("KV cache", ONNX, ONNX4, sizes=("every block", "one block"), unit="", quick=True)
def keys_one_place_early(case: Case, size: str) -> None:
    """What is handed on as keys is turned by one place: each token is remembered with the next one's key."""
    with edit(case) as found:
        for block in range(3 if size == "every block" else 1):
            name = f"present.{block}.key"
            maker = next(node for node in found.nodes if name in node.output)
            maker.output[0] = f"{name}.right"
            found.instead(name, f"{name}.right")
            zero, one, end, axis = (found.add(f"{name}.{value}", np.int64([value])) for value in (0, 1, 2**31, 2))
            found.nodes.extend(
                [
                    helper.make_node("Slice", [f"{name}.right", one, end, axis], [f"{name}.rest"]),
                    helper.make_node("Slice", [f"{name}.right", zero, one, axis], [f"{name}.first"]),
                    helper.make_node("Concat", [f"{name}.rest", f"{name}.first"], [name], axis=2),
                ]
            )


@fault("KV cache", ONNX, sizes=("every block", "one block"), unit="")
def forgotten_values(case: Case, size: str) -> None:
    """Values that were remembered are not used: zeros stand for them."""
    with edit(case) as found:
        nothing = found.add("nothing", np.float32(0))
        for block in range(3 if size == "every block" else 1):
            past = f"past_key_values.{block}.value"
            reader = next(node for node in found.nodes if past in node.input and node.op_type == "Concat")
            found.insert(helper.make_node("Mul", [past, nothing], [f"{past}.lost"]), before=reader)
            found.instead(past, f"{past}.lost", after=f"{past}.lost")


@fault("KV cache", ONNX, quick=True)
def positions_off_by_one_behind_a_past(case: Case, _: None) -> None:
    """Tokens that follow remembered ones are turned by one position more than they should be."""
    with edit(case) as found:
        first = next(node for node in found.nodes if "position_ids" in node.input)
        nothing, one = found.add("nothing", np.int64(0)), found.add("one", np.int64(1))
        lengths, axis = "past.lengths", found.add("axis", np.int64(2))
        past = "past_key_values.0.key"
        for node in (
            helper.make_node("Shape", [past], [lengths]),
            helper.make_node("Gather", [lengths, axis], ["past.length"]),
            helper.make_node("Min", ["past.length", one], ["past.any"]),
            helper.make_node("Add", ["past.any", nothing], ["shift"]),
            helper.make_node("Add", ["position_ids", "shift"], ["positions"]),
        ):
            found.insert(node, before=first)
        found.instead("position_ids", "positions", after="positions")


@fault("KV cache", ONNX, sizes=("the next one is seen", "itself is not seen"), unit="", quick=True)
def causal_mask_off_by_one(case: Case, size: str) -> None:
    """The mask between a token and those before it begins one place late, or early."""
    with edit(case) as found:
        (compare,) = (node for node in found.nodes if node.op_type in ("LessOrEqual", "GreaterOrEqual"))
        later = int(compare.op_type == "LessOrEqual")
        one = found.add("one", np.int64(1 if size == "the next one is seen" else -1))
        found.insert(helper.make_node("Add", [compare.input[later], one], ["moved"]), before=compare)
        compare.input[later] = "moved"


# -- ONNX: numbers


def _constant(found: OnnxEdit, wanted: Callable[[np.ndarray], bool]) -> Any:
    """The value of a Constant node, as a tensor that may be changed."""
    for node in found.of("Constant"):
        if node.attribute[0].HasField("t") and wanted(numpy_helper.to_array(node.attribute[0].t)):
            return node.attribute[0].t
    raise AssertionError("no such constant")


@fault("rotary positions", ONNX, sizes=(2.0, 1.01), unit="factor of all frequencies", quick=True)
def other_frequencies(case: Case, size: float) -> None:
    """Positions are turned by other angles."""
    with edit(case) as found:
        tensor = _constant(found, lambda array: array.dtype == np.float32 and array.size == HEAD // 2)
        array = numpy_helper.to_array(tensor) * np.float32(size)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@fault("permuted rope", ONNX, sizes=(4, 1), unit="heads whose columns stand in another order")
def columns_as_llama_cpp_has_them(case: Case, size: int) -> None:
    """Queries of heads are turned to llama.cpp's order of rows, which this file's arithmetic does not expect."""
    with edit(case) as found:
        name = found.layers()[0].input[1]

        def turn(weight: np.ndarray) -> None:
            weight[:, : size * HEAD] = gguf_names.paired(weight.T[: size * HEAD], HEAD).T

        found.change(name, turn)


@fault("swapped layers", ONNX)
def products_of_each_other(case: Case, _: None) -> None:
    """Two blocks have each other's queries."""
    with edit(case) as found:
        square = [node.input[1] for node in found.layers() if found.get(node.input[1]).shape == (WIDTH, WIDTH)]
        one, other = found.get(square[0]), found.get(square[2])
        found.set(square[0], other)
        found.set(square[2], one)


@fault("dropped norm", ONNX, sizes=(1.0, 0.001), unit="share of the way to 1")
def norm_of_an_onnx_decoder(case: Case, size: float) -> None:
    """The weights of a normalization are lost: all are (nearly) 1."""
    with edit(case) as found:
        name = found.with_shape(WIDTH)[1]
        found.change(name, lambda weight: weight + np.float32(size) * (1 - weight))


@fault("embedding", ONNX, sizes=("used", "unused"), unit="which two rows")
def rows_of_an_onnx_decoder(case: Case, size: str) -> None:
    """Two rows of the table of tokens in each other's places."""
    rows = [70, 71] if size == "used" else [3, 4]
    with edit(case) as found:
        name = found.with_shape(WORDS, WIDTH)[0]
        found.change(name, lambda table: table.__setitem__(rows, table[rows[::-1]]))


def _product(found: OnnxEdit) -> Any:
    return found.of("MatMulNBits")[4]


@fault("wrong integer", ONNX4, sizes=(4, 1), unit="steps of one 4-bit code", quick=True)
def code_of_a_decoder(case: Case, size: int) -> None:
    """A single 4-bit code is off."""
    with edit(case) as found:

        def change(codes: np.ndarray) -> None:
            flat = codes.reshape(-1)
            flat[7] = (flat[7] & 0xF0) | (flat[7] + size & 15)

        found.change(_product(found).input[1], change)


@fault("wrong scale", ONNX4, sizes=(2.0, 1.001), unit="factor of one block")
def scale_of_a_decoder(case: Case, size: float) -> None:
    """A single scale is off."""
    with edit(case) as found:
        found.change(
            _product(found).input[2], lambda scales: scales.reshape(-1).__setitem__(3, scales.reshape(-1)[3] * size)
        )


# -- what lies beside both


@fault("special tokens", ONNX, sizes=("generation_config.json", "config.json"), unit="")
def text_that_ends_elsewhere(case: Case, size: str) -> None:
    """The file that says which token ends a text names another one."""
    edit_json(case.folder / size, lambda content: content.update(eos_token_id=9))


@fault("chat template", ONNX, COREML, sizes=("another", "a blank more"), unit="")
def template_beside_a_decoder(case: Case, size: str) -> None:
    """Chats are written in another form than the model learnt."""
    path = case.folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8")
    path.write_text(
        "{{ messages }}" if size == "another" else text.replace("assistant", "assistant ", 1), encoding="utf-8"
    )


@fault("tokenizer", ONNX, COREML4)
def tokenizer_of_another_decoder(case: Case, _: None) -> None:
    """The tokenizer beside the file has two tokens in each other's places."""

    def change(content: dict[str, Any]) -> None:
        words = content["model"]["vocab"]
        one, other = sorted(words, key=lambda word: words[word])[-2:]
        words[one], words[other] = words[other], words[one]

    edit_json(case.folder / "tokenizer.json", change)


# -- Core ML: states


def _numbers_of(case: Case, name: str) -> tuple[int, int]:
    """(start, bytes) in weight.bin of a named constant."""
    with spec_of(case.folder) as spec:
        value = constant_of(spec, name)
        offset = value.blobFileValue.offset
        shape = [int(one.constant.size) for one in value.type.tensorType.dimensions]
        kind = value.type.tensorType.dataType
    content = (case.folder / runtime.PACKAGE / runtime.WEIGHTS_FILE).read_bytes()
    start = int.from_bytes(content[offset + 16 : offset + 24], "little")
    return start, int(np.prod(shape)) * (2 if kind == 10 else 4)


@fault("KV cache", COREML, sizes=("one early", "one late"), unit="")
def state_written_beside_its_place(case: Case, size: str) -> None:
    """Keys and values are written at the place beside the token's."""
    with spec_of(case.folder) as spec:
        name = operations_of(spec, "equal")[0].inputs["x"].arguments[0].name
    move = 1 if size == "one early" else -1
    change_numbers(case.folder, _numbers_of(case, name), lambda places: np.add(places, move, out=places), np.int32)


@fault("KV cache", COREML, sizes=("the next one is seen", "itself is not seen"), unit="")
def states_mask_off_by_one(case: Case, size: str) -> None:
    """The mask of what was remembered begins one place late, or early."""
    with spec_of(case.folder) as spec:
        name = operations_of(spec, "greater")[0].inputs["x"].arguments[0].name
    move = -1 if size == "the next one is seen" else 1
    change_numbers(case.folder, _numbers_of(case, name), lambda places: np.add(places, move, out=places), np.int32)


@fault("attention mask", COREML)
def states_mask_without_effect(case: Case, _: None) -> None:
    """What is added to the scores of places that hold no token yet is nearly nothing."""
    with spec_of(case.folder) as spec:
        later = operations_of(spec, "greater")[0].outputs[0].name
        cast = next(one for one in operations_of(spec, "cast") if one.inputs["x"].arguments[0].name == later)
        masked = next(
            one for one in operations_of(spec, "mul") if one.inputs["x"].arguments[0].name == cast.outputs[0].name
        )
        scale_scalar(argument(spec, masked, "y"), 1e-5)


@fault("KV cache", COREML, COREML4, sizes=("never written", "another block's"), unit="")
def state_of_one_block(case: Case, size: str) -> None:
    """The keys of one block are never kept, or kept as another block's."""
    with spec_of(case.folder) as spec:
        writes = [one for one in operations_of(spec, "write_state") if "key" in one.inputs["input"].arguments[0].name]
        if size == "another block's":
            first, second = (one.inputs["input"].arguments[0] for one in writes[:2])
            first.name, second.name = second.name, first.name
        else:
            main = spec.mlProgram.functions["main"]
            operations = main.block_specializations[main.opset].operations
            place = next(number for number, one in enumerate(operations) if one == writes[1])
            del operations[place]


@fault("interface", COREML, sizes=("half", "one less"), unit="places in one state")
def smaller_state(case: Case, size: str) -> None:
    """The package promises room for fewer tokens in one of its states."""
    with spec_of(case.folder) as spec:
        shape = spec.description.state[1].type.stateType.arrayType.shape
        shape[2] = shape[2] // 2 if size == "half" else shape[2] - 1


@fault("special tokens", COREML, sizes=("ends", "pad_id", "context", "chunk"), unit="")
def tokens_in_metadata(case: Case, size: str) -> None:
    """The package tells apps another end, another filling, or another length of texts."""
    with spec_of(case.folder) as spec:
        said = json.loads(spec.description.metadata.userDefined[runtime.TOKENS_KEY])
        said[size] = [7] if size == "ends" else said[size] - 1
        spec.description.metadata.userDefined[runtime.TOKENS_KEY] = json.dumps(said)


# -- Core ML: numbers


@fault("rotary positions", COREML, sizes=(2.0, 1.1), unit="factor of all frequencies")
def other_frequencies_in_a_package(case: Case, size: float) -> None:
    """Positions are turned by other angles."""
    with spec_of(case.folder) as spec:
        product = next(one for one in operations_of(spec, "matmul") if "const" not in one.outputs[0].name)
        tensor = argument(spec, product, "x").immediateValue.tensor
        numbers = np.frombuffer(tensor.bytes.values, np.float16)
        assert numbers.size == HEAD // 2
        tensor.bytes.values = (numbers * np.float16(size)).astype(np.float16).tobytes()


@fault("dropped norm", COREML, COREML4)
def norm_of_a_package_left_out(case: Case, _: None) -> None:
    """The weights of a normalization are not used."""
    with spec_of(case.folder) as spec:
        norm = next(one for one in operations_of(spec, "mul") if "layernorm" in one.inputs["x"].arguments[0].name)
        read_instead(spec, norm.outputs[0].name, norm.inputs["y"].arguments[0].name)


@fault("swapped layers", COREML)
def products_of_a_package(case: Case, _: None) -> None:
    """Two layers of one shape read each other's weights."""
    with spec_of(case.folder) as spec:
        constants_first(spec)
        values, other = (operations_of(spec, "linear")[number].inputs["weight"].arguments[0] for number in (1, 2))
        values.name, other.name = other.name, values.name


@fault("flipped block", COREML4, sizes=(16, 1), unit="bytes")
def bytes_of_a_package(case: Case, size: int) -> None:
    """Bytes of integers are inverted."""
    start, _ = blobs(case.folder, SCALE, "data")[2]
    with weights_of(case.folder) as content:
        content[start : start + size] = bytes(255 - byte for byte in content[start : start + size])


@fault("wrong scale", COREML4, sizes=(2.0, 1.001), unit="factor of one scale")
def scale_of_a_package(case: Case, size: float) -> None:
    """A single scale is off."""
    place = blobs(case.folder, SCALE, "scale")[2]
    change_numbers(case.folder, place, lambda scales: scales.put(3, scales[3] * np.float16(size)))
