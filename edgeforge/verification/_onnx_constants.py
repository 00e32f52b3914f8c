"""The numbers that an ONNX file computes with, its integers multiplied out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph
from edgeforge.verification._operators import Attributes, operator_of, table_of, weight_of

if TYPE_CHECKING:
    import onnx
    import torch


def floats(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Floating-point constants of more than one number by name: as they are, or as what decodes them gives them.

    Raises UnknownOperator for integers in a form that is not known here.
    """
    import torch

    constants = onnx_graph.initializers(model)
    read = {name for node in model.graph.node for name in node.input}
    kept = {name: array for name, array in constants.items() if name in read}
    found = {name: array for name, array in kept.items() if array.dtype.kind == "f" and array.size > 1}
    scales: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            arguments = [_tensor(constants[name]) for name in node.input]
            found[node.output[0]] = operator_of(node)(Attributes(node, torch.float32), *arguments).numpy()
            scales.add(node.input[1])
        elif node.op_type == "MatMulNBits":
            found[node.input[1]] = weight_of(node, *(_tensor(constants[name]) for name in node.input[1:3])).numpy()
            scales.add(node.input[2])
    tables, factors = _tables(model, constants)
    return {name: array for name, array in {**found, **tables}.items() if name not in scales | factors}


def looked_up_tables(model: onnx.ModelProto) -> list[np.ndarray]:
    """The tables of integers whose rows are looked up, multiplied out. Raises UnknownOperator."""
    return list(_tables(model, onnx_graph.initializers(model))[0].values())


def _tables(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], set[str]]:
    """Tables by the name of their integers, and the names of their scales."""
    found: dict[str, np.ndarray] = {}
    scales: set[str] = set()
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "GatherBlockQuantized":
            packed, spread = (_tensor(constants[node.input[index]]) for index in (0, 2))
            found[node.input[0]] = table_of(node, packed, spread).numpy()
            scales.add(node.input[2])
        elif (rows := _looked_up(node, made, constants)) is not None:
            integers, factors = rows
            found[integers] = constants[integers].astype(np.float32) * constants[factors]
            scales.add(factors)
    return found, scales


def _looked_up(
    node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto], constants: Mapping[str, np.ndarray]
) -> tuple[str, str] | None:
    """(integers, scales) where a node multiplies rows of a table by the scales of those rows; else None."""
    if node.op_type != "Mul" or not all(name in made for name in node.input):
        return None
    cast, factors = (made[name] for name in node.input)
    if cast.op_type != "Cast" or factors.op_type != "Gather" or cast.input[0] not in made:
        return None
    rows = made[cast.input[0]]
    names = (rows.input[0], factors.input[0])
    same = rows.op_type == "Gather" and rows.input[1] == factors.input[1]
    return names if same and all(name in constants for name in names) else None


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(array.astype(np.int8) if array.dtype.name == "int4" else array.copy())
