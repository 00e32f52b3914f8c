"""ONNX graphs computed by torch, one operator at a time, independently of any ONNX runtime.

Slow and plain on purpose: it says what a file means. With the numbers a quantizer recorded it computes, from the
float file's own weights, what the quantized file must give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph
from edgeforge.verification._grids import Grids, dynamic_grid
from edgeforge.verification._operators import Attributes, operator_of

if TYPE_CHECKING:
    import onnx
    import torch


def evaluate(
    model: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray],
    *,
    grids: Grids | None = None,
    dtype: str = "float64",
    watch: Callable[[str, torch.Tensor], None] | None = None,
) -> np.ndarray:
    """The graph's first output for inputs by name, every float computed in `dtype`.

    `watch` is shown every value by name, before it is rounded to a grid. Raises UnknownOperator, naming it.
    """
    import torch

    grids = grids or Grids()
    kind: torch.dtype = getattr(torch, dtype)
    values = {
        name: grids.constant(name, _tensor(array, kind)) for name, array in onnx_graph.initializers(model).items()
    }
    given = {name: _tensor(array, kind) for name, array in inputs.items()}
    if watch is not None:
        for name, value in given.items():
            watch(name, value)
    values |= {name: grids.value(name, value) for name, value in given.items()}
    with torch.inference_mode():
        for node in model.graph.node:
            for name, result in _step(node, values, grids, kind):
                if watch is not None:
                    watch(name, result)
                values[name] = grids.value(name, result)
    return values[model.graph.output[0].name].numpy()


def _tensor(array: np.ndarray, kind: torch.dtype) -> torch.Tensor:
    import torch

    # numpy's own types end at 8 bits; 4-bit integers come as a type that torch does not know.
    tensor = torch.from_numpy(array.astype(np.int8) if array.dtype.name == "int4" else array.copy())
    return tensor.to(kind) if tensor.is_floating_point() else tensor


def _step(
    node: onnx.NodeProto, values: dict[str, torch.Tensor], grids: Grids, kind: torch.dtype
) -> Iterable[tuple[str, torch.Tensor]]:
    operator = operator_of(node)
    arguments = [values[name] if name else None for name in node.input]
    if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in grids.weights:
        arguments = _on_integers(node, arguments, grids)
    results = operator(Attributes(node, kind), *arguments)
    return zip(node.output, results if isinstance(results, tuple) else (results,), strict=True)


def _on_integers(node: onnx.NodeProto, arguments: list[torch.Tensor | None], grids: Grids) -> list[torch.Tensor | None]:
    """The arguments of a layer as the quantized file has them, beside what already lies on a grid."""
    inputs, weight = arguments[0], grids.weights[node.input[1]]
    assert inputs is not None
    if grids.dynamic:
        return [dynamic_grid(inputs).snap(inputs), *arguments[1:]]
    grid = grids.values.get(node.input[0])
    if grid is not None and node.input[0] in grids.layers_only:
        inputs = grid.snap(inputs)
    bias = arguments[2] if len(arguments) > 2 else None
    if grid is None or bias is None or node.input[2] in grids.float_biases:
        return [inputs, *arguments[1:]]
    # Sums of products are integers of this step; the bias is rounded to it before it is added.
    step = bias.new_tensor(np.asarray(grid.scale * weight.scale, dtype=np.float32))
    integers = (bias / step).round().clamp(-(2**31), 2**31 - 1)
    return [inputs, arguments[1], integers * step]
