"""GGUF files read without llama.cpp, beside the gguf package's own reader; and files that are damaged."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeforge import gguf_file, gguf_names
from edgeforge.core.errors import ModelError

gguf = pytest.importorskip("gguf")

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with every kind of entry, and a tensor of each type that the package can write."""
    target = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(2)
    writer.add_string("words", "caf\u00e9")
    writer.add_bool("flag", True)
    writer.add_float32("third", 1 / 3)
    writer.add_float64("exact", 1 / 3)
    writer.add_int64("far", -(2**40))
    writer.add_array("counts", [3, -1, 2])
    writer.add_array("names", ["a", "", "\u2603"])
    writer.add_array("shares", [0.5, 0.25])
    values = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", values[0, :7].copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_entries_and_tensors_are_what_the_package_reads(path: Path) -> None:
    file, theirs = gguf_file.read(path), gguf.GGUFReader(path)
    own = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert dict(file.metadata) == own
    assert file.metadata["words"] == "caf\u00e9"
    assert file.architecture == "llama"
    assert file.said("block_count") == 2
    assert file.said("nothing", 7) == 7
    assert len(file.tensors) == len(theirs.tensors) == len(TYPES) + 1
    for tensor in theirs.tensors:
        mine = file.tensors[tensor.name]
        assert mine.shape == tuple(map(int, reversed(tensor.shape)))
        assert (mine.type, mine.offset, mine.size_bytes) == (
            tensor.tensor_type.name,
            tensor.data_offset,
            tensor.n_bytes,
        )
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found = file.dequantized(tensor.name)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected.reshape(mine.shape))
        assert np.array_equal(file.stored(tensor.name).ravel(), tensor.data.view(np.uint8).ravel())


def test_bits_per_weight_by_hand(path: Path) -> None:
    # A block of 32: 18, 20, 22, 24 and 34 bytes for Q4_0 to Q8_0; 3 * 64 weights each; seven float32 more.
    per_block = 18 + 20 + 22 + 24 + 34
    size = 8 * (192 * (4 + 2 + 2) + 6 * per_block + 28)
    assert gguf_file.read(path).bits_per_weight() == pytest.approx(size / (8 * 192 + 7))
    assert gguf_file.read(path).types() == dict.fromkeys(sorted(TYPES), 1) | {"F32": 2}


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    header = min(tensor.offset for tensor in gguf_file.read(path).tensors.values())
    for size in [*range(4, header, 7), header, len(whole) - 32]:
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="cut short") as caught:
            gguf_file.read(path)
        assert caught.value.remedy
    for size in range(4):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="not a GGUF file"):
            gguf_file.read(path)


def test_a_file_cut_after_it_was_read(path: Path) -> None:
    file = gguf_file.read(path)
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(ModelError, match="cut short"):
        file.dequantized("norm.weight")
    path.unlink()
    with pytest.raises(Exception, match="cannot be read"):
        file.dequantized("norm.weight")


def header(*, version: int = 3, tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip file", "not a GGUF file"),
        (header(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (header(tensors=2**60), "cut short"),
        (header(entries=2**60), "cut short"),
        (header(entries=1, rest=struct.pack("<Q", 2**62)), "cut short"),
        (header(entries=1, rest=text("a") + struct.pack("<IIQ", 9, 4, 2**61)), "cut short"),
        (header(entries=1, rest=text("a") + struct.pack("<IIQ", 9, 8, 2**61)), "cut short"),
        (header(entries=1, rest=text("a") + struct.pack("<IIQ", 9, 9, 1)), "array of the type 9"),
        (header(entries=1, rest=text("a") + struct.pack("<I", 77)), "unknown type 77"),
        (header(entries=2, rest=2 * (text("a") + struct.pack("<II", 4, 1))), "a is there twice"),
        (header(tensors=1, rest=info("w", ()) + bytes(64)), "w has 0 axes"),
        (header(tensors=1, rest=info("w", (1,) * 5)), "w has 5 axes"),
        (header(tensors=1, rest=info("w", (4,), kind=4) + bytes(64)), "unknown type 4"),
        (header(tensors=1, rest=info("w", (4,), kind=2) + bytes(64)), "cannot have the shape"),
        (header(tensors=1, rest=info("w", (0,)) + bytes(64)), "cannot have the shape"),
        (header(tensors=2, rest=2 * info("w", (1,)) + bytes(64)), "there twice"),
        (header(tensors=1, rest=info("w", (2**40, 2**40))), "cut short"),
        (header(tensors=1, rest=info("w", (1,), offset=2**62)), "cut short"),
    ],
)
def test_what_no_sound_file_says(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        gguf_file.read(path)


def test_an_alignment_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(entries=1, rest=text("general.alignment") + struct.pack("<II", 4, 24)))
    with pytest.raises(ModelError, match="alignment is 24"):
        gguf_file.read(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        gguf_file.read(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match="a folder"):
        gguf_file.read(tmp_path)


def test_a_tensor_that_is_not_there(path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.weight is missing"):
        gguf_file.read(path).dequantized("nothing.weight")


# -- names


@pytest.mark.parametrize("architecture", ["LLAMA", "QWEN2", "QWEN3", "DECI"])
def test_names_are_those_of_the_package(architecture: str) -> None:
    known: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], 3)
    modules = [*gguf_names._WHOLE, *(f"model.layers.2.{name}" for name in gguf_names._IN_BLOCK)]
    for module in modules:
        theirs = known.get_name(module)
        if theirs is not None:  # the norms of queries and keys are Qwen3's alone
            assert gguf_names.to_gguf(f"{module}.weight") == f"{theirs}.weight"
        elif not module.endswith(("q_norm", "k_norm")):
            raise AssertionError(module)
        there = gguf_names.to_gguf(f"{module}.bias")
        assert there is not None
        assert gguf_names.to_hugging_face(there) == f"{module}.bias"


@pytest.mark.parametrize("name", ["model.layers.0.mlp.experts.weight", "transformer.wte.weight", "norm", ""])
def test_names_of_other_models(name: str) -> None:
    assert gguf_names.to_gguf(name) is None
    assert gguf_names.to_hugging_face(name) is None


def test_rows_are_paired_and_unpaired() -> None:
    rows = np.arange(2 * 6 * 3).reshape(12, 3)  # two heads of six
    found = gguf_names.paired(rows, 6)
    assert [int(row[0]) // 3 for row in found] == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert np.array_equal(gguf_names.unpaired(found, 6), rows)
    assert np.array_equal(gguf_names.unpaired(gguf_names.paired(rows[:, 0], 6), 6), rows[:, 0])
