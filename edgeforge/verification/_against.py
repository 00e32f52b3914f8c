"""A file against a torch model's folder, without the task: weights one by one, and answers to a few inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph, openvino_graph
from edgeforge.core.errors import ModelError, VerificationError
from edgeforge.core.task import Input, Interface, Pixels, Tokens
from edgeforge.verification import Check, differences
from edgeforge.verification._coreml_inputs import normalisation
from edgeforge.verification._coreml_package import open_package
from edgeforge.verification._coreml_weights import Comparison
from edgeforge.verification._expected_weights import Expected, expected_weights
from edgeforge.verification._model_weights import NAME as WEIGHTS
from edgeforge.verification._model_weights import weights_check
from edgeforge.verification._onnx_constants import floats
from edgeforge.verification._opened import ROUNDINGS, float_limit
from edgeforge.verification._operators import UnknownOperator
from edgeforge.verification._probes import Inputs
from edgeforge.verification._subjects import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.runtimes import Session

PARITY = "parity with torch"
LAST_BIT = 2.0**-11
LEAST = 0.7
"""Of agreement and of cosine, for a quantized file against the float model, as in a run."""


def against_checks(subject: Subject, folder: Path, session: Session | None, inputs: Inputs) -> Iterator[Check]:
    """Raises ModelError where `folder` holds no model that can be loaded."""
    from edgeforge.models import loading

    if session is None or not inputs:
        yield Check(PARITY, None, "which of its inputs are the torch model's is not known: EdgeForge did not write it")
        return
    network = loading.load(folder)
    same_grid = subject.quantized and (folder / "quantization.json").is_file()
    yield _weights(subject, folder, network, inputs)
    yield _parity(subject, network, session, inputs, same_grid=bool(same_grid))


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


def _parity(subject: Subject, network: PreTrainedModel, session: Session, inputs: Inputs, *, same_grid: bool) -> Check:
    found = session.run(inputs)
    try:
        exact = _logits(network, inputs, "float64")
        single = _logits(network, inputs, "float32")
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return Check(PARITY, False, f"the torch model does not take the file's inputs: {error}".splitlines()[0])
    if found.shape != exact.shape:
        return Check(PARITY, False, f"the file answers in shape {found.shape}, the torch model in {exact.shape}")
    limit, why = float_limit(exact, single)
    if subject.format == "coreml":
        found, exact, single = (_probabilities(one) for one in (found, exact, single))
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
        return Check(PARITY, True, f"{said}; {why}")
    if subject.quantized and not same_grid and cosine is not None and agreement is not None:
        return Check(PARITY, min(agreement, cosine) >= LEAST, f"{said}; quantized, so at least {LEAST:g} of both")
    return Check(PARITY, False, f"{said}; {why}")


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


def _probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
