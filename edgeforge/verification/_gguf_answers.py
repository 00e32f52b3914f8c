"""What a GGUF file answers on real texts, beside torch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.gguf_file import GgufFile
from edgeforge.runtimes._llama.quantization import Recipe, quantize
from edgeforge.runtimes._llama.session import LlamaCppSession
from edgeforge.verification import Fidelity
from edgeforge.verification._gguf_weights import FLOATS, expected_tensors
from edgeforge.verification._token_answers import Pair, Predicted, torch_logits, window, windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LIMITS = {"F32": 1e-5, "F16": 1e-4, "BF16": 1e-3}
"""Mean divergence from torch (nats per token) of a file in floats. F32 differs by the order of sums and by keys and
values, which llama.cpp keeps as float16 (5e-7 measured on SmolLM2-135M); F16 rounds weights to 11 bits (4e-6), BF16 to
8 (1.3e-4)."""


@dataclass
class Answered:
    """What was found. `type` is that of most weights; `floor` the mean divergence of a Q8_0 file from the float one."""

    reference: str
    type: str
    quantized: bool
    finite: bool = True
    parity: Pair = field(default_factory=Pair)
    floor: float = 0.0
    fidelity: Fidelity | None = None
    more: dict[str, float] = field(default_factory=dict)


def compare(file: GgufFile, session: LlamaCppSession, inputs: Mapping[str, Artifact], job: Job) -> Answered:
    """Ask the file and torch about the same windows. Raises ModelError where the file does not run."""
    from edgeforge.models import loading

    main, quantized = main_type(file)
    said = "the torch model with the same quantized weights" if quantized else "the torch model"
    answered = Answered(said, main, quantized)
    same = loading.load(inputs["reference"].path)
    if "unquantized" in inputs:
        _put_weights(same, file, inputs["reference"])
    texts = [window(job, row) for row in windows(job)]
    floats = loading.load(inputs["model"].path) if quantized else None
    close, predicted, floor = Pair(), (Predicted(), Predicted()), Pair()
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        rounded = _eight_bits(inputs, Path(scratch)) if quantized else None
        for given, labels in texts:
            logits = _asked(session, given)
            if not np.isfinite(logits).all():
                answered.finite = False
                return answered
            expected = torch_logits(same, given)
            answered.parity.add(expected, logits)
            if floats is None or rounded is None:
                continue
            exact = torch_logits(floats, given)
            close.add(exact, logits)
            floor.add(exact if "unquantized" in inputs else expected, _asked(rounded, given))
            for one, own in zip(predicted, (exact, logits), strict=True):
                one.add(own, labels)
        if rounded is not None:
            rounded.close()
    answered.floor = floor.mean_kld
    if floats is not None:
        answered.fidelity = Fidelity(
            agreement=close.agreement,
            cosine=close.cosine,
            metric="next_token_accuracy",
            metric_drop=predicted[0].accuracy - predicted[1].accuracy,
            samples=close.tokens,
        )
        answered.more = {
            "mean_kld": close.mean_kld,
            "perplexity": predicted[1].perplexity,
            "float_perplexity": predicted[0].perplexity,
        }
    return answered


def main_type(file: GgufFile) -> tuple[str, bool]:
    """The type of most weights, and whether any are quantized."""
    shares: dict[str, int] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) == 2:
            shares[tensor.type] = shares.get(tensor.type, 0) + tensor.count
    return max(shares, key=lambda kind: shares[kind]), any(kind not in FLOATS for kind in shares)


def _asked(session: LlamaCppSession, given: dict[str, np.ndarray]) -> np.ndarray:
    logits: np.ndarray = session.run(given)[0]
    return logits


def _put_weights(model: PreTrainedModel, file: GgufFile, reference: Artifact) -> None:
    """Give the model the numbers that the file stands for."""
    import torch

    from edgeforge import gguf_names

    size = int(file.said("attention.key_length"))
    state: dict[str, Any] = dict(model.state_dict())
    for own, _ in expected_tensors(file, reference.path):
        name = gguf_names.to_hugging_face(own)
        assert name is not None
        values = file.dequantized(own)
        if file.architecture in gguf_names.PAIRED and gguf_names.is_turned(name):
            values = gguf_names.unpaired(values, size)
        with torch.no_grad():
            state[name].copy_(torch.from_numpy(np.ascontiguousarray(values)))


def _eight_bits(inputs: Mapping[str, Artifact], scratch: Path) -> LlamaCppSession:
    """The float file in Q8_0; where there is none, the quantized one again, whose numbers Q8_0 hardly moves."""
    source = inputs["unquantized" if "unquantized" in inputs else "file"].path / "model.gguf"
    return LlamaCppSession(quantize(source, scratch / "eight.gguf", Recipe("q8_0", again=True)).path)
