"""What is measured of language models: speeds of reading and of writing, and how near memory lets them come."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeforge.core.errors import DataError
from edgeforge.core.kinds import discover
from edgeforge.links import Subject, Timings
from edgeforge.runtimes import Runtime

if TYPE_CHECKING:
    from edgeforge.core.task import TaskData


def prompt(data: TaskData, count: int) -> list[int]:
    """The first `count` tokens of the test windows; where there are fewer, they are repeated. Raises DataError."""
    found: list[int] = []
    for index in range(data.size("test")):
        batch = data.batch("test", [index])
        read = batch["attention_mask"][0].bool()
        found += batch["input_ids"][0][read].tolist()
        if len(found) >= count:
            break
    if not found:
        raise DataError("the test part has no token to measure with", remedy="add a test text")
    return list(itertools.islice(itertools.cycle(found), count))


def longest_text(subjects: Mapping[str, Subject]) -> int | None:
    """Tokens that all of them take; None where none says."""
    lengths = (_runtime(subject).context_length(subject.folder) for subject in subjects.values())
    return min((length for length in lengths if length is not None), default=None)


def save(path: Path, tokens: Sequence[int]) -> None:
    """The prompt as a workload's inputs."""
    np.savez(path, input_ids=np.asarray([tokens], dtype=np.int64))


def samples(name: str, subject: Subject, timings: Timings) -> dict[str, tuple[float, ...]]:
    """Metric -> samples by round, beside `latency_ms`, of which they are made."""
    token_ms, prefill_ms = timings.latency_ms[name], timings.prefill_ms[name]
    prompt_tokens = timings.conditions["prompt_tokens"]
    found = {
        "decode_tokens_per_s": tuple(1000 / value for value in token_ms),
        "prefill_tokens_per_s": tuple(1000 * prompt_tokens / value for value in prefill_ms),
        "first_token_ms": prefill_ms,
    }
    read = _runtime(subject).bytes_per_token(subject.folder)
    if read is not None and timings.memory_gb_per_s:
        # Of the same round: what slows the memory slows both.
        rounds = zip(token_ms, timings.memory_gb_per_s, strict=True)
        found["memory_bandwidth_percent"] = tuple(100 * read / (value / 1000) / (1e9 * rate) for value, rate in rounds)
    return found


def _runtime(subject: Subject) -> Runtime:
    cls = discover("edgeforge.runtimes", Runtime)[subject.runtime]
    return cls.model_validate({"kind": subject.runtime})  # type: ignore[return-value]
