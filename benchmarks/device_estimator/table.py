"""Draw README.md from the raw rows.

python -m benchmarks.device_estimator.table
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.device_estimator.run import DEVICES, FAMILIES, LICENCE, ROWS, SOURCE, Family
from benchmarks.measuring import read_row

HERE = Path(__file__).parent
TARGET = {"cpu": 0.15, "npu": 0.25}

ABOUT = (
    "Latency of a model on a phone that is not at hand, from its ONNX graph alone. Each fit is a sum of non-negative "
    "terms (multiply-accumulates, elements read and written, operations, inputs and outputs), fitted to latencies "
    "measured by Qualcomm AI Hub on the very device. The devices of a family share the shape of the sum up to a "
    "factor; each deviates from it as far as its own rows say (`fitting.py`)."
)
HOW = (
    "Every error is of a model of which no row on any device was in the fit. Graphs are built from timm, transformers "
    "and `architectures.py` with random weights; a model is left out where its parameters are more than 10 % off the "
    "published number, where the table gives no input size or one that its latencies contradict, where a row ran on "
    "more than one unit, and where two models are one architecture (one of them stays). Convolutions over three axes, "
    "recurrent layers, generative models and decoders are not covered, and are refused. Three forms of the sum are "
    "used; they were chosen, among about thirty, by the errors below, so these are a little optimistic."
)
INTERVALS = (
    "An 80 % interval comes from the errors of all devices of a family; here each model is judged by the interval that "
    "the other models give. The quantile's level is raised by half of conformal prediction's (n + 1) / n: without it "
    "77 % of the rows are inside, with all of it 85 %."
)


def rows() -> dict[Family, dict[str, Any]]:
    """The families whose raw rows are there."""
    found = {family: read_row(ROWS / f"{family.name}.json") for family in FAMILIES}
    return {family: row for family, row in found.items() if row is not None}


def devices(found: dict[Family, dict[str, Any]]) -> Iterator[str]:
    """One line for each device of a family."""
    yield "| unit | runtime | precision | device | models | median error % | target % | met | 80 % are below % |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for family, row in found.items():
        target = TARGET[family.unit]
        for device, error in row["median_error"].items():
            ratios = row["estimate_over_measured"][device].values()
            errors = sorted(abs(ratio - 1) for ratio in ratios)
            most = statistics.quantiles(errors, n=5, method="inclusive")[3]
            shown = f"**{device}**" if device in DEVICES.values() else device
            cells = [family.unit.upper(), family.runtime, family.precision, shown, len(errors)]
            cells += [
                f"{100 * error:.1f}",
                f"{100 * target:.0f}",
                "yes" if error <= target else "no",
                f"{100 * most:.0f}",
            ]
            yield f"| {' | '.join(map(str, cells))} |"


def intervals(found: dict[Family, dict[str, Any]]) -> Iterator[str]:
    """How often the intervals hold."""
    yield "| family | models | truth / estimate | rows | inside % |"
    yield "|---|---|---|---|---|"
    for family, row in found.items():
        low, high = row["interval80"]
        share = 100 * row["inside_interval80"] / row["rows"]
        yield f"| {family.name} | {row['models']} | {low:.2f} to {high:.2f} | {row['rows']} | {share:.1f} |"
    inside, count = (sum(row[key] for row in found.values()) for key in ("inside_interval80", "rows"))
    yield f"| all | | | {count} | {100 * inside / count:.1f} |"


def missed(found: dict[Family, dict[str, Any]]) -> Iterator[str]:
    """What did not reach its target."""
    for family, row in found.items():
        late = {name: error for name, error in row["median_error"].items() if error > TARGET[family.unit]}
        if late:
            said = ", ".join(f"{name} {100 * error:.0f} %" for name, error in late.items())
            yield f"- {family.name} ({row['models']} models): {said}."


def models(found: dict[Family, dict[str, Any]]) -> Iterator[str]:
    """The worst and the best of the graphs."""
    graphs = read_row(ROWS / "graphs.json") or {}
    yield "| model | built from | parameters, M | GMACs | " + " | ".join(family.name for family in found) + " |"
    yield "|---|---|---|---|" + "---|" * len(found)
    for name, graph in graphs.items():
        cells = []
        for row in found.values():
            ratios = [rows[name] for rows in row["estimate_over_measured"].values() if name in rows]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        size = f"{graph['parameters'] / 1e6:.2f} | {graph['gmacs']:.3f}"
        yield f"| {name} | {graph['built_from']} | {size} | {' | '.join(cells)} |"


def main() -> None:
    found = rows()
    text = "\n".join(
        [
            "# Estimated latency on phones, against measurements",
            "",
            "Written by `table.py` from the raw rows in `rows/`; do not edit.",
            "",
            ABOUT,
            "",
            HOW,
            "",
            f"Source: {SOURCE}. {LICENCE}. The table itself is not in this repository.",
            "",
            "## Median error of a model left out",
            "",
            "Devices in bold have a profile in devices/, and these fits in devices/estimates/: for each unit and "
            "precision the first family here that has rows.",
            "",
            *devices(found),
            "",
            "Above their target:",
            "",
            *missed(found),
            "",
            "## 80 % intervals",
            "",
            INTERVALS,
            "",
            *intervals(found),
            "",
            "## Every model: estimate over measurement when it was left out, median of the devices",
            "",
            *models(found),
            "",
        ]
    )
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print("wrote README.md")


if __name__ == "__main__":
    main()
