"""Changing files as a fault does: graphs of ONNX and OpenVINO, Core ML programs and weights, GGUF, JSON, tensors."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeforge import gguf_file, openvino_graph
from edgeforge.runtimes import coreml as runtime


class OnnxEdit:
    """A file's graph; written back when the block is left."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.onnx"
        self.model = onnx.load(self.path)
        self.nodes = self.model.graph.node
        self.tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def __enter__(self) -> OnnxEdit:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.write_bytes(self.model.SerializeToString())

    def get(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.tensors[name]).copy()

    def set(self, name: str, array: np.ndarray) -> None:
        self.tensors[name].CopyFrom(numpy_helper.from_array(np.array(array, order="C"), name))

    def change(self, name: str, change: Callable[[np.ndarray], Any]) -> None:
        """`change` returns another array, or changes the one it is given."""
        array = self.get(name)
        found = change(array)
        self.set(name, np.asarray(array if found is None else found, dtype=array.dtype))

    def add(self, name: str, array: Any) -> str:
        tensor = numpy_helper.from_array(np.asarray(array), name)
        self.model.graph.initializer.append(tensor)
        return name

    def of(self, operator: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == operator]

    def with_shape(self, *shape: int) -> list[str]:
        """Names of constants."""
        return [name for name, tensor in self.tensors.items() if tuple(tensor.dims) == shape]

    def layers(self) -> list[onnx.NodeProto]:
        """Float layers with a weight."""
        found = [node for node in self.nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
        return [node for node in found if node.input[1] in self.tensors]

    def decoders(self, kind: type, rank: int) -> list[onnx.NodeProto]:
        """DequantizeLinear of constants of this type and rank."""
        found = [node for node in self.of("DequantizeLinear") if node.input[0] in self.tensors]
        arrays = {node.input[0]: self.get(node.input[0]) for node in found}
        return [node for node in found if arrays[node.input[0]].dtype == kind and arrays[node.input[0]].ndim == rank]

    def values(self) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """(QuantizeLinear, DequantizeLinear) of each value inside the network."""
        readers = {node.input[0]: node for node in self.of("DequantizeLinear")}
        return [(node, readers[node.output[0]]) for node in self.of("QuantizeLinear")[1:] if node.output[0] in readers]

    def insert(self, node: onnx.NodeProto, *, before: onnx.NodeProto) -> None:
        self.nodes.insert(list(self.nodes).index(before), node)

    def instead(self, old: str, new: str, *, after: str | None = None) -> None:
        """Whatever reads `old` reads `new`, except the node that makes `new` itself."""
        for node in self.nodes:
            if new not in node.output and (after is None or after not in node.output):
                node.input[:] = [new if name == old else name for name in node.input]

    def attribute(self, node: onnx.NodeProto, name: str, value: Any) -> None:
        kept = [item for item in node.attribute if item.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    def say(self, key: str, change: Callable[[Any], Any]) -> None:
        """Change a metadata entry, which is JSON."""
        entry = next(item for item in self.model.metadata_props if item.key == key)
        entry.value = json.dumps(change(json.loads(entry.value)))


# -- Core ML


@contextmanager
def spec_of(folder: Path) -> Iterator[Any]:
    """The specification; written back when the block is left."""
    path = folder / runtime.PACKAGE / runtime.MODEL_FILE
    spec = runtime.load_coremltools().utils.load_spec(str(path))
    yield spec
    path.write_bytes(spec.SerializeToString())


def operations_of(spec: Any, kind: str | None = None) -> list[Any]:
    main = spec.mlProgram.functions["main"]
    found = main.block_specializations[main.opset].operations
    return [one for one in found if kind in (None, one.type)]


def read_instead(spec: Any, old: str, new: str) -> None:
    """Whatever reads `old` reads `new`."""
    for operation in operations_of(spec):
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.name == old:
                    binding.name = new


def constant_of(spec: Any, name: str) -> Any:
    """The value message of a named constant."""
    found = next(one for one in operations_of(spec, "const") if one.outputs[0].name == name)
    return found.attributes["val"]


def argument(spec: Any, operation: Any, name: str) -> Any:
    """The value message of an operation's argument."""
    binding = operation.inputs[name].arguments[0]
    return constant_of(spec, binding.name) if binding.name else binding.value


def scale_scalar(value: Any, factor: float) -> None:
    """Of an immediate float16 or float32 value."""
    tensor = value.immediateValue.tensor
    if tensor.WhichOneof("value") == "bytes":
        number = np.frombuffer(tensor.bytes.values, np.float16)
        tensor.bytes.values = (number.astype(np.float64) * factor).astype(np.float16).tobytes()
    else:
        tensor.floats.values[:] = [number * factor for number in tensor.floats.values]


def blobs(folder: Path, kind: str, name: str) -> list[tuple[int, int]]:
    """(start, bytes) in weight.bin of the values that operations of a type have for an argument."""
    content = (folder / runtime.PACKAGE / runtime.WEIGHTS_FILE).read_bytes()
    found = []
    spec = runtime.load_coremltools().utils.load_spec(str(folder / runtime.PACKAGE / runtime.MODEL_FILE))
    for operation in operations_of(spec, kind):
        value = operation.attributes.get(name)
        if value is None and name in operation.inputs:
            value = operation.inputs[name].arguments[0].value
        if value is not None and value.WhichOneof("value") == "blobFileValue":
            _, _, size, start = struct.unpack_from("<IIQQ", content, value.blobFileValue.offset)
            found.append((start, size))
    return found


@contextmanager
def weights_of(folder: Path) -> Iterator[bytearray]:
    path = folder / runtime.PACKAGE / runtime.WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    yield content
    path.write_bytes(bytes(content))


def change_numbers(
    folder: Path, place: tuple[int, int], change: Callable[[np.ndarray], None], dtype: Any = np.float16
) -> None:
    """Numbers of weight.bin, changed in place."""
    start, size = place
    with weights_of(folder) as content:
        numbers = np.frombuffer(bytes(content[start : start + size]), dtype).copy()
        change(numbers)
        content[start : start + size] = numbers.tobytes()


# -- OpenVINO


class OpenvinoEdit:
    """A file's graph; written back, under the same names, when the block is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.graph = openvino_graph.load(folder)
        self.layers = openvino_graph.layers(self.graph)

    def __enter__(self) -> OpenvinoEdit:
        return self

    def __exit__(self, *_: object) -> None:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / openvino_graph.MODEL
            openvino_graph.load_openvino().save_model(self.graph, path, compress_to_fp16=False)
            for part in Path(name).iterdir():
                (self.folder / part.name).write_bytes(part.read_bytes())

    def of(self, kind: str) -> list[Any]:
        return [node for node in self.graph.get_ordered_ops() if node.get_type_name() == kind]

    def change(self, node: Any, port: int, change: Callable[[np.ndarray], Any]) -> None:
        """The stored constant behind a port."""
        while node.input_value(port).get_node().get_type_name() != "Constant":
            node, port = node.input_value(port).get_node(), 0
        before = node.input_value(port).get_node()
        array = before.data.copy()
        found = change(array)
        after = openvino_graph.load_openvino().op.Constant(np.asarray(array if found is None else found, array.dtype))
        after.set_friendly_name(before.get_friendly_name())
        node.input(port).replace_source_output(after.output(0))

    def scales(self, layer: Any, change: Callable[[np.ndarray], Any]) -> None:
        node = layer.weight.get_node()
        while node.get_type_name() != "Multiply":
            node = node.input_value(0).get_node()
        self.change(node, 1, change)

    def integers(self, layer: Any, change: Callable[[np.ndarray], Any]) -> None:
        self.change(layer.node, layer.port, change)


# -- GGUF


class GgufEdit:
    """A file's metadata, and its tensors as (type, stored bytes); written anew when the block is left."""

    def __init__(self, folder: Path) -> None:
        import gguf

        self.path = folder / gguf_file.MODEL
        self.source = gguf_file.read(self.path)
        self._fields = gguf.GGUFReader(self.path).fields
        self._kinds = {key: value.types for key, value in self._fields.items() if not key.startswith("GGUF.")}
        self.metadata = {key: self._fields[key].contents() for key in self._kinds}
        self.tensors = {name: (tensor.type, self.source.stored(name)) for name, tensor in self.source.tensors.items()}

    def change(self, name: str, change: Callable[[np.ndarray], Any]) -> None:
        """`change` changes the stored bytes, (..., bytes of a row), in place."""
        kind, stored = self.tensors[name]
        stored = stored.copy()
        change(stored)
        self.tensors[name] = (kind, stored)

    def floats(self, name: str, change: Callable[[np.ndarray], Any]) -> None:
        """The numbers of a float tensor; `change` returns others, or changes them in place."""
        kind, stored = self.tensors[name]
        dtype = {"F16": np.float16, "F32": np.float32}[kind]
        numbers = stored.copy().view(dtype)
        found = change(numbers)
        after = np.ascontiguousarray(numbers if found is None else found, dtype=dtype)
        self.tensors[name] = (kind, after.view(np.uint8))

    def __enter__(self) -> GgufEdit:
        return self

    def __exit__(self, *_: object) -> None:
        import gguf

        writer = gguf.GGUFWriter(self.path, self.source.architecture)
        for key, kinds in self._kinds.items():
            if key != "general.architecture":
                inner = {"sub_type": kinds[-1]} if kinds[0] == gguf.GGUFValueType.ARRAY else {}
                writer.add_key_value(key, self.metadata[key], kinds[0], **inner)
        for key in self.metadata.keys() - self._kinds.keys():
            add = writer.add_string if isinstance(self.metadata[key], str) else writer.add_float32
            add(key, self.metadata[key])
        for name, (kind, stored) in self.tensors.items():
            whole = np.ascontiguousarray(stored)
            writer.add_tensor(name, whole, raw_shape=whole.shape, raw_dtype=gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


# -- what lies beside


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def edit_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """A safetensors file."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file({name: np.array(array, order="C") for name, array in tensors.items()}, path, metadata={"format": "pt"})
