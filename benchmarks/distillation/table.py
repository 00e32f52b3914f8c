"""Draw README.md from the raw rows: every form of distillation on one student, means over the seeds with intervals.

python -m benchmarks.distillation.table
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.distillation.images import ROWS, STEPS, names
from benchmarks.measuring import SEEDS, interval, mean, read_row

README = Path(__file__).parent / "README.md"
LABELS, SOFT, REFERENCE = "labels", "soft_targets", "reference"


def rows_of(name: str) -> list[dict[str, Any]]:
    found = (read_row(ROWS / f"images-{name}-seed{seed}.json") for seed in SEEDS)
    return [row for row in found if row is not None]


def accuracy(row: dict[str, Any]) -> float:
    """Of the chain's last model on the whole test split, in percent."""
    return 100 * float(list(row["test"].values())[-1]["accuracy"])


def gain(name: str, other: str) -> list[float]:
    """Points of one row over another, seed by seed, where both are there."""
    theirs = {row["seed"]: accuracy(row) for row in rows_of(other)}
    return [accuracy(row) - theirs[row["seed"]] for row in rows_of(name) if row["seed"] in theirs]


def seconds(name: str) -> str:
    found = [sum(stage["seconds"] for stage in row["stages"]) for row in rows_of(name) if "stages" in row]
    return f"{statistics.median(found):.0f}" if found else ""


def verdict(name: str, other: str) -> str:
    found = gain(name, other)
    if len(found) < 2:
        return "missing"
    half, middle = interval(found), statistics.mean(found)
    if abs(middle) <= half:
        return "no difference seen"
    return "better" if middle > 0 else "worse"


def main() -> None:
    there = sum(len(rows_of(name)) for name in names())
    lines = [
        "# Every form of distillation on one student",
        "",
        f"Written by `table.py` from the raw rows in `rows/`; do not edit. {there} of {len(names()) * len(SEEDS)} "
        "rows are there.",
        "",
        f"Fashion-MNIST, a ResNet of 0.09 M parameters, {STEPS} steps of 128 images for each student, accuracy on the "
        "whole test split. Each generation of `born_again`, the first of which is taught by labels, and both "
        "stages of `assistant` take as many steps; `mutual` trains two students at once. The teachers are those of "
        "benchmarks/fashion_mnist; rows from `mutual` on have none. Weights and temperatures are the papers' or the "
        "defaults, none was tuned. Means over the seeds with 95 % intervals (t); differences are taken seed by seed. "
        "Seconds are the median of all stages, on whatever else the machine had to do.",
        "",
        "| row | accuracy % | points over `labels` | | points over `soft_targets` | | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names():
        values = [accuracy(row) for row in rows_of(name)]
        over = [
            f"{mean(gain(name, other))} | {verdict(name, other)}" if name != other else " | "
            for other in (LABELS, SOFT)
        ]
        lines.append(f"| {name} | {mean(values)} | {' | '.join(over)} | {seconds(name)} |")
    lines += [
        "",
        f"- Soft targets beat labels alone: {verdict(SOFT, LABELS)} ({mean(gain(SOFT, LABELS))} points).",
        f"- `reference` is `soft_targets` by hand in plain torch, with other draws: {verdict(REFERENCE, SOFT)} "
        f"({mean(gain(REFERENCE, SOFT))} points).",
    ]
    for row in rows_of("born_again"):
        facts = row["stages"][-1]["facts"]
        said = [*(one["accuracy"] for one in [facts["teacher"], *facts["generations"]]), facts["ensemble"]["accuracy"]]
        lines.append(
            f"- `born_again`, seed {row['seed']}, on the validation split: labels {said[0]:.4f}, then "
            f"{', '.join(f'{value:.4f}' for value in said[1:-1])}, their ensemble {said[-1]:.4f}."
        )
    README.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {README.name}")


if __name__ == "__main__":
    main()
