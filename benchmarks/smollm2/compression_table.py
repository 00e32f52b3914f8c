"""Draw COMPRESSION.md from the raw rows.

python -m benchmarks.smollm2.compression_table
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import read_row
from benchmarks.smollm2.compression import CHATS, ROWS, STEPS, TEACHER, VOCABULARY, WINDOW, WINDOWS, rows

SEEDS = (0, 1)
FILES = {name: ("f16", "q4_0") if name == "teacher" else ("iq4_nl", "q4_0") for name in rows(Path())} | {
    "tuned-teacher": ("q4_0",)
}
GOAL = {"share_of_bytes": 0.60, "times_faster": 1.5, "nats_lost": 0.14, "share_of_passed": 0.80}
ABOUT = (
    "SmolLM2-135M-Instruct. In domain: addresses on the State of the Union of years that no training text is from; out "
    f"of domain: Moby Dick; {WINDOWS} windows of {WINDOW} tokens each. Nats lost are per token of the teacher's own "
    "vocabulary, from bits per byte, against the teacher's float16 file, so a smaller vocabulary gains nothing by its "
    "longer windows. Share of bytes and times faster (tokens written per second, one thread, all files in one run) are "
    f"against the teacher's Q4_0. `whole` cuts the vocabulary to {VOCABULARY:,} tokens, 6 of 30 blocks and a third of "
    f"the feed-forward neurons and learns for {STEPS} steps of 4 windows, {CHATS:.0%} of them answers of the teacher; "
    "every row below it lacks one of these. `tuned-teacher` is the teacher trained on the same texts for as long. "
    "Mean over the seeds that are there, in brackets the smallest and the largest."
)


def row(name: str, seed: int) -> dict[str, Any] | None:
    """A raw row, or None where it was not made yet."""
    return read_row(ROWS / f"compression-{name}-seed{seed}.json")


def lost(found: dict[str, Any], file: str, domain: str, seed: int) -> float | None:
    """Nats per teacher token more than the teacher's float16 file."""
    teacher = row("teacher", seed) or row("teacher", 0)
    if teacher is None:
        return None
    own, floats = found["tested"][domain][file], teacher["tested"][domain]["teacher.f16"]
    per_token = math.log(floats["perplexity"]) / floats["bits_per_byte"]
    return float((own["bits_per_byte"] - floats["bits_per_byte"]) * per_token)


def collected(name: str, target: str) -> dict[str, list[float]]:
    """Everything about one file, a value per seed."""
    file = f"{name}.{target}"
    values: dict[str, list[float]] = {
        key: [] for key in ("mb", "share_of_bytes", "times_faster", "in", "out", "passed", "share_of_passed")
    }
    for seed in SEEDS:
        found, teacher = row(name, seed), row("teacher", seed) or row("teacher", 0)
        if found is None or teacher is None:
            continue
        values["mb"].append(found["bytes"][file] / 1e6)
        values["share_of_bytes"].append(found["bytes"][file] / teacher["bytes"][TEACHER])
        for domain in ("in", "out"):
            value = lost(found, file, domain, seed)
            if value is not None:
                values[domain].append(value)
        passed = found["tested"]["in"][file]["prompts_passed"]
        values["passed"].append(100 * passed)
        values["share_of_passed"].append(passed / teacher["tested"]["in"]["teacher.f16"]["prompts_passed"])
        timed = row("latency", seed)
        if timed and file in timed["files"]:
            values["times_faster"].append(timed["files"][file]["ratio"])
    return values


def shown(values: list[float], digits: int = 2) -> str:
    """``0.52 [0.51, 0.53]``."""
    if not values:
        return "missing"
    middle = f"{statistics.mean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def table() -> Iterator[str]:
    """The lines of the table."""
    yield "| file | MB | share of bytes | times faster | nats lost in | nats lost out | questions passed % |"
    yield "|---|---|---|---|---|---|---|"
    for name, targets in FILES.items():
        for target in targets:
            found = collected(name, target)
            if found["mb"]:
                cells = [shown(found["mb"], 1), shown(found["share_of_bytes"]), shown(found["times_faster"])]
                cells += [shown(found["in"], 3), shown(found["out"], 3), shown(found["passed"], 1)]
                yield f"| {name}.{target} | {' | '.join(cells)} |"


def goal() -> Iterator[str]:
    """What the recipe was to reach, and how near it came."""
    for target in FILES["whole"]:
        found = collected("whole", target)
        if not found["mb"]:
            yield f"- whole.{target}: not made"
            continue
        for key, wanted in GOAL.items():
            values = found["in"] if key == "nats_lost" else found[key]
            if not values:
                yield f"- whole.{target}: {key.replace('_', ' ')}: not measured"
                continue
            at_most = key in ("share_of_bytes", "nats_lost")
            worst = max(values) if at_most else min(values)
            holds = worst <= wanted if at_most else worst >= wanted
            verdict = "reached" if holds else "**missed**"
            bound = f"{'at most' if at_most else 'at least'} {wanted:g}"
            yield f"- whole.{target}: {key.replace('_', ' ')} {shown(values, 3)}, {bound}: {verdict}"


def main() -> None:
    lines = [
        "# SmolLM2-135M cut, taught and quantized",
        "",
        "Written by `compression_table.py` from the raw rows in `rows/`; do not edit.",
        "",
        ABOUT,
        "",
        *table(),
        "",
        "## What was to be reached",
        "",
        *goal(),
        "",
    ]
    (Path(__file__).parent / "COMPRESSION.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
