"""Core ML's own answers, where it runs: beside the evaluator's, and beside the torch model's.

No Mac runs EdgeForge's tests: there, MLModel is played by a stand-in that answers as the evaluator does, or wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeforge.core.errors import ModelError
from edgeforge.runtimes._coreml import load_coremltools, session_of
from edgeforge.runtimes._coreml_decoder import CoremlDecoder
from edgeforge.runtimes.coreml import Coreml
from edgeforge.runtimes.coreml_reference import open_model
from edgeforge.verification import Check, differences
from edgeforge.verification._coreml_program import HALF_LIMIT
from edgeforge.verification._foreign_package import ForeignDecoder, numbers, samples_of
from edgeforge.verification._opened import ROUNDINGS
from edgeforge.verification._probes import Inputs
from edgeforge.verification._token_answers import Pair

NAME = "Core ML answers as the evaluator does"
ABSENT = "Apple's compiler and kernels"
LAST_BIT = 2.0**-11


class AppleModel:
    """A package opened by Core ML. Raises ModelError where Core ML refuses it."""

    def __init__(self, package: Path) -> None:
        coremltools = load_coremltools()
        try:
            self._model = coremltools.models.MLModel(str(package))
            self.metadata = dict(self._model.user_defined_metadata)
            self.features = tuple(self._model.get_spec().description.input)
        except Exception as error:  # Apple's frameworks say no in many ways
            raise ModelError(f"Core ML does not open it: {error}", where=str(package)) from error

    def make_state(self) -> Any:
        """Fresh states."""
        return self._model.make_state()

    def predict(self, data: Any, state: Any = None) -> Any:
        """As MLModel's. Raises ModelError where Core ML fails."""
        try:
            return self._model.predict(data) if state is None else self._model.predict(data, state)
        except Exception as error:
            raise ModelError(f"Core ML does not run it: {error}") from error


def beside_the_evaluator(package: Path, inputs: Inputs) -> Iterator[Check]:
    """What Core ML answers against what the evaluator does; elsewhere a check that was not made, and why.

    `inputs`: of a package written here, as its session takes them; none: made-up ones by the package's own names.
    """
    if (reason := Coreml().available()) is not None:
        yield Check(ABSENT, None, f"{reason}; the program was computed from the file")
        return
    try:
        yield _compared(package, inputs)
    except ModelError as error:
        yield Check(NAME, False, error.what)


def own_answers(package: Path, inputs: Inputs) -> list[Check]:
    """The same as part of a run: on a Mac that check, elsewhere nothing."""
    return list(beside_the_evaluator(package, inputs)) if Coreml().available() is None else []


def _compared(package: Path, inputs: Inputs) -> Check:
    models = (AppleModel(package), open_model(package), open_model(package, precision="float16"))
    if not inputs:
        stateful = bool(models[1].make_state())
        theirs, ours, half = (numbers(model, samples_of(models[1]), stateful=stateful) for model in models)
        return _close(theirs, ours, half)
    sessions = [session_of(model, models[1].metadata, models[1].features) for model in models]
    theirs, ours, half = (session.run(inputs) for session in sessions)
    if isinstance(sessions[0], CoremlDecoder):
        return _same_words(theirs, ours)
    return _close(np.exp(theirs), np.exp(ours), np.exp(half))


def _close(theirs: np.ndarray, ours: np.ndarray, half: np.ndarray) -> Check:
    """Within several times what float16 moves, as the evaluator computes it."""
    if theirs.shape != ours.shape:
        return Check(NAME, False, f"Core ML answers in shape {theirs.shape}, the evaluator in {ours.shape}")
    found = differences(theirs, ours)
    last = LAST_BIT * max(1.0, float(np.abs(ours).max()))
    moved = float(np.abs(half - ours).max())
    limit = ROUNDINGS * max(last, moved if np.isfinite(moved) else 0.0)
    apart = found["max_abs_error"]
    said = "Core ML's are not all numbers" if apart is None else f"they differ by {apart:.3g}"
    detail = (
        f"{said}, same label on {found['agreement']:.0%}; at most {limit:.3g}, {ROUNDINGS} times what float16 moves"
    )
    return Check(NAME, apart is not None and apart <= limit, detail)


def _same_words(theirs: np.ndarray, ours: np.ndarray) -> Check:
    if theirs.shape != ours.shape or not np.isfinite(theirs).all():
        return Check(NAME, False, "Core ML's answers are of another shape, or not all numbers")
    pair = Pair()
    for one, other in zip(ours, theirs, strict=True):
        pair.add(one, other)
    said = f"same next token after {pair.agreement:.1%} of {pair.tokens}, mean divergence {pair.mean_kld:.3g} nats"
    return Check(NAME, pair.mean_kld <= HALF_LIMIT, f"{said}, at most {HALF_LIMIT:g}, what float16 may move")


def apple_session(package: Path, session: Any) -> Any:
    """The same package opened by Core ML, as a session like `session`; None off the Mac. Raises ModelError."""
    if Coreml().available() is not None:
        return None
    model = AppleModel(package)
    if isinstance(session, ForeignDecoder):
        return ForeignDecoder(model, open_model(package))
    known = open_model(package)
    return session_of(model, known.metadata, known.features)
