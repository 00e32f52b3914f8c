"""Language models with memory, in any format: their answers to real texts beside torch's, and what they remember."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.verification import Check, Fidelity
from edgeforge.verification._expected_weights import Expected, expected_weights
from edgeforge.verification._token_answers import Pair, Predicted, torch_logits, window, windows

Answer = Callable[[dict[str, np.ndarray]], np.ndarray]
"""Inputs of one text, (1, L) -> logits, float32, (L, vocabulary)."""

PARITY_TOKENS = 512
MEMORY = "what was read is remembered"


def beside_torch(answer: Answer, inputs: Mapping[str, Artifact], job: Job, *, tokens: int = PARITY_TOKENS) -> Pair:
    """A file's answers against those of the torch model whose numbers it holds, on whole windows of `tokens` or more.

    `max_abs_error` is infinite where an answer is not a number.
    """
    from edgeforge.models import loading

    model, pair = loading.load(inputs["reference"].path), Pair()
    for row in windows(job, tokens):
        given, _ = window(job, row)
        found = answer(given)
        if not np.isfinite(found).all():
            pair.max_abs_error = np.inf
            return pair
        pair.add(torch_logits(model, given), found)
    return pair


def faithful(answer: Answer, inputs: Mapping[str, Artifact], job: Job) -> tuple[Fidelity, dict[str, float]]:
    """How far a quantized file is from the float model, as its user will notice; and more numbers of that."""
    from edgeforge.models import loading

    model, close, predicted = loading.load(inputs["model"].path), Pair(), (Predicted(), Predicted())
    for row in windows(job):
        given, labels = window(job, row)
        exact, own = torch_logits(model, given), answer(given)
        close.add(exact, own)
        for one, logits in zip(predicted, (exact, own), strict=True):
            one.add(logits, labels)
    fidelity = Fidelity(
        agreement=close.agreement,
        cosine=close.cosine,
        metric="next_token_accuracy",
        metric_drop=predicted[0].accuracy - predicted[1].accuracy,
        samples=close.tokens,
    )
    more = {
        "mean_kld": close.mean_kld,
        "perplexity": predicted[1].perplexity,
        "float_perplexity": predicted[0].perplexity,
    }
    return fidelity, more


def memory_check(at_once: Answer, in_parts: Answer, given: dict[str, np.ndarray], limit: float) -> Check:
    """A text read in parts, each behind what is remembered of those before, gives what it gives at once.

    `given`: one text; `limit`: largest difference of two logits.
    """
    apart = float(np.abs(at_once(given) - in_parts(given)).max())
    return Check(MEMORY, bool(apart <= limit), f"read in parts, logits differ by {apart:.3g}, at most {limit:.3g}")


def one_text(job: Job) -> dict[str, np.ndarray]:
    """The inputs of one window of the validation split."""
    return window(job, windows(job, 1)[0])[0]


def largest_logit(answer: Answer, given: dict[str, np.ndarray]) -> float:
    """The largest absolute logit in the answer to one text."""
    return float(np.abs(answer(given)).max())


def expected_of_decoder(folder: Path, interface: Interface) -> Expected:
    """The numbers that a file of a decoder must hold: its parameters. Rotary tables are computed as it runs."""
    from edgeforge.models import loading

    expected = expected_weights(folder, interface)
    parameters = {name for name, _ in loading.load(folder).named_parameters(remove_duplicate=False)}
    kept = [forms for forms in expected.others if forms[0].values.name in parameters]
    return replace(expected, others=kept)
