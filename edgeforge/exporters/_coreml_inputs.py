"""What an app hands to a Core ML classifier, and the torch module that takes just that: images, or tokens."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import ModelError
from edgeforge.core.task import Interface
from edgeforge.runtimes import coreml as runtime

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram
    from transformers import PreTrainedModel

MASKED = -1e4
"""Added to attention scores of padding: zero behind any softmax, and a number of float16, unlike float32's lowest."""

SHORTEST = 16
"""The least length that a package of several lengths is prepared for."""


@dataclass(frozen=True)
class Front:
    """`module` takes tensors like `example` and gives probabilities, shape (1, labels), or `outputs`.

    `axes` are the axes of each tensor that stay open; `types`, `outputs` and `states` say to coremltools what goes in,
    comes out and is remembered. The rest is what people and apps read in the package.
    """

    module: torch.nn.Module
    example: tuple[torch.Tensor, ...]
    axes: tuple[dict[int, Any], ...] | None
    types: list[Any]
    summary: str
    descriptions: Mapping[str, str]
    metadata: Mapping[str, str]
    lengths: tuple[int, ...] = ()
    outputs: list[Any] = field(default_factory=list)
    """Absent: a classifier's label and probabilities."""
    states: list[Any] = field(default_factory=list)

    def program(self) -> ExportedProgram:
        """The module as torch.export sees it. Raises whatever torch does."""
        import torch

        exported: ExportedProgram = torch.export.export(self.module, self.example, dynamic_shapes=self.axes)
        # Core ML's own attention operation (iOS 18) crashes some devices' CPUs; iOS 17 gets the plain form anyway.
        attention = torch.ops.aten.scaled_dot_product_attention.default
        program: ExportedProgram = exported.run_decompositions({attention: _plain_attention})
        _simplify(program)
        return program


def _plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *flags: Any,
    scale: float | None = None,
    **others: Any,
) -> Any:
    """softmax(scale * query @ key + mask) @ value; with dropout, a causal mask or groups it is left to coremltools."""
    if any(flags) or any(others.values()) or (mask is not None and not mask.is_floating_point()):
        return NotImplemented
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    mixed = (scores if mask is None else scores + mask).softmax(dim=-1) @ value
    # Some models rely on the order in memory that torch's own has: heads inside of positions.
    return mixed.transpose(-3, -2).contiguous().transpose(-3, -2) if mixed.dim() > 3 else mixed


def _simplify(program: ExportedProgram) -> None:
    """Take out, in place, what only stands in the way.

    Aliases, which coremltools does not know; padding indices, of which it warns and which only training heeds. And
    what expands a mask (1, 1, 1, length) to a square: whatever reads it broadcasts anyway, and with several lengths an
    expansion is arithmetic on shapes that leaves all behind it of unknown size.
    """
    import torch

    for node in list(program.graph.nodes):
        expanded = node.target is torch.ops.aten.expand.default and node.meta["val"].dim() == 4
        mask = expanded and not node.meta["val"].is_floating_point()
        if mask or node.target is torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
        if node.target is torch.ops.aten.embedding.default:
            node.args = node.args[:2]


def images(network: PreTrainedModel, interface: Interface) -> Front:
    """Pixels (1, C, H, W) of 0 to 255, normalised inside. Raises ModelError where Core ML has no such images."""
    import torch

    coremltools = runtime.load_coremltools()
    channels, height, width = interface.image_shape
    if channels not in (1, 3):
        raise ModelError(f"Core ML images have 1 or 3 channels, this model takes {channels}", remedy="export to onnx")
    assert interface.pixels is not None
    statistics = (interface.pixels.mean, interface.pixels.std)

    class Classifier(torch.nn.Module):
        scale: torch.Tensor
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            mean, std = (torch.tensor(values, dtype=torch.float64) for values in statistics)
            self.network = network
            self.register_buffer("scale", (1 / (255 * std)).float().reshape(1, -1, 1, 1))
            self.register_buffer("shift", (-mean / std).float().reshape(1, -1, 1, 1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            normalised = image * self.scale + self.shift
            return self.network(**{network.main_input_name: normalised}).logits.softmax(dim=-1)  # type: ignore[no-any-return]

    shape = (1, channels, height, width)
    layout = coremltools.colorlayout.RGB if channels == 3 else coremltools.colorlayout.GRAYSCALE
    colour = "RGB" if channels == 3 else "grayscale"
    return Front(
        module=Classifier().eval(),
        example=(torch.zeros(shape),),
        axes=None,
        types=[coremltools.ImageType(name=runtime.IMAGE, shape=shape, color_layout=layout)],
        summary=f"Classifies an image as one of {len(interface.labels)} labels.",
        descriptions={runtime.IMAGE: f"{colour} image, {width} x {height}; the model normalises it itself"},
        metadata={runtime.PREPROCESSING_KEY: json.dumps(dict(zip(("mean", "std"), statistics, strict=True)))},
    )


def texts(network: PreTrainedModel, interface: Interface, *, flexible: bool) -> Front:
    """``input_ids`` and ``attention_mask``, int32, (1, length): one length, or each of several."""
    import numpy as np
    import torch

    coremltools = runtime.load_coremltools()
    longest, pad_id = interface.text.max_length, interface.text.pad_id
    lengths = _lengths(longest) if flexible else (longest,)
    names = [value.name for value in interface.inputs]
    open_length = torch.export.Dim("length", min=2, max=longest) if len(lengths) > 1 else None
    shapes = [(1, length) for length in lengths]
    shape = coremltools.EnumeratedShapes(shapes, default=shapes[-1]) if open_length else shapes[0]
    told = f"one of the lengths {', '.join(map(str, lengths))}" if open_length else f"length {longest}"
    return Front(
        module=_reader(network),
        # Not all of them padding: models look up positions by it.
        example=tuple(torch.ones(1, longest, dtype=torch.int32) for _ in names),
        axes=tuple({1: open_length} for _ in names) if open_length else None,
        types=[coremltools.TensorType(name=name, shape=shape, dtype=np.int32) for name in names],
        summary=f"Classifies a text as one of {len(interface.labels)} labels.",
        descriptions={
            "input_ids": f"token ids of the tokenizer beside the model, {told}, filled up with {pad_id}",
            "attention_mask": "1 for each token, 0 for what fills up",
        },
        metadata={
            runtime.TOKENS_KEY: json.dumps({"max_length": longest, "pad_id": pad_id}),
        },
        lengths=lengths,
    )


def _lengths(longest: int) -> tuple[int, ...]:
    """Powers of two below the greatest length, and that length."""
    powers = (SHORTEST * 2**step for step in range(longest.bit_length()))
    return (*(length for length in powers if length < longest), longest)


def _reader(network: PreTrainedModel) -> torch.nn.Module:
    """The model behind an integer mask, all of its tokens of the first type."""
    import torch
    import transformers

    has_types = "token_type_ids" in inspect.signature(network.forward).parameters
    # From version 5 a mask of two axes is expanded in ways that coremltools cannot convert; before, four are refused.
    takes_four_axes = int(transformers.__version__.split(".")[0]) >= 5

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            if takes_four_axes:
                attention_mask = ((1 - attention_mask.to(torch.float32)) * MASKED)[:, None, None, :]
            # One row for all positions; the library's own default would be written once for each.
            types = {"token_type_ids": torch.zeros(1, 1, dtype=torch.int32)} if has_types else {}
            answer = self.network(input_ids=input_ids, attention_mask=attention_mask, **types)
            return answer.logits.softmax(dim=-1)  # type: ignore[no-any-return]

    return Classifier().eval()
