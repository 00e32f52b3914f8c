"""Core ML decoders: interface and weights read, the program computed on the reference evaluator beside torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError, VerificationError
from edgeforge.core.stage import Job
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes._coreml_decoder import INPUTS, LOGITS, CoremlDecoder
from edgeforge.runtimes.coreml_reference import CoremlReference
from edgeforge.verification import Check, Parity, outcome
from edgeforge.verification._coreml_inputs import check
from edgeforge.verification._coreml_package import Package, PyMIL, open_package
from edgeforge.verification._coreml_program import HALF_LIMIT
from edgeforge.verification._coreml_weights import Comparison, read_by_others
from edgeforge.verification._decoders import (
    PARITY_TOKENS,
    Answer,
    beside_torch,
    expected_of_decoder,
    faithful,
    largest_logit,
    memory_check,
    one_text,
)
from edgeforge.verification._model_weights import NAME as WEIGHTS
from edgeforge.verification._model_weights import weights_check
from edgeforge.verification._on_a_mac import own_answers
from edgeforge.verification._rounded_weights import of_reference

REFERENCE = "the torch model, on the reference evaluator"
LIMIT = 1e-4
"""Mean divergence from torch with the same numbers (nats per token): weights that no quantizer chose, and all keys and
values, are float16, as in a float16 GGUF file."""

STEP = 0.02
"""Of the largest logit: how far a text read in parts may be from one read at once. Keys and values are float16."""


def verify_decoder(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`. `parity` and `fidelity` also say `mean_kld`, in nats per token."""
    nothing = Parity(REFERENCE, None, "the package is not what it should be")
    folder = inputs["file"].path
    try:
        package = open_package(folder / runtime.PACKAGE)
        session = CoremlReference().open(folder)
        half = CoremlReference(precision="float16").open(folder)
    except (VerificationError, ModelError) as error:
        return outcome(nothing, [Check("opens", False, error.what)])
    if not isinstance(session, CoremlDecoder) or not isinstance(half, CoremlDecoder):
        return outcome(nothing, [Check("opens", False, "its metadata do not say that it remembers tokens")])
    comparison = Comparison(expected_of_decoder(inputs["reference"].path, job.data.interface))
    rounded, layers = of_reference(inputs["reference"].path, inputs["model"].path, comparison.expected.reads)
    checks = [Check("opens", True), *_promises(package, session, inputs, job), *rounded]
    checks += decoder_weights(package.function, comparison)
    if not all(one.passed for one in checks):
        return outcome(nothing, checks, layers=layers)
    facts = _computed(session, half, inputs, job, checks)
    return {**facts, "layers": [asdict(layer) for layer in layers]}


def _computed(
    session: CoremlDecoder, half: CoremlDecoder, inputs: Mapping[str, Artifact], job: Job, checks: list[Check]
) -> dict[str, Any]:
    quantized = inputs["reference"].digest != inputs["model"].digest
    try:
        found = beside_torch(at_once(session), inputs, job)
        rough = beside_torch(at_once(half), inputs, job, tokens=PARITY_TOKENS // 4)
        memory = remembers(session, one_text(job))
        close = faithful(at_once(session), inputs, job) if quantized else None
    except ModelError as error:
        nothing = Parity(REFERENCE, None, "the program does not run")
        return outcome(nothing, [*checks, Check("computes", False, error.what)])
    overflow = not np.isfinite(rough.max_abs_error)
    said = "a number overflows" if overflow else f"mean divergence {rough.mean_kld:.3g}, at most {HALF_LIMIT:g}"
    fits = Check("fits float16", not overflow and rough.mean_kld <= HALF_LIMIT, said)
    finite = bool(np.isfinite(found.max_abs_error))
    parity = Parity(
        REFERENCE,
        finite and found.mean_kld <= LIMIT,
        f"mean divergence {found.mean_kld:.3g} nats per token, at most {LIMIT:g}, what float16 weights, keys and "
        "values may move",
        max_abs_error=found.max_abs_error if finite else None,
        cosine=found.cosine,
        agreement=found.agreement,
        samples=found.tokens,
    )
    apple = own_answers(inputs["file"].path / runtime.PACKAGE, one_text(job))
    facts = outcome(parity, [*checks, memory, fits, *apple], close[0] if close else None)
    facts["parity"] |= {"mean_kld": found.mean_kld, "max_mean_kld": LIMIT}
    if close is not None:
        facts["fidelity"] |= close[1]
    return facts


def remembers(session: CoremlDecoder, given: dict[str, np.ndarray]) -> Check:
    """A text read in parts gives what it gives at once."""
    limit = STEP * max(1.0, largest_logit(at_once(session), given))
    return memory_check(at_once(session), in_parts(session), given, limit)


def decoder_weights(function: PyMIL, comparison: Comparison) -> list[Check]:
    """Layers in the order they run; and every other number of the model, those of tokens that no text here has too.

    What else the program reads (rotary frequencies, masks) is no number of the model: its answers say whether it is
    right.
    """
    try:
        found = {
            place: value if isinstance(value, np.ndarray) else value.dequantize()
            for place, value in read_by_others(function)
        }
        others = replace(comparison.expected, layers=[])
        return [comparison.layers(function), weights_check(others, found, all_known=False)]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        return [Check("layers", False, f"they are built in another way: {type(error).__name__}: {error}")]
    except VerificationError as error:
        return [Check(WEIGHTS, False, error.what)]


def at_once(session: CoremlDecoder) -> Answer:
    """The session, asked about whole texts."""
    return lambda given: session.run(given)[0]


def in_parts(session: CoremlDecoder) -> Answer:
    """The session, asked about a text's beginning, then token by token, then about the rest."""

    def answer(given: dict[str, np.ndarray]) -> np.ndarray:
        ids, state = given["input_ids"][0].tolist(), session.model.make_state()
        half = min(len(ids), session.chunk + 3)
        parts, done = [ids[: half - 2], ids[half - 2 : half - 1], ids[half - 1 : half], ids[half:]], 0
        found = []
        for part in parts:
            if part:
                found.append(session.read(part, state, start=done))
                done += len(part)
        logits: np.ndarray = np.concatenate(found, axis=1)[0]
        return logits

    return answer


def _promises(package: Package, session: CoremlDecoder, inputs: Mapping[str, Artifact], job: Job) -> Iterator[Check]:
    """Tokens and positions in, logits out, keys and values of every block as states; what the metadata say."""
    from edgeforge.models import loading, tokenizer_settings

    description = package.spec.description
    network = loading.load(inputs["reference"].path)
    config, interface = network.config, job.data.interface
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    yield check("inputs", [value.name for value in description.input], list(INPUTS))
    yield check("outputs", [value.name for value in description.output], [LOGITS])
    shapes = {value.name: tuple(value.type.stateType.arrayType.shape) for value in description.state}
    wanted = (1, config.num_key_value_heads, session.context, size)
    names = [f"{part}_{block}" for block in range(config.num_hidden_layers) for part in ("key", "value")]
    yield check("states", shapes, dict.fromkeys(names, wanted))
    metadata = description.metadata.userDefined
    ends = network.generation_config.eos_token_id
    yield check(
        "tokens in metadata",
        json.loads(metadata[runtime.TOKENS_KEY]),
        {
            "context": session.context,
            "chunk": session.chunk,
            "pad_id": interface.text.pad_id,
            "ends": ends if isinstance(ends, list) else [] if ends is None else [ends],
        },
    )
    yield check("recipe", metadata[runtime.RECIPE_KEY], inputs["reference"].key)
    same = tokenizer_settings.is_as_shipped(inputs["file"].path, inputs["model"].path, interface)
    yield Check("tokenizer", same, "" if same else "its files are not those of the model")
