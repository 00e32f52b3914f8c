"""Draw README.md's tables from the raw rows.

python -m benchmarks.honest_timing.table
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.honest_timing.run import PARTS, ROWS
from benchmarks.measuring import put_between, read_row
from edgeforge.core.measurement import bootstrap_median, percentile

README = Path(__file__).parent / "README.md"
CALLED_AT_MOST, FOUND_AT_LEAST = 0.10, 0.90
RIGHT = {"same": "no difference shown", "slower": "slower"}
Parts = Mapping[str, dict[str, Any]]


def parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts that were begun, by name."""
    found = {part: read_row(folder / f"{part}.json") for part in PARTS}
    return {part: row for part, row in found.items() if row}


def slowdowns(row: Mapping[str, Any]) -> list[float]:
    """How much longer the file took than the one it is compared with, in percent, by trial."""
    return [100 * (1 / one["ratio"] - 1) for one in row["trials"]]


def verdict(found: Parts) -> Iterator[str]:
    """What was to be shown, and whether it was."""
    injected = f"an injected slow-down of {statistics.median(slowdowns(found['slower'])):.1f} % (as measured, below)"
    for part, what in (("same", "the same file against itself"), ("slower", injected)):
        trials = found[part]["trials"]
        right = sum(one["verdict"] == RIGHT[part] for one in trials)
        if part == "same":
            wrong = len(trials) - right
            kept, said = wrong <= CALLED_AT_MOST * len(trials), f"called different in {wrong} of {len(trials)} trials"
            limit = f"at most {100 * CALLED_AT_MOST:.0f} %"
        else:
            kept, said = right >= FOUND_AT_LEAST * len(trials), f"found in {right} of {len(trials)} trials"
            limit = f"at least {100 * FOUND_AT_LEAST:.0f} %"
        yield f"- {what}: {said} ({limit}: {'kept' if kept else '**missed**'})"
    busy = found["busy"]["trials"]
    noticed = sum(one["busy"] is not None for one in busy)
    kept = noticed == len(busy)
    yield f"- a busy machine: said in {noticed} of {len(busy)} trials (all: {'kept' if kept else '**missed**'})"


def ratios(found: Parts) -> Iterator[str]:
    """How the verdicts came about."""
    yield (
        "| part | trials | faster | slower | no difference shown | slow-down, median | 5 % to 95 % of trials | "
        "interval's half width, median | machine busy |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for part, row in found.items():
        trials = row["trials"]
        verdicts = [one["verdict"] for one in trials]
        slower = slowdowns(row)
        low, high = bootstrap_median(slower)
        half = [50 * (one["ci95"][1] - one["ci95"][0]) for one in trials]
        cells = (
            part,
            str(len(trials)),
            *(str(verdicts.count(word)) for word in ("faster", "slower", "no difference shown")),
            f"{statistics.median(slower):+.2f} % [{low:+.2f}, {high:+.2f}]",
            f"{percentile(slower, 5):+.2f} % to {percentile(slower, 95):+.2f} %",
            f"{statistics.median(half):.2f} %",
            f"{sum(one['busy'] is not None for one in trials)} of {len(trials)}",
        )
        yield f"| {' | '.join(cells)} |"


def without_margin(found: Parts) -> Iterator[str]:
    """What the rounds alone would have called: the reason for the margin."""
    trials = found["same"]["trials"]
    called = sum(not one["ci95"][0] <= 1 <= one["ci95"][1] for one in trials)
    apart = max(max(one["ratio"], 1 / one["ratio"]) - 1 for one in trials)
    yield (
        f"Of the same file, the interval left out 1 in {called} of {len(trials)} trials; the two copies were at most "
        f"{100 * apart:.2f} % apart."
    )


def measured_on(found: Parts) -> Iterator[str]:
    """Machine, versions, length, and what the busy machine was said to do."""
    environment = found["same"]["environment"]
    seconds = sum(one["seconds"] for row in found.values() for one in row["trials"])
    yield (
        f"- {environment['cpu']}, {environment['cores']} cores, {environment['os']}, Python {environment['python']}, "
        f"ONNX Runtime {environment['packages'].get('onnxruntime')}; seed {found['same']['seed']}; "
        f"{seconds / 60:.1f} minutes."
    )
    for text in dict.fromkeys(one["busy"] for one in found["busy"]["trials"][:1]):
        yield f"- Said of the busy machine, first trial: {text or 'nothing'}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args()
    found = parts(options.rows)
    if missing := [part for part in PARTS if not found.get(part, {}).get("trials")]:
        raise SystemExit(f"no trial yet of {', '.join(missing)}: python -m benchmarks.honest_timing.run")
    for draw in (verdict, ratios, without_margin, measured_on):
        put_between(options.readme, draw.__name__, [*draw(found), ""])


if __name__ == "__main__":
    main()
