"""One quantization, every format: the integers and scales in each file are those that the quantizer left beside torch.

Every file is read by something that EdgeForge has no part in: onnx's protobuf, coremltools' own loader of programs,
gguf's reader. How they are packed is unpacked here, from what each format's documentation says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edgeforge.core.artifact import Artifact
from edgeforge.exporters.coreml import Coreml
from edgeforge.exporters.gguf import Gguf
from edgeforge.exporters.onnx import Onnx
from edgeforge.quantizers.int4_weights import Int4Weights
from edgeforge.quantizers.int8_weights import Int8Weights

GROUP = 32
QUANTIZERS = {4: Int4Weights(block_size=GROUP), 8: Int8Weights(block_size=GROUP)}
Weight = tuple[np.ndarray, np.ndarray]
"""Integers, int8, (rows, columns), and scales, float16, (rows, columns / GROUP)."""

by_optimum = pytest.mark.skipif(find_spec("optimum") is None, reason="needs optimum")


def chosen(model: Artifact) -> dict[str, Weight]:
    """Parameter name -> what ``quantization.safetensors`` holds."""
    from safetensors.numpy import load_file

    tensors = load_file(model.path / "quantization.safetensors")
    names = sorted(name.removesuffix(".integers") for name in tensors if name.endswith(".integers"))
    return {name: (tensors[f"{name}.integers"], tensors[f"{name}.scales"]) for name in names}


def equal(one: Weight, other: Weight) -> bool:
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def assert_same(wanted: Mapping[str, Weight], found: list[Weight]) -> None:
    """Every weight is there, and nothing else."""
    assert len(wanted) > 8
    for name, weight in wanted.items():
        assert any(equal(weight, other) for other in found), name
    for other in found:
        assert any(equal(weight, other) for weight in wanted.values())


def halves(packed: np.ndarray) -> np.ndarray:
    """Two 4-bit codes of each byte, the lower half first: (..., n) -> (..., 2n)."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


# -- readers


def in_onnx(path: Path) -> Iterator[Weight]:
    """https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, and ONNX's DequantizeLinear."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        said = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "MatMulNBits":
            codes, scales = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
            assert said["block_size"] == GROUP and not any(node.input[3:5])  # no zero points: half of the range
            rows, columns, bits = said["N"], said["K"], said["bits"]
            codes = codes.reshape(rows, -1)
            codes = halves(codes) if bits == 4 else codes
            yield _centred(codes[:, :columns], bits), _half(scales.reshape(rows, -1))
        elif node.op_type == "GatherBlockQuantized":
            codes, scales = numpy_helper.to_array(constants[node.input[0]]), constants[node.input[2]]
            assert said["block_size"] == GROUP and said["quantize_axis"] == 1 and len(node.input) == 3
            codes = halves(codes) if said["bits"] == 4 else codes
            yield _centred(codes, said["bits"]), _half(numpy_helper.to_array(scales))
        elif node.op_type == "DequantizeLinear" and node.input[0] in constants:
            integers, scales = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
            integers = integers.astype(np.int8)
            assert said["block_size"] == GROUP and len(node.input) == 2
            yield (integers, _half(scales)) if said["axis"] == 1 else (integers.T, _half(scales.T))


def _centred(codes: np.ndarray, bits: int) -> np.ndarray:
    return (codes.astype(np.int16) - 2 ** (bits - 1)).astype(np.int8)


def _half(scales: np.ndarray) -> np.ndarray:
    """Float32 scales that float16 holds exactly."""
    rounded: np.ndarray = scales.astype(np.float16)
    assert np.array_equal(rounded.astype(np.float32), scales)
    return rounded


def in_core_ml(path: Path) -> Iterator[Weight]:
    """Values of constexpr_blockwise_shift_scale, as coremltools' own reader of programs sees them."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    package = path / "Data" / "com.apple.CoreML"
    spec = coremltools.utils.load_spec(str(path))
    program = load(spec, specification_version=spec.specificationVersion, file_weights_dir=str(package / "weights"))
    for function in program.functions.values():
        for operation in function.find_ops(op_type="constexpr_blockwise_shift_scale"):
            assert operation.offset is None
            shape = operation.data.val.shape
            assert all(size == 1 for size in shape[:-2])
            integers, scales = operation.data.val.astype(np.int8), operation.scale.val
            assert scales.dtype == np.float16
            yield integers.reshape(shape[-2:]), scales.reshape(*scales.shape[-2:])


NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def in_gguf(path: Path) -> Iterator[tuple[str, Weight]]:
    """Q4_0: a scale, then 16 bytes whose lower halves are the first 16 codes. Q8_0: a scale, then 32 integers.

    Rows of queries and keys stand in pairs (2i, 2i + 1) of a head, where Hugging Face has (i, i + half a head).
    """
    import gguf

    reader = gguf.GGUFReader(path)
    head = int(reader.fields["llama.attention.key_length"].contents())
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind not in ("Q4_0", "Q8_0"):
            continue
        size = {"Q4_0": 18, "Q8_0": 34}[kind]
        blocks = np.asarray(tensor.data).reshape(tensor.data.shape[0], -1, size)
        scales = blocks[..., :2].copy().view(np.float16)[..., 0]
        stored = blocks[..., 2:]
        integers = (
            np.concatenate([stored & 15, stored >> 4], axis=-1).astype(np.int8) - 8
            if kind == "Q4_0"
            else stored.copy().view(np.int8)
        )
        integers = integers.reshape(len(integers), -1)
        parts = tensor.name.split(".")
        name = "model.embed_tokens" if parts[0] == "token_embd" else f"model.layers.{parts[1]}.{NAMES[parts[2]]}"
        if parts[-2] in ("attn_q", "attn_k"):
            integers, scales = (
                rows.reshape(-1, head // 2, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)
                for rows in (integers, scales)
            )
        yield f"{name}.weight", (integers, scales)


# -- the same everywhere


@pytest.mark.parametrize("bits", [4, 8])
def test_an_encoder_holds_the_same_integers_in_two_files(mails: Any, bits: int, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")

    class Wider(type(mails)):  # type: ignore[misc]
        tiny: ClassVar = {"bert": {**mails.tiny["bert"], "hidden_size": 64, "intermediate_size": 96}}

    bench = Wider(tmp_path)
    QUANTIZERS[bits].quantize(bench.torch("bert"), bench.job(tmp_path / "torch"))
    model = bench.artifact(tmp_path / "torch", "torch")
    Onnx().export(model, bench.job(tmp_path / "onnx"))
    Coreml().export(model, bench.job(tmp_path / "coreml"))
    wanted = chosen(model)
    assert_same(wanted, list(in_onnx(tmp_path / "onnx" / "model.onnx")))
    tables = {name: weight for name, weight in wanted.items() if "position_embeddings" in name}
    found = list(in_core_ml(tmp_path / "coreml" / "model.mlpackage"))
    # Of a table of positions a package for short texts holds the first rows.
    (positions,) = tables
    shortened = {**wanted, positions: tuple(part[: bench.task.max_length] for part in wanted[positions])}
    assert_same(shortened, found)


@by_optimum
@pytest.mark.parametrize("bits", [4, 8])
def test_a_llama_holds_the_same_integers_in_three_files(tales: Any, bits: int, tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    pytest.importorskip("gguf")
    facts = QUANTIZERS[bits].quantize(tales.torch("llama"), tales.job(tmp_path / "torch"))
    model = tales.artifact(tmp_path / "torch", "torch")
    for exporter in (Onnx(), Coreml(context=32), Gguf()):
        exporter.export(model, tales.job(tmp_path / exporter.kind))
    wanted = chosen(model)
    # Tied to the head, the table has two names, of which the quantizer takes one.
    wanted["model.embed_tokens.weight"] = wanted.pop("lm_head.weight")
    assert len(wanted) == 3 * 7 + 1, "three blocks of seven products, and the table"
    assert "model.embed_tokens.weight" not in facts["kept_float"]
    blocks = dict(in_gguf(tmp_path / "gguf" / "model.gguf"))
    assert blocks.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert equal(weight, blocks[name]), name
    assert_same(wanted, list(in_onnx(tmp_path / "onnx" / "model.onnx")))
    assert_same(wanted, list(in_core_ml(tmp_path / "coreml" / "model.mlpackage")))
