"""A language model's file against a torch model's folder, without the task: its weights, and what it expects next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import gguf_file, onnx_graph
from edgeforge.core.errors import ModelError, VerificationError
from edgeforge.core.task import Input, Interface, Tokens
from edgeforge.models import tokenizer
from edgeforge.runtimes import Session
from edgeforge.runtimes._coreml_decoder import CoremlDecoder
from edgeforge.runtimes._llama.session import LlamaCppSession
from edgeforge.runtimes._onnx_decoder import OnnxDecoder
from edgeforge.verification import Check
from edgeforge.verification._coreml_decoder import LIMIT as COREML_LIMIT
from edgeforge.verification._coreml_decoder import decoder_weights as coreml_weights
from edgeforge.verification._coreml_decoder import remembers
from edgeforge.verification._coreml_package import open_package
from edgeforge.verification._coreml_program import HALF_LIMIT
from edgeforge.verification._coreml_weights import Comparison
from edgeforge.verification._decoders import expected_of_decoder
from edgeforge.verification._foreign_package import ForeignDecoder
from edgeforge.verification._gguf_answers import LIMITS as GGUF_LIMITS
from edgeforge.verification._gguf_answers import main_type
from edgeforge.verification._gguf_weights import weight_checks
from edgeforge.verification._model_weights import NAME as WEIGHTS
from edgeforge.verification._on_a_mac import apple_session
from edgeforge.verification._onnx_decoder import LIMIT as ONNX_LIMIT
from edgeforge.verification._onnx_decoder import decoder_weights as onnx_weights
from edgeforge.verification._onnx_decoder import exact_session
from edgeforge.verification._operators import UnknownOperator
from edgeforge.verification._subjects import Subject
from edgeforge.verification._token_answers import Pair, torch_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARITY, IN_CORE_ML = "parity with torch", "parity with torch, in Core ML"

LENGTH = 80
"""Tokens of a text: more than a package reads at once, so that what it remembers counts."""

LEAST = 0.7
"""Of agreement and of cosine, for a quantized file against the float model, as in a run."""

PROSE = """
The harbour was quiet when the first boats came in. Nobody on the pier had expected them before the evening, and so
there was no one to take the ropes but an old man and two children, who ran from one post to the next. In the third
boat sat a woman with a box on her knees. She asked what the town was called, wrote the answer down, and said that 1847
people had lived here once: she had counted the names in the church book herself, and three of them were her own.
"Water boils at 100 degrees," she went on, as if somebody had asked, "and freezes at 0; between the two we live."
"""


def decoder_checks(subject: Subject, folder: Path, network: PreTrainedModel, session: Session) -> Iterator[Check]:
    """Weights one by one, and next tokens on a few texts; `network` is the model in `folder`."""
    if not network.can_generate():
        yield Check(PARITY, False, "the file writes texts, and the torch model does not")
        return
    same_grid = not subject.quantized or (folder / "quantization.json").is_file()
    if not same_grid:
        yield Check(WEIGHTS, None, "the file is quantized, and the torch model is not: give the quantized one")
    elif isinstance(session, ForeignDecoder):
        yield Check(WEIGHTS, None, "EdgeForge did not write the file: which weight is which is not known")
    else:
        yield from _weights(subject, folder, network)
    texts = texts_for(folder, network, _room(session, network))
    try:
        yield next_tokens(subject, network, session, texts, same_grid=same_grid)
        if subject.format == "coreml" and (apple := apple_session(subject.file, session)) is not None:
            yield next_tokens(subject, network, apple, texts, same_grid=same_grid, in_core_ml=True)
        if isinstance(session, CoremlDecoder):
            yield remembers(session, _given(texts[0]))
    except ModelError as error:
        yield Check(PARITY, False, error.what)


def texts_for(folder: Path, network: PreTrainedModel, room: int) -> list[list[int]]:
    """Two texts of ids: English prose, as the tokenizer in the folder reads it; without one, any ids."""
    size = min(LENGTH, room)
    vocabulary = int(network.config.vocab_size)
    ids = np.random.default_rng(0).integers(0, vocabulary, 2 * size).tolist()
    if tokenizer.present(folder):
        read = [int(one) for one in tokenizer.read(folder)(PROSE)["input_ids"]]
        ids = [*read, *ids] if max(read) < vocabulary else ids
    return [ids[:size], ids[size : 2 * size]]


def next_tokens(
    subject: Subject,
    network: PreTrainedModel,
    session: Session,
    texts: Sequence[Sequence[int]],
    *,
    same_grid: bool,
    in_core_ml: bool = False,
) -> Check:
    """What the file and torch find likely after every token of some texts. Raises ModelError where it does not run."""
    name = IN_CORE_ML if in_core_ml else PARITY
    asked = _exact(subject, session)
    pair, largest = Pair(), 0.0
    for text in texts:
        given = _given(text)
        found, expected = asked.run(given)[0], torch_logits(network, given)
        if found.shape != expected.shape:
            return Check(name, False, f"the file answers in shape {found.shape}, the torch model in {expected.shape}")
        if not np.isfinite(found).all():
            return Check(name, False, "some answers are NaN or Infinity")
        pair.add(expected, found)
        largest = max(largest, float(np.abs(expected).max()))
    said = (
        f"same next token after {pair.agreement:.1%} of {pair.tokens}, mean divergence {pair.mean_kld:.3g} nats, "
        f"largest error {pair.max_abs_error:.3g}"
    )
    if not same_grid or (subject.quantized and subject.format == "gguf"):
        close = min(pair.agreement, pair.cosine) >= LEAST
        why = "quantized" if not same_grid else "llama.cpp rounds activations to 8 bits"
        return Check(name, close, f"{said}; {why}, so at least {LEAST:g} of agreement and of cosine")
    if subject.format == "onnx":
        most = ONNX_LIMIT * largest
        return Check(name, pair.max_abs_error <= most, f"{said}, at most {most:.3g}: {ONNX_LIMIT:g} of the largest")
    limit, why = (HALF_LIMIT, "what float16 may move") if in_core_ml else _divergence(subject)
    return Check(name, pair.mean_kld <= limit, f"{said}; at most {limit:g} of divergence, {why}")


def _divergence(subject: Subject) -> tuple[float, str]:
    if subject.format == "coreml":
        return COREML_LIMIT, "what float16 weights, keys and values may move"
    kind, _ = main_type(gguf_file.read(subject.file))
    return GGUF_LIMITS[kind], f"what {kind} and llama.cpp's order of sums may move"


def _exact(subject: Subject, session: Session) -> Session:
    return exact_session(onnx_graph.load(subject.folder), subject.folder) if subject.format == "onnx" else session


def _given(text: Sequence[int]) -> dict[str, np.ndarray]:
    ids = np.asarray([text], dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _room(session: Session, network: PreTrainedModel) -> int:
    """Tokens of the longest text that both take."""
    most = int(network.config.max_position_embeddings)
    if isinstance(session, CoremlDecoder):
        return min(most, session.context)
    if isinstance(session, LlamaCppSession):
        return min(most, session.model.trained_length)
    return min(most, session.length) if isinstance(session, ForeignDecoder) else most


def _weights(subject: Subject, folder: Path, network: PreTrainedModel) -> list[Check]:
    try:
        if subject.format == "gguf":
            return weight_checks(gguf_file.read(subject.file), folder)
        expected = expected_of_decoder(folder, _interface(network))
        if subject.format == "onnx":
            return [onnx_weights(onnx_graph.load(subject.folder), folder, expected)]
        return coreml_weights(open_package(subject.file).function, Comparison(expected))
    except (ModelError, VerificationError, UnknownOperator) as error:
        return [Check(WEIGHTS, None, getattr(error, "what", str(error)))]


def _interface(network: PreTrainedModel) -> Interface:
    """What is needed to follow a forward pass of a language model."""
    length = (16,)
    inputs = (Input("input_ids", length, "int64", True, 0), Input("attention_mask", length, "int64", True, 1))
    return Interface(inputs, "logits", (), tokens=Tokens(int(network.config.vocab_size), length[0], 0))


DECODERS = (CoremlDecoder, OnnxDecoder, LlamaCppSession, ForeignDecoder)
"""Sessions that `decoder_checks` is for."""
