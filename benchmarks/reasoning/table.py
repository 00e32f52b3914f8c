"""Draw README.md from the raw rows: what students answer with and without traces, means over the seeds with intervals.

Its main table is also put into docs/distillation.md.

python -m benchmarks.reasoning.table
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import SEEDS, mean, put_between, read_row, verdict
from benchmarks.reasoning.lessons import teach
from benchmarks.reasoning.run import BATCHES, BEYOND, LONG, NAMES, PASSES, RECIPE, ROWS, SHAPE, TAUGHT, WINDOW, trained

README = Path(__file__).parent / "README.md"
PAGE = README.parents[2] / "docs" / "distillation.md"
DIRECT = "_direct"

ABOUT = (
    "A Llama of 1.1 M parameters with fresh weights and a tokenizer of characters, taught by a program "
    "(`lessons.py`) through `generate` and `train`: {examples} examples, all seeds with questions of their own, none "
    "of the tested ones taught. `traces` learns every step and then the answer, from {passes} passes over the "
    "examples. `answers` learns the answer alone, from the same examples in as many passes and about as many steps: "
    "the same examples, fewer tokens. `" + LONG + "` learns answers alone for as many steps of as many tokens: the "
    "same tokens, more passes over the same examples. Windows of {window} tokens that begin with a question, {batches} "
    "a step, AdamW at {rate:g}, float32 on one core; nothing was tuned for one of the rows. *Directly*: the answer is "
    "begun for the student (`Answer:`), so that it writes no trace, which `traces` never learned. Means over the seeds "
    "with 95 % intervals (t)."
)


def rows_of(name: str) -> list[dict[str, Any]]:
    found = (read_row(ROWS / f"{name}-seed{seed}.json") for seed in SEEDS)
    return [row for row in found if row is not None]


def accuracy(row: dict[str, Any], kinds: Iterable[str], way: str = "") -> float:
    """Of questions of these kinds, every kind counting the same, in percent."""
    groups = trained(row)["prompt_groups"]
    return 100 * statistics.mean(groups[kind][f"prompts_passed{way}"] for kind in kinds)


def tokens(row: dict[str, Any], way: str = "") -> float:
    return float(trained(row)["metrics"][f"tokens_per_answer{way}"])


def cells(measure: Callable[[dict[str, Any], str], float]) -> str:
    """One number for each way that students are asked: traces with and without them, answers alone."""
    asked = [("traces", ""), ("traces", DIRECT), ("answers", ""), (LONG, "")]
    return " | ".join(mean([measure(row, way) for row in rows_of(name)]) for name, way in asked)


def trainings() -> Iterator[str]:
    """What each row learned from."""
    yield "| row | passes | steps | training tokens | seconds |"
    yield "|---|---|---|---|---|"
    for name in NAMES:
        found = rows_of(name)
        if not found:
            yield f"| {name} | missing | | | |"
            continue
        once = {
            row["seed"]: row["training_tokens"] / PASSES for row in rows_of("traces" if name == "traces" else "answers")
        }
        passes = [row["training_tokens"] / once[row["seed"]] for row in found if row["seed"] in once]
        numbers = [
            statistics.mean(trained(row)["steps"] for row in found),
            statistics.mean(row["training_tokens"] for row in found),
            statistics.median(row["stages"][-1]["seconds"] for row in found),
        ]
        said = f"{statistics.mean(passes):.1f}" if passes else "missing"
        yield f"| {name} | {said} | {' | '.join(f'{number:,.0f}' for number in numbers)} |"


def answers() -> Iterator[str]:
    """Accuracy by number of digits, and what it takes."""
    yield f"| digits | examples | traces | traces, directly | answers | {LONG} |"
    yield "|---|---|---|---|---|---|"
    for kind in (*TAUGHT, *BEYOND):
        examples = f"{TAUGHT[kind]:,}" if kind in TAUGHT else "none: longer than taught"
        name = kind.replace("*", r"\*")
        yield f"| {name} | {examples} | {cells(lambda row, way, kind=kind: accuracy(row, [kind], way))} |"
    for title, kinds in (("taught kinds", tuple(TAUGHT)), ("beyond", BEYOND)):
        yield f"| **{title}** | | {cells(lambda row, way, kinds=kinds: accuracy(row, kinds, way))} |"
    yield f"| tokens written for an answer | | {cells(tokens)} |"


def claims() -> Iterator[str]:
    """Differences in points, seed by seed."""
    for other, what in (("answers", "the same examples"), (LONG, "the same training tokens")):
        for title, kinds in (("taught kinds", tuple(TAUGHT)), ("longer ones", BEYOND)):
            theirs = {row["seed"]: accuracy(row, kinds) for row in rows_of(other)}
            gains = [accuracy(row, kinds) - theirs[row["seed"]] for row in rows_of("traces") if row["seed"] in theirs]
            yield f"- Traces against answers alone, {what}, {title}: {verdict(gains)} ({mean(gains)} points)."


def main() -> None:
    there = sum(len(rows_of(name)) for name in NAMES)
    trace, answer = teach("58+67")
    about = ABOUT.format(
        examples=f"{sum(TAUGHT.values()):,}",
        passes=PASSES,
        window=WINDOW,
        batches=f"{BATCHES['traces']} ({BATCHES['answers']} of `answers`)",
        rate=RECIPE["learning_rate"],
    )
    lines = [
        "# Reasoning: traces against answers alone",
        "",
        f"Written by `table.py` from the raw rows in `rows/`; do not edit. {there} of {len(NAMES) * len(SEEDS)} rows "
        "are there.",
        "",
        about,
        "",
        f"The student: {', '.join(f'{name} {value}' for name, value in SHAPE.items())}. `58+67` is taught so:",
        "",
        "```",
        *trace.splitlines(),
        f"Answer: {answer}",
        "```",
        "",
        "Steps from the last digit on, with the carry written down, are those of Nye et al. (2021, arXiv:2112.00114) "
        "and Lee et al. (2023, arXiv:2307.03381); that each digit is given a name first is the index hint of Zhou et "
        "al. (2023, arXiv:2310.16028).",
        "",
        "## Accuracy by number of digits, %",
        "",
        *answers(),
        "",
        "## What they learned from",
        "",
        *trainings(),
        "",
        "## What the rows were made to show",
        "",
        *claims(),
    ]
    README.write_text("\n".join(lines) + "\n", encoding="utf-8")
    put_between(PAGE, "reasoning", [*answers(), ""])
    print(f"wrote {README.name}: {there} of {len(NAMES) * len(SEEDS)} rows")


if __name__ == "__main__":
    main()
