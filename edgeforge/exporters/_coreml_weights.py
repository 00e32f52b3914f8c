"""A coremltools graph pass that puts a quantizer's own integers and scales in place of the weights made of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.models.quantized_weights import LinearWeight, QuantizedWeight

if TYPE_CHECKING:
    from coremltools import PassPipeline

PASS = "edgeforge::write_quantized_weights"
CONSUMERS = ("conv", "linear", "matmul")


class Placed:
    """Quantized weights to put into a program, and the names of those that were, filled while the pass runs."""

    def __init__(self, weights: Mapping[str, QuantizedWeight]) -> None:
        self.weights = weights
        self.names: set[str] = set()
        self._tables: dict[np.dtype[Any], dict[tuple[tuple[int, ...], bytes], list[str]]] = {}

    def named(self, value: np.ndarray) -> list[str]:
        """Weights that multiply out to `value`: a folded and cast constant has lost its name."""
        if value.dtype not in self._tables:
            table: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
            for name, weight in self.weights.items():
                table.setdefault((weight.shape, weight.dequantize().astype(value.dtype).tobytes()), []).append(name)
            self._tables[value.dtype] = table
        return self._tables[value.dtype].get((value.shape, value.tobytes()), [])

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
    Other factors are not folded, so that weights stay those of the torch model.
    """
    import coremltools

    _register()
    pipeline = coremltools.PassPipeline.DEFAULT
    pipeline.remove_passes({"common::fuse_conv_scale"})
    pipeline.append_pass(PASS)
    pipeline.set_options(PASS, {"placed": placed})
    return pipeline


@functools.cache
def _register() -> None:
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import register_pass

    namespace, name = PASS.split("::")

    @register_pass(namespace=namespace, name=name)
    class WriteQuantizedWeights(AbstractGraphPass):  # type: ignore[misc]  # coremltools has no types
        placed: Placed | None = None

        def apply(self, prog: Any) -> None:
            assert self.placed is not None
            for function in prog.functions.values():
                _replace(function, self.placed)


def _replace(function: Any, placed: Placed) -> None:
    with function:
        for constant in list(_weights(function.operations)):
            names = placed.named(constant.val)
            if names:
                function.replace_uses_of_var_after_op(
                    anchor_op=constant.op,
                    old_var=constant,
                    new_var=_constexpr(placed.weights[names[0]], constant),
                    force_replace=True,
                )
                placed.names.update(names)


def _weights(operations: Iterable[Any]) -> Iterable[Any]:
    """The constant weights of convolutions and matrix products, each once."""
    seen: set[str] = set()
    for operation in operations:
        for argument in ("weight", "x", "y") if operation.op_type in CONSUMERS else ():
            value = operation.inputs.get(argument)
            constant = value is not None and value.op is not None and value.op.op_type == "const"
            if constant and value.name not in seen:
                seen.add(value.name)
                yield value


def _constexpr(weight: QuantizedWeight, constant: Any) -> Any:
    """The Core ML operation that multiplies a weight out, standing beside the constant it replaces."""
    from coremltools.converters.mil.mil import Builder, types

    name, dtype = constant.name + "_quantized", constant.val.dtype
    if isinstance(weight, LinearWeight):
        data_type = {4: types.np_int4_dtype, 8: np.int8}[weight.bits]
        return Builder.constexpr_blockwise_shift_scale(
            data=weight.integers.astype(data_type),
            scale=weight.scales.astype(dtype),
            before_op=constant.op,
            name=name,
        )
    index_type = {1: types.np_uint1_dtype, 2: types.np_uint2_dtype, 4: types.np_uint4_dtype, 8: np.uint8}[weight.bits]
    groups, entries = weight.palettes.shape
    palettes = weight.palettes.astype(dtype).reshape((groups,) + (1,) * (len(weight.shape) - 1) + (entries, 1))
    return Builder.constexpr_lut_to_dense(
        indices=weight.indices.astype(index_type), lut=palettes, before_op=constant.op, name=name
    )
