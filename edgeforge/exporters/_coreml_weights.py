"""coremltools graph passes of our own: a quantizer's integers and scales in place of the weights made of them, and
numbers that float16 has in place of those it lacks.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.exporters._coreml_inputs import MASKED
from edgeforge.models.quantized_weights import LinearWeight, QuantizedWeight

if TYPE_CHECKING:
    from coremltools import PassPipeline

WRITE = "edgeforge::write_quantized_weights"
BOUND = "edgeforge::bound_masks"
CONSUMERS = {"conv": ("weight",), "linear": ("weight",), "matmul": ("x", "y"), "gather": ("x",), "add": ("x", "y")}
"""Operations that read weights, and by which arguments. What is added to tokens are the first rows of a table."""

LOWEST = -65504.0  # of float16


class Placed:
    """Quantized weights to put into a program, and the names of those that were, filled while the pass runs."""

    def __init__(self, weights: Mapping[str, QuantizedWeight], *, tables: Container[str] = ()) -> None:
        """`tables`: which of them are embedding tables, whose first rows may stand for all that is read of them."""
        self.weights = weights
        self.names: set[str] = set()
        self._tables = [name for name in weights if name in tables]
        self._known: dict[np.dtype[Any], dict[tuple[tuple[int, ...], bytes], list[str]]] = {}

    def named(self, value: np.ndarray) -> list[str]:
        """Weights that multiply out to `value`: a folded and cast constant has lost its name."""
        if value.dtype not in self._known:
            known: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
            for name, weight in self.weights.items():
                known.setdefault((weight.shape, weight.dequantize().astype(value.dtype).tobytes()), []).append(name)
            self._known[value.dtype] = known
        return self._known[value.dtype].get((value.shape, value.tobytes()), [])

    def beginning_with(self, value: np.ndarray) -> list[str]:
        """Tables whose first rows multiply out to `value`, shape (1..., rows, width)."""
        rows, width = value.shape[-2:]
        if value.size != rows * width:
            return []
        found = []
        for name in self._tables:
            table = self.weights[name]
            if table.shape[0] >= rows and table.shape[1] == width:
                numbers = table.first(rows).dequantize().astype(value.dtype)
                found += [name] if np.array_equal(numbers, value.reshape(rows, width)) else []
        return found

    def check(self) -> None:
        """Raise ModelError where a weight was not found: none may silently stay float."""
        if missing := sorted(self.weights.keys() - self.names):
            raise ModelError(
                f"{missing[0]} is quantized, but the Core ML program holds no weight equal to it "
                f"({len(missing)} of {len(self.weights)} such)",
                remedy="export to onnx, or report this model: its conversion changes weights in an unknown way",
            )


def pipeline_with(placed: Placed) -> PassPipeline:
    """coremltools' default passes, then the one that writes `placed.weights`.

    It runs last: by then batch normalizations are folded and weights are cast, and no pass computes on them again.
    Other factors are not folded, so that weights stay those of the torch model. Masks are bounded before anything
    becomes float16.
    """
    import coremltools

    _register()
    pipeline = coremltools.PassPipeline.DEFAULT
    pipeline.remove_passes({"common::fuse_conv_scale"})
    pipeline.insert_pass(pipeline.passes.index("common::add_fp16_cast"), BOUND)
    pipeline.append_pass(WRITE)
    pipeline.set_options(WRITE, {"placed": placed})
    return pipeline


@functools.cache
def _register() -> None:
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    namespace, bound, write = BOUND.split("::")[0], BOUND.split("::")[1], WRITE.split("::")[1]

    @register_pass(namespace=namespace, name=bound)
    class BoundMasks(AbstractGraphPass):  # type: ignore[misc]  # coremltools has no types
        def apply(self, prog: Any) -> None:
            for function in prog.functions.values():
                _bound(function)

    @register_pass(namespace=namespace, name=write)
    class WriteQuantizedWeights(AbstractGraphPass):  # type: ignore[misc]  # coremltools has no types
        placed: Placed | None = None

        def apply(self, prog: Any) -> None:
            assert self.placed is not None
            for function in prog.functions.values():
                _replace(function, self.placed)


def _bound(function: Any) -> None:
    """Constants below all of float16 become `MASKED`.

    A library marks padding by float32's lowest number, which float16 rounds to minus infinity: where that is then
    multiplied by zero, or a text is nothing but padding, what comes out is not a number.
    """
    from coremltools.converters.mil.mil import Builder

    with function:
        for constant in [operation.outputs[0] for operation in function.operations if operation.op_type == "const"]:
            value = constant.val
            if isinstance(value, np.floating | np.ndarray) and value.dtype.kind == "f" and (value < LOWEST).any():
                bounded = np.where(value < LOWEST, value.dtype.type(MASKED), value)
                new = Builder.const(val=bounded, before_op=constant.op, name=constant.name + "_bounded")
                function.replace_uses_of_var_after_op(anchor_op=constant.op, old_var=constant, new_var=new)


def _replace(function: Any, placed: Placed) -> None:
    with function:
        for constant in list(_weights(function.operations)):
            names = placed.named(constant.val) or placed.beginning_with(constant.val)
            if names:
                function.replace_uses_of_var_after_op(
                    anchor_op=constant.op,
                    old_var=constant,
                    new_var=_constexpr(placed.weights[names[0]], constant),
                    force_replace=True,
                )
                placed.names.update(names)


def _weights(operations: Iterable[Any]) -> Iterable[Any]:
    """The constants that may be weights, each once."""
    seen: set[str] = set()
    for operation in operations:
        for argument in CONSUMERS.get(operation.op_type, ()):
            value = operation.inputs.get(argument)
            if value is not None and value.name not in seen and _is_weight(value):
                seen.add(value.name)
                yield value


def _is_weight(value: Any) -> bool:
    constant = value.op is not None and value.op.op_type == "const" and isinstance(value.val, np.ndarray)
    return bool(constant and value.val.ndim > 1 and value.val.dtype.kind == "f")


def _constexpr(weight: QuantizedWeight, constant: Any) -> Any:
    """The Core ML operation that multiplies a weight out, standing beside the constant it replaces.

    A constant of another shape than the weight holds its first rows.
    """
    from coremltools.converters.mil.mil import Builder, types

    name, dtype, shape = constant.name + "_quantized", constant.val.dtype, constant.val.shape
    if shape != weight.shape:
        weight = weight.first(shape[-2])
    leading = (1,) * (len(shape) - len(weight.shape))
    if isinstance(weight, LinearWeight):
        data_type = {4: types.np_int4_dtype, 8: np.int8}[weight.bits]
        return Builder.constexpr_blockwise_shift_scale(
            data=weight.integers.astype(data_type).reshape(shape),
            scale=weight.scales.astype(dtype).reshape(leading + weight.scales.shape),
            before_op=constant.op,
            name=name,
        )
    index_type = {1: types.np_uint1_dtype, 2: types.np_uint2_dtype, 4: types.np_uint4_dtype, 8: np.uint8}[weight.bits]
    groups, entries = weight.palettes.shape
    palettes = weight.palettes.astype(dtype).reshape(
        leading + (groups,) + (1,) * (len(weight.shape) - 1) + (entries, 1)
    )
    return Builder.constexpr_lut_to_dense(
        indices=weight.indices.astype(index_type).reshape(shape), lut=palettes, before_op=constant.op, name=name
    )
