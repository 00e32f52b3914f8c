"""A language model as an ONNX graph that keeps keys and values between calls, by optimum."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.core.errors import ModelError
from edgeforge.core.extras import require

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

TASK = "text-generation-with-past"
LAST_OPSET = 20
"""torch's tracing exporter, on which optimum stands, writes nothing newer."""

_WEIGHT_READERS = frozenset({"MatMul", "Gemm", "Gather"})


def decoder(network: PreTrainedModel, opset: int) -> onnx.ModelProto:
    """The graph that ``ORTModelForCausalLM`` and onnxruntime-genai call a decoder with past.

    Inputs: ``input_ids`` and ``position_ids`` (batch, length), ``attention_mask`` (batch, past + length), and for each
    block ``past_key_values.<i>.key`` and ``.value`` (batch, key/value heads, past, head size), of length 0 in the
    first call. Outputs: ``logits`` (batch, length, vocabulary) and ``present.<i>.key`` and ``.value``. Layers are named
    by their module path. Raises MissingExtraError without optimum, ModelError where it cannot write the model.
    """
    import onnx

    exporter = require("optimum.exporters.onnx", "optimum")
    with tempfile.TemporaryDirectory(prefix="edgeforge-") as name:
        try:
            with _quiet():
                exporter.onnx_export_from_model(
                    network, Path(name), task=TASK, opset=min(opset, LAST_OPSET), do_validation=False
                )
        except (ValueError, RuntimeError, KeyError) as error:
            raise ModelError(
                f"optimum cannot write this {type(network).__name__} as ONNX: {str(error).splitlines()[0]}",
                remedy="leave the onnx target out, or report the model's family",
            ) from error
        proto: onnx.ModelProto = onnx.load_model(Path(name) / "model.onnx")
    _name_layers(proto)
    return proto


def _name_layers(proto: onnx.ModelProto) -> None:
    """``/model/layers.0/self_attn/q_proj/MatMul`` -> ``model.layers.0.self_attn.q_proj``; others lose theirs."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    flipped = {
        node.output[0] for node in proto.graph.node if node.op_type == "Transpose" and node.input[0] in constants
    }
    taken: Counter[str] = Counter()
    for node in proto.graph.node:
        path = ".".join(node.name.split("/")[1:-1])
        holds = node.op_type in _WEIGHT_READERS and any(name in constants | flipped for name in node.input[:2])
        node.name = ""
        if holds and path:
            taken[path] += 1
            node.name = path if taken[path] == 1 else f"{path}#{taken[path]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what tracing says about every Python branch it meets; what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
