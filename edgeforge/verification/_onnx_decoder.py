"""ONNX decoders with past: opened again with ONNX Runtime and held against torch, on real texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.runtimes._onnx_decoder import OnnxDecoder
from edgeforge.runtimes.onnxruntime import FLOAT_INPUTS, OnnxSession
from edgeforge.verification import Check, Parity, outcome
from edgeforge.verification._decoders import (
    Answer,
    beside_torch,
    expected_of_decoder,
    faithful,
    largest_logit,
    memory_check,
    one_text,
)
from edgeforge.verification._expected_weights import Expected
from edgeforge.verification._model_weights import NAME as WEIGHTS
from edgeforge.verification._model_weights import weights_check
from edgeforge.verification._onnx_constants import floats
from edgeforge.verification._onnx_promises import metadata, valid
from edgeforge.verification._operators import UnknownOperator
from edgeforge.verification._promises import paths, tokenizer_files
from edgeforge.verification._rounded_weights import of_reference

if TYPE_CHECKING:
    import onnx

LIMIT = 1e-3
"""Of the largest logit: how far those of a file in float32 may be from torch's. Sums of thousands of products in
another order, through tens of blocks, move 1e-5; a wrong integer of a weight is found among the weights."""


@dataclass
class OpenedDecoder:
    """A file that opens; what the checks that all formats share ask for."""

    inputs: Mapping[str, Artifact]
    job: Job
    folder: Path
    interface: Interface
    proto: onnx.ModelProto

    def session(self, *, exact: bool = False) -> OnnxDecoder:
        """Opened by ONNX Runtime; `exact`: products of integers take their inputs as they are."""
        if not exact:
            return OnnxDecoder(OnnxSession(self.folder / onnx_graph.MODEL), self.folder)
        return exact_session(self.proto, self.folder)


def exact_session(proto: onnx.ModelProto, folder: Path) -> OnnxDecoder:
    """The file in `folder`, its products of integers taking their inputs as they are."""
    return OnnxDecoder(OnnxSession(float_activations(proto), settings=FLOAT_INPUTS), folder)


def verify_decoder(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`. `parity` and `fidelity` also say `mean_kld`, in nats per token."""
    nothing = Parity("the torch model", None, "the file does not open")
    folder = inputs["file"].path
    try:
        opened = OpenedDecoder(inputs, job, folder, job.data.interface, onnx_graph.load(folder))
        shipped, exact = opened.session(), opened.session(exact=True)
    except ModelError as error:
        return outcome(nothing, [Check("opens", False, error.what)])
    checks = [Check("opens", True), *_promises(opened, shipped)]
    if not all(check.passed for check in checks):
        return outcome(nothing, checks)
    quantized = inputs["reference"].digest != inputs["model"].digest
    expected = expected_of_decoder(inputs["reference"].path, opened.interface)
    checks.append(decoder_weights(opened.proto, inputs["reference"].path, expected))
    rounded, layers = of_reference(inputs["reference"].path, inputs["model"].path, expected.reads)
    try:
        found = beside_torch(at_once(exact), inputs, job)
        text = one_text(job)
        limit = LIMIT * largest_logit(at_once(exact), text)
        checks += [*rounded, memory_check(at_once(exact), in_parts(exact), text, limit)]
        close = faithful(at_once(shipped), inputs, job) if quantized else None
    except ModelError as error:
        return outcome(nothing, [*checks, Check("runs", False, error.what)], layers=layers)
    parity = Parity(
        "the torch model with the same quantized weights" if quantized else "the torch model",
        bool(found.max_abs_error <= limit),
        f"logits differ by at most {limit:.3g}, {LIMIT:g} of the largest: what float32 sums in another order may move",
        max_abs_error=found.max_abs_error if np.isfinite(found.max_abs_error) else None,
        tolerance=limit,
        cosine=found.cosine,
        agreement=found.agreement,
        samples=found.tokens,
    )
    facts = outcome(parity, checks, close[0] if close else None, layers=layers)
    facts["parity"]["mean_kld"] = found.mean_kld
    if close is not None:
        facts["fidelity"] |= close[1]
    return facts


def at_once(session: OnnxDecoder) -> Answer:
    """The session, asked about whole texts."""
    return lambda given: session.run(given)[0]


def in_parts(session: OnnxDecoder) -> Answer:
    """The session, asked about a text's first half, then token by token, then about the rest."""

    def answer(given: dict[str, np.ndarray]) -> np.ndarray:
        ids, mask = given["input_ids"], given["attention_mask"]
        half = ids.shape[1] // 2
        ends = [0, half, half + 1, half + 2, ids.shape[1]]
        cache, found = session.empty(len(ids)), []
        for start, end in itertools.pairwise(ends):
            if end > start:
                part, cache = session.step(ids[:, start:end], mask[:, :end], cache)
                found.append(part)
        logits: np.ndarray = np.concatenate(found, axis=1)[0]
        return logits

    return answer


def _promises(opened: OpenedDecoder, session: OnnxDecoder) -> list[Check]:
    return [
        valid(opened.proto),
        _tensors(opened, session),
        metadata(opened.proto, opened.interface, opened.job.task.kind),
        _configuration(opened),
        tokenizer_files(opened),  # type: ignore[arg-type]  # it asks for no more than is here
        paths(opened.inputs["file"]),
    ]


def _tensors(opened: OpenedDecoder, session: OnnxDecoder) -> Check:
    """Ids, mask and positions in, logits out, and keys and values of every block both ways, as its config says."""
    from edgeforge.models import loading

    config = loading.load(opened.inputs["reference"].path).config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wanted_in = {"input_ids", "attention_mask", "position_ids"}
    wanted_out = {opened.interface.output_name}
    for block in range(config.num_hidden_layers):
        for part in ("key", "value"):
            wanted_in.add(f"past_key_values.{block}.{part}")
            wanted_out.add(f"present.{block}.{part}")
    inputs, outputs = session.interface()
    names = ({name for name, _, _ in inputs}, {name for name, _, _ in outputs})
    if names != (wanted_in, wanted_out):
        odd = sorted((names[0] ^ wanted_in) | (names[1] ^ wanted_out))
        return Check("inputs and outputs", False, f"missing or more than should be: {', '.join(odd[:4])}")
    for name, kind, shape in (*inputs, *outputs):
        cached = "." in name
        right = kind == (
            "tensor(int64)" if name in ("input_ids", "attention_mask", "position_ids") else "tensor(float)"
        )
        if not right or (cached and (shape[1], shape[3]) != (config.num_key_value_heads, size)):
            return Check("inputs and outputs", False, f"{name} is {kind} of shape {shape}")
    return Check("inputs and outputs", True)


def _configuration(opened: OpenedDecoder) -> Check:
    """``config.json`` and ``generation_config.json`` beside the file say what the torch model's say."""
    from edgeforge.models import loading

    network = loading.load(opened.inputs["reference"].path)
    for name, said in (("config.json", network.config), ("generation_config.json", network.generation_config)):
        try:
            found = json.loads((opened.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return Check("companion files", False, f"{name} cannot be read: {error}")
        wanted = json.loads(json.dumps(said.to_diff_dict(), default=str))
        for key in ("model_type", "vocab_size", "eos_token_id", "bos_token_id", "num_hidden_layers", "rope_theta"):
            if key in wanted and found.get(key) != wanted[key]:
                return Check(
                    "companion files", False, f"{name}: '{key}' is {found.get(key)!r}, expected {wanted[key]!r}"
                )
    return Check("companion files", True)


def decoder_weights(proto: onnx.ModelProto, folder: Path, expected: Expected) -> Check:
    """Every weight of the torch model in `folder` is in the file, integers to the bit."""
    from edgeforge.models import loading

    network = loading.load(folder)
    rotary = [buffer.numpy() for name, buffer in network.named_buffers() if name.endswith("inv_freq")]
    try:
        found = floats(proto)
    except UnknownOperator as error:
        return Check(WEIGHTS, None, f"integers in a form that is not known: {error}")
    kept = {
        name: array
        for name, array in found.items()
        if not any(array.size == one.size and np.allclose(array.reshape(-1), one) for one in rotary)
    }
    return weights_check(expected, kept)


def float_activations(proto: onnx.ModelProto) -> bytes:
    """The file with products of integers that take their inputs as they are."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        for item in node.attribute:
            if node.op_type == "MatMulNBits" and item.name == "accuracy_level":
                item.i = 1
    content: bytes = copy.SerializeToString()
    return content
