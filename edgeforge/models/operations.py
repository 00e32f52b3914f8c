"""Which operations of a model read which weights, in the order they run, as torch.export sees them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgeforge.core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.task import Interface

_KINDS: Mapping[str, Literal["conv", "linear"]] = {
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "linear": "linear",
}


@dataclass(frozen=True)
class Operation:
    """One convolution or linear layer. `weight` and `bias` are parameter names.

    `batch_norm` is the module whose batch normalization is all that reads the result (so that it can be folded).
    """

    kind: Literal["conv", "linear"]
    weight: str
    bias: str | None
    batch_norm: str | None


@dataclass(frozen=True)
class Lookup:
    """Rows read from an embedding table, whose parameter name is `table`.

    `constant` is None where the input says which rows. Else (positions, token types) it names the rows that are read
    among a trace's constants.
    """

    table: str
    constant: str | None


@dataclass(frozen=True)
class Trace:
    """`layers` in the order they run; `constants` are what other operations read beside the input, likewise.

    A constant is a parameter or buffer, or what the model computes from such alone (then named by that operation); it
    is repeated where it is read again. What a layer's foldable batch normalization reads is in neither. `lookups` are
    the reads of embedding tables, in order: whole tables are among the constants where the input says which rows.
    """

    layers: tuple[Operation, ...]
    constants: tuple[tuple[str, torch.Tensor], ...]
    lookups: tuple[Lookup, ...] = ()


def trace(model: PreTrainedModel, interface: Interface) -> Trace:
    """Follow one forward pass in eval mode. Raises ModelError where torch.export cannot."""
    import torch

    from edgeforge.models.example import example_inputs

    sample: dict[str, Any] = dict(example_inputs(interface, 1))
    if interface.per_token:
        sample["use_cache"] = False  # torch.export knows no cache objects
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # A call that torch 2.13 itself makes.
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)", category=FutureWarning)
            program = torch.export.export(model.eval(), (), sample)
    except Exception as error:  # a tracer meets code it does not know: anything may come
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(f"torch.export cannot follow this {type(model).__name__}: {reason}") from error
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    values = _constants(program, names)
    layers: list[Operation] = []
    constants: list[tuple[str, torch.Tensor]] = []
    lookups: list[Lookup] = []
    folded: set[torch.fx.Node] = set()
    for node in program.graph.nodes:
        if _operator(node) == "embedding" and (table := _parameter(node, 0, names)) is not None:
            lookups.append(Lookup(table, node.name if node in values else None))
        kind = _KINDS.get(_operator(node))
        if kind is not None and (weight := _parameter(node, 1, names)) is not None:
            norm = _only_batch_norm(node, names)
            layers.append(Operation(kind, weight, _parameter(node, 2, names), norm))
            folded.update(node.users if norm is not None else ())
        elif node.op == "call_function" and node not in values and node not in folded:
            read = [source for source in node.all_input_nodes if source in values]
            constants.extend((names.get(source.name, source.name), values[source]) for source in read)
    return Trace(tuple(layers), tuple(constants), tuple(lookups))


def _constants(program: torch.export.ExportedProgram, names: Mapping[str, str]) -> dict[torch.fx.Node, torch.Tensor]:
    """Every value of a program that does not hang on its input."""
    import torch

    stored = {**program.state_dict, **program.constants}
    lifted = {**names, **program.graph_signature.inputs_to_lifted_tensor_constants}
    values: dict[torch.fx.Node, torch.Tensor] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in lifted:
                values[node] = stored[lifted[node.name]]
            elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return values


def _operator(node: torch.fx.Node) -> str:
    """``conv2d`` for ``aten.conv2d.default``; empty for what is no call."""
    return getattr(node.target, "__name__", "").partition(".")[0] if node.op == "call_function" else ""


def _parameter(node: torch.fx.Node, position: int, names: Mapping[str, str]) -> str | None:
    argument = node.args[position] if len(node.args) > position else None
    return names.get(getattr(argument, "name", ""))


def _only_batch_norm(node: torch.fx.Node, names: Mapping[str, str]) -> str | None:
    readers = list(node.users)
    if len(readers) != 1 or _operator(readers[0]) != "batch_norm" or readers[0].args[0] is not node:
        return None
    mean = _parameter(readers[0], 3, names)
    return mean.removesuffix(".running_mean") if mean is not None else None
