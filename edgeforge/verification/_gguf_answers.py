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
from edgeforge.core.task import NO_LABEL, model_inputs
from edgeforge.gguf_file import GgufFile
from edgeforge.runtimes._llama.divergence import divergence, log_softmax, rows_of
from edgeforge.runtimes._llama.quantization import Recipe, quantize
from edgeforge.runtimes.llama_cpp import LlamaCppSession
from edgeforge.verification import Fidelity
from edgeforge.verification._gguf_weights import FLOATS, expected_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 2048
"""Of the validation split, in whole windows, evenly spread; all where it has fewer."""


@dataclass
class Pair:
    """Running sums over tokens of one model's answers against another's."""

    tokens: int = 0
    _kld: float = 0.0
    _cosine: float = 0.0
    _same: int = 0
    max_abs_error: float = 0.0

    def add(self, reference: np.ndarray, logits: np.ndarray) -> None:
        """Both float32, (tokens, vocabulary), finite."""
        self.tokens += len(logits)
        self._kld += float(divergence(reference, logits).sum())
        self._same += int((reference.argmax(axis=1) == logits.argmax(axis=1)).sum())
        for part in rows_of(logits):
            one, other = reference[part].astype(np.float64), logits[part].astype(np.float64)
            self.max_abs_error = max(self.max_abs_error, float(np.abs(one - other).max()))
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            self._cosine += float((np.sum(one * other, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)).sum())

    @property
    def mean_kld(self) -> float:
        return self._kld / max(1, self.tokens)

    @property
    def agreement(self) -> float:
        return self._same / max(1, self.tokens)

    @property
    def cosine(self) -> float:
        return self._cosine / max(1, self.tokens)


@dataclass
class Predicted:
    """How well one model predicts what came."""

    tokens: int = 0
    _nll: float = 0.0
    _right: int = 0

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """logits: (tokens, vocabulary); labels: int64, (tokens,), NO_LABEL where nothing is predicted."""
        for part in rows_of(logits):
            places = np.flatnonzero(labels[part] != NO_LABEL)
            truth = labels[part][places]
            self.tokens += len(places)
            self._nll -= float(log_softmax(logits[part][places])[np.arange(len(places)), truth].sum())
            self._right += int((logits[part][places].argmax(axis=1) == truth).sum())

    @property
    def perplexity(self) -> float:
        return float(np.exp(self._nll / max(1, self.tokens)))

    @property
    def accuracy(self) -> float:
        return self._right / max(1, self.tokens)


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

    shares: dict[str, int] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) == 2:
            shares[tensor.type] = shares.get(tensor.type, 0) + tensor.count
    quantized = any(kind not in FLOATS for kind in shares)
    main = max(shares, key=lambda kind: shares[kind])
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


def windows(job: Job, tokens: int = TOKENS) -> list[int]:
    """Rows of the validation split, evenly spread, that hold so many tokens, as far as there are."""
    data = job.data
    size, length = data.size("validation"), data.interface.text.max_length
    return np.linspace(0, size - 1, num=min(-(-tokens // length), size), dtype=np.int64).tolist()  # type: ignore[no-any-return]


def window(job: Job, row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One window's inputs, (1, tokens), without padding; and its labels, (tokens,)."""
    batch = job.data.batch("validation", [row])
    length = int(batch["attention_mask"].sum())
    inputs = {name: value[:, :length].numpy() for name, value in model_inputs(batch).items()}
    return inputs, batch["labels"][0, :length].numpy()


def _asked(session: LlamaCppSession, given: dict[str, np.ndarray]) -> np.ndarray:
    logits: np.ndarray = session.run(given)[0]
    return logits


def torch_logits(model: PreTrainedModel, given: dict[str, np.ndarray]) -> np.ndarray:
    """Logits, float32, (tokens, vocabulary)."""
    import torch

    with torch.inference_mode():
        found = model(**{name: torch.from_numpy(value) for name, value in given.items()}).logits
    return found[0].float().numpy()  # type: ignore[no-any-return]


def _put_weights(model: PreTrainedModel, file: GgufFile, reference: Artifact) -> None:
    """Give the model the numbers that the file stands for."""
    import torch

    from edgeforge import gguf_names

    size = int(file.said("attention.key_length"))
    state: dict[str, Any] = dict(model.state_dict())
    for own, _ in expected_tensors(file, reference):
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
