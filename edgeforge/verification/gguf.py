"""GGUF files: read without llama.cpp and held against the torch model, then opened with llama.cpp and asked.

A float file must answer as torch does, within what its type rounds. A quantized file is looked at three times: each
tensor, multiplied out, is as near to the float one as its type can be; llama.cpp answers as torch does with those very
numbers, within what rounding activations to 8 bits moves; and how far that is from the float model is its fidelity.

A file whose tensors or metadata are not what they should be is not given to llama.cpp, which ends the whole process
where it finds what it does not expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from edgeforge import gguf_file
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.stage import Job
from edgeforge.gguf_file import MODEL
from edgeforge.runtimes._llama.session import LlamaCppSession
from edgeforge.runtimes.llama_cpp import LlamaCpp
from edgeforge.verification import Check, Parity, outcome
from edgeforge.verification._gguf_answers import LIMITS, Answered, compare
from edgeforge.verification._gguf_promises import file_promises, tokenizer_checks
from edgeforge.verification._gguf_weights import layer_noise, rounding_checks, weight_checks

LEAST_AGREEMENT = 0.99
"""Share of tokens for which a float file and torch find the same token likeliest."""

FLOORS = 4
FLOOR_BASE = 2e-4
"""A quantized file's answers may be this many times as far from torch with the same numbers as those of a Q8_0 file are
from the float model, whose divergence is nearly all due to 8-bit activations, and this (nats) beyond: k-quants round
activations in blocks of 256, Q8_0 in blocks of 32."""


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`. `parity` and `fidelity` also say `mean_kld`, in nats per token."""
    nothing = Parity("the torch model", None, "the file is not as it should be, so it was not asked")
    try:
        file = gguf_file.read(inputs["file"].path / MODEL)
    except (ModelError, EnvironmentProblem) as error:
        return outcome(nothing, [Check("the file is whole", False, error.what)])
    checks = [Check("the file is whole", True), *file_promises(file, inputs)]
    if all(check.passed for check in checks):
        rewrote = "unquantized" in inputs
        held_against = inputs["model" if rewrote else "reference"].path
        checks += weight_checks(file, held_against, quantizer_rewrote=rewrote)
        checks += rounding_checks(inputs)
    if not all(check.passed for check in checks):
        return outcome(nothing, checks)
    if (reason := LlamaCpp().available()) is not None:
        return outcome(
            Parity("the torch model", None, reason), [*checks, Check("llama.cpp opens the file", None, reason)]
        )
    try:
        session = LlamaCppSession(file.path)
    except ModelError as error:
        return outcome(nothing, [*checks, Check("llama.cpp opens the file", False, error.what)])
    try:
        checks += [Check("llama.cpp opens the file", True), *tokenizer_checks(session, inputs, job)]
        answered = compare(file, session, inputs, job)
    except ModelError as error:
        return outcome(nothing, [*checks, Check("the file answers", False, error.what)])
    finally:
        session.close()
    return {**_judged(answered, checks), "layers": [asdict(layer) for layer in layer_noise(file, inputs)]}


def _judged(answered: Answered, checks: list[Check]) -> dict[str, Any]:
    if not answered.finite:
        reason = "on real texts the file gives NaN or Infinity"
        return outcome(
            Parity(answered.reference, None, reason), [*checks, Check("every answer is a number", False, reason)]
        )
    checks.append(Check("every answer is a number", True))
    found = answered.parity
    limit, why = _limit(answered)
    passed = found.mean_kld <= limit
    if not answered.quantized:
        agrees = found.agreement >= LEAST_AGREEMENT
        checks.append(
            Check(
                f"torch and the file find the same token likeliest for more than {LEAST_AGREEMENT:.0%} of tokens",
                agrees,
                f"{found.agreement:.4f} of {found.tokens}",
            )
        )
    parity = Parity(
        answered.reference,
        passed,
        f"mean divergence {found.mean_kld:.3g} nats per token, {why}",
        max_abs_error=found.max_abs_error,
        cosine=found.cosine,
        agreement=found.agreement,
        samples=found.tokens,
    )
    facts = outcome(parity, checks, answered.fidelity)
    facts["parity"] |= {"mean_kld": found.mean_kld, "max_mean_kld": limit}
    if facts["fidelity"] is not None:
        facts["fidelity"] |= answered.more
    return facts


def _limit(answered: Answered) -> tuple[float, str]:
    """Greatest mean divergence (nats per token), and what it follows from."""
    if not answered.quantized:
        limit = LIMITS[answered.type]
        return limit, f"at most {limit:g}, what {answered.type} and llama.cpp's order of sums may move"
    limit = FLOORS * answered.floor + FLOOR_BASE
    return limit, (
        f"at most {limit:.3g}: {FLOORS} times what activations in 8 bits move in a Q8_0 file ({answered.floor:.3g}), "
        f"and {FLOOR_BASE:g}"
    )
