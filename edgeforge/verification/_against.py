"""A file against a torch model's folder, without the task: weights one by one, and answers to a few inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph, openvino_graph
from edgeforge.core.errors import ModelError, VerificationError
from edgeforge.core.task import Input, Interface, Pixels, Tokens
from edgeforge.runtimes.coreml_reference import open_model
from edgeforge.verification import Check, differences
from edgeforge.verification._against_decoder import DECODERS, IN_CORE_ML, LEAST, PARITY, decoder_checks
from edgeforge.verification._coreml_inputs import normalisation
from edgeforge.verification._coreml_package import open_package
from edgeforge.verification._coreml_weights import Comparison
from edgeforge.verification._expected_weights import Expected, expected_weights
from edgeforge.verification._foreign_package import ForeignDecoder, classifier_of
from edgeforge.verification._model_weights import NAME as WEIGHTS
from edgeforge.verification._model_weights import weights_check
from edgeforge.verification._on_a_mac import apple_session
from edgeforge.verification._onnx_constants import floats
from edgeforge.verification._opened import ROUNDINGS, float_limit
from edgeforge.verification._operators import UnknownOperator
from edgeforge.verification._probes import Inputs
from edgeforge.verification._subjects import Subject, is_quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.runtimes import Session

LAST_BIT = 2.0**-11


def against_checks(subject: Subject, folder: Path, session: Session | None, inputs: Inputs) -> Iterator[Check]:
    """Weights, and answers; on a Mac, those of Core ML itself too.

    `session` is None for a package that EdgeForge did not write. Raises ModelError where `folder` holds no model that
    can be loaded.
    """
    from edgeforge.models import loading

    network = loading.load(folder)
    foreign = session is None
    try:
        if session is None:
            session, inputs = _of_another_author(subject, network)
        subject = replace(subject, quantized=is_quantized(subject))
    except ModelError as error:
        yield Check(PARITY, None, f"which of its inputs are the torch model's is not known: {error.what}")
        return
    if isinstance(session, DECODERS):
        yield from decoder_checks(subject, folder, network, session)
        return
    same_grid = bool(subject.quantized) and (folder / "quantization.json").is_file()
    if foreign:
        yield Check(WEIGHTS, None, "EdgeForge did not write the file: which weight is which is not known")
    else:
        yield _weights(subject, folder, network, inputs)
    for name, asked in _sessions(subject, session, foreign=foreign):
        # Loaded anew: what is compared changes the type and the rounding of its numbers.
        yield _parity(subject, loading.load(folder), asked, inputs, same_grid=same_grid, name=name)


def _sessions(subject: Subject, session: Session, *, foreign: bool) -> Iterator[tuple[str, Session]]:
    yield PARITY, session
    if subject.format == "coreml" and not foreign and (apple := apple_session(subject.file, session)) is not None:
        yield IN_CORE_ML, apple


def _of_another_author(subject: Subject, network: PreTrainedModel) -> tuple[Session, Inputs]:
    opened = open_model(subject.file)
    if network.can_generate():
        return ForeignDecoder(opened, opened), {}
    return classifier_of(opened, network)


def _weights(subject: Subject, folder: Path, network: PreTrainedModel, inputs: Inputs) -> Check:
    """Where the file's arithmetic is float; integers that a file quantizer chose are another model's."""
    if subject.quantized and not (folder / "quantization.json").is_file():
        return Check(WEIGHTS, None, "the file is quantized, and the torch model is not: give the quantized one")
    try:
        expected = expected_weights(folder, _interface(network, inputs))
        if subject.format == "onnx":
            return weights_check(expected, floats(onnx_graph.load(subject.folder)))
        if subject.format == "openvino":
            return weights_check(expected, openvino_graph.float_constants(openvino_graph.load(subject.folder)))
        if subject.format == "coreml":
            return _coreml_weights(subject, expected)
    except (ModelError, VerificationError, UnknownOperator) as error:
        return Check(WEIGHTS, None, getattr(error, "what", str(error)))
    return Check(WEIGHTS, None, f"they are not compared in {subject.format} files here")


def _coreml_weights(subject: Subject, expected: Expected) -> Check:
    function = open_package(subject.file).function
    comparison = Comparison(expected)
    checks = [comparison.layers(function), comparison.others(function, ignored=list(normalisation(function)))]
    failed = [check for check in checks if check.passed is False]
    return Check(WEIGHTS, not failed, failed[0].detail if failed else "")


def _interface(network: PreTrainedModel, inputs: Inputs) -> Interface:
    """What is needed to follow a forward pass: inputs by name and shape."""
    names = tuple(network.config.id2label[index] for index in sorted(network.config.id2label))
    images = [array for array in inputs.values() if array.dtype.kind == "f"]
    values = tuple(
        Input(name, array.shape[1:], "float32" if array.dtype.kind == "f" else "int64", array.dtype.kind != "f", 1)
        for name, array in inputs.items()
    )
    if images:
        channels = images[0].shape[1]
        return Interface(values, "logits", names, pixels=Pixels((0.0,) * channels, (1.0,) * channels))
    longest = next(iter(inputs.values())).shape[1]
    return Interface(values, "logits", names, tokens=Tokens(int(network.config.vocab_size), longest, 0))


def _parity(
    subject: Subject, network: PreTrainedModel, session: Session, inputs: Inputs, *, same_grid: bool, name: str
) -> Check:
    try:
        found = session.run(inputs)
        exact = _logits(network, inputs, "float64")
        single = _logits(network, inputs, "float32")
    except ModelError as error:
        return Check(name, False, error.what)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return Check(name, False, f"the torch model does not take the file's inputs: {error}".splitlines()[0])
    if found.shape != exact.shape:
        return Check(name, False, f"the file answers in shape {found.shape}, the torch model in {exact.shape}")
    limit, why = float_limit(exact, single)
    if subject.format == "coreml":
        # Logarithms of probabilities become those; so do logits, and what another author's package gives as numbers.
        found = found if _are_probabilities(found) else _probabilities(found)
        exact, single = _probabilities(exact), _probabilities(single)
        half = _probabilities(_logits(_halved(network), inputs, "float32"))
        limit = ROUNDINGS * max(LAST_BIT, float(np.abs(half - exact).max()))
        why = f"probabilities differ by at most {limit:.3g}: {ROUNDINGS} times what rounding to float16 moves"
    elif subject.format == "openvino":
        limit += 4 * float(np.abs(_logits(_halved(network), inputs, "float32") - exact).max())
        why = f"at most {limit:.3g}, as constants may be float16"
    compared = differences(found.reshape(-1, found.shape[-1]), exact.reshape(-1, exact.shape[-1]))
    apart, agreement, cosine = compared["max_abs_error"], compared["agreement"], compared["cosine"]
    said = f"largest error {apart}, cosine {cosine}, same label on {agreement:.0%}"
    if apart is not None and apart <= limit:
        return Check(name, True, f"{said}; {why}")
    if subject.quantized and not same_grid and cosine is not None and agreement is not None:
        return Check(name, min(agreement, cosine) >= LEAST, f"{said}; quantized, so at least {LEAST:g} of both")
    return Check(name, False, f"{said}; {why}")


def _logits(network: PreTrainedModel, inputs: Inputs, dtype: str) -> np.ndarray:
    import torch

    kind = getattr(torch, dtype)
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    typed = {name: value.to(kind) if value.is_floating_point() else value for name, value in tensors.items()}
    with torch.inference_mode():
        answer: np.ndarray = network.to(kind)(**typed).logits.numpy()
    return answer


def _halved(network: PreTrainedModel) -> PreTrainedModel:
    """In place; it has said all else by now."""
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    return network


def _are_probabilities(numbers: np.ndarray) -> bool:
    return bool((numbers >= 0).all() and np.allclose(numbers.sum(axis=-1), 1, atol=1e-2))


def _probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
