"""Fit what devices/estimates/ holds, and write the raw rows behind README.md.

python -m benchmarks.device_estimator.run --csv qai_hub_latency.csv            # the graphs in rows/graphs.json
python -m benchmarks.device_estimator.run --csv qai_hub_latency.csv --graphs   # build them anew: needs timm

The table is that of github.com/quic/ai-hub-models at commit 52c080d (v0.46.1): one line for each latency in its
perf.yaml files. It is not part of this repository; of it, only ratios of estimates to measurements are kept here.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.device_estimator import fitting
from benchmarks.measuring import read_row, write_row
from edgeforge.device import shipped_folder
from edgeforge.estimators import _features
from edgeforge.estimators.fitted import DeviceFits, Fit

HERE = Path(__file__).parent
ROWS = HERE / "rows"
MIN_ROWS = 10
NEAR_PARAMETERS = 0.1
"""A graph is used where its parameters are within this part of the published number."""

SOURCE = (
    "github.com/quic/ai-hub-models, commit 52c080d245d2d20c634459208ff2548ce10b3c9f (v0.46.1, 2026-02-12), perf.yaml"
)
LICENCE = "BSD-3-Clause, (c) 2025 Qualcomm Technologies, Inc."
DEVICES = {
    "dragonwing_q_6690": "Dragonwing Q-6690 MTP",
    "dragonwing_rb3_gen_2": "Dragonwing RB3 Gen 2 Vision Kit",
    "galaxy_s24": "Samsung Galaxy S24",
    "galaxy_s25": "Samsung Galaxy S25",
    "snapdragon_7_gen_4": "Snapdragon 7 Gen 4 QRD",
    "snapdragon_8_elite_gen_5": "Snapdragon 8 Elite Gen 5 QRD",
    "snapdragon_x_elite": "Snapdragon X Elite CRD",
}
RUNTIMES = {"onnx": "ONNX Runtime", "qnn_dlc": "QNN"}

BY_TRAFFIC = [
    "base",
    "gmacs",
    "grouped_gmacs",
    "weights",
    "layer_traffic",
    "attention_traffic",
    "pointwise_traffic",
    "moved",
    "inputs",
    "outputs",
]
BY_CACHE = ["operations", "gmacs", "grouped_gmacs", "other_traffic", "spilled"]
BY_LAYER = ["operations", "gmacs", "grouped_gmacs", "layer_traffic", "other_traffic"]


@dataclass(frozen=True)
class Family:
    """Rows that share a shape: one unit, runtime and precision on several devices."""

    unit: str
    runtime: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.unit}-{self.runtime}-{self.precision}"

    @property
    def terms(self) -> list[str]:
        if self.precision == "w8a16":
            return BY_LAYER
        return BY_TRAFFIC if self.unit == "npu" else BY_CACHE


# In this order a device takes its fits: an ONNX file's own runtime first.
FAMILIES = [
    Family(unit, runtime, precision)
    for unit, runtime, precision in (
        ("cpu", "onnx", "w8a8"),
        ("cpu", "onnx", "w8a16"),
        ("npu", "onnx", "float"),
        ("npu", "onnx", "w8a8"),
        ("npu", "qnn_dlc", "w8a8"),
        ("npu", "qnn_dlc", "w8a16"),
    )
]


def describe_graphs() -> dict[str, Any]:
    """Every graph that `graphs.py` can build, as the estimator sees it."""
    from benchmarks.device_estimator.graphs import SOURCES, graph_of

    found = {}
    for name, source in SOURCES.items():
        graph, parameters = graph_of(name)
        found[name] = described(graph, parameters, source.where)
        print(name, flush=True)
    return found


def described(graph: Any, parameters: int, where: str) -> dict[str, Any]:
    """One graph's row."""
    work = _features.work(graph)
    return {
        "built_from": where,
        "parameters": parameters,
        "gmacs": round(work.gmacs(), 6),
        "shares": {name: round(share, 4) for name, share in work.shares().items()},
        "terms": {name: round(value, 6) for name, value in work.terms().items()},
    }


def parameters_of(text: str) -> float | None:
    """``11.7M`` -> 11.7e6; None where the table says nothing."""
    match = re.fullmatch(r"([\d.]+)([KM])", text)
    return float(match[1]) * {"K": 1e3, "M": 1e6}[match[2]] if match else None


def usable(table: list[dict[str, str]], graphs: Mapping[str, Any]) -> dict[str, Any]:
    """The graphs whose parameters are those that were published, or of which none were."""
    published = {row["model"]: parameters_of(row["params"]) for row in table}
    return {
        name: graph
        for name, graph in graphs.items()
        if name in published
        and (published[name] is None or abs(graph["parameters"] / published[name] - 1) <= NEAR_PARAMETERS)
    }


def measured(table: list[dict[str, str]], family: Family, graphs: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Device -> model -> latency (ms), where every layer ran on the family's unit."""
    units = {"cpu", "npu", "gpu"} - {family.unit}
    found: dict[str, dict[str, float]] = {}
    for row in table:
        same = (row["primary_unit"].lower(), row["runtime"], row["precision"]) == (
            family.unit,
            family.runtime,
            family.precision,
        )
        if same and row["model"] in graphs and not any(row[f"{unit}_layers"] for unit in units):
            found.setdefault(row["device"], {})[row["model"]] = float(row["latency_ms"])
    return {device: rows for device, rows in found.items() if len(rows) >= MIN_ROWS}


def fitted(family: Family, table: Mapping[str, Mapping[str, float]], graphs: Mapping[str, Any]) -> dict[str, Any]:
    """The family's row: errors of every model left out, and the coefficients of every device from all models."""
    terms = {name: np.array([graph["terms"][term] for term in family.terms]) for name, graph in graphs.items()}
    errors = fitting.leave_one_out(terms, table)
    models = {model for rows in table.values() for model in rows}
    coefficients = fitting.fit(terms, table, models)
    inside, rows = fitting.coverage(errors)
    return {
        "family": family.name,
        "models": len(models),
        "rows": rows,
        "inside_interval80": inside,
        "interval80": [round(end, 4) for end in fitting.interval80(errors)],
        "median_error": {device: round(fitting.median_error(row), 4) for device, row in errors.items()},
        "estimate_over_measured": {
            device: {model: round(float(np.exp(error)), 3) for model, error in sorted(row.items())}
            for device, row in errors.items()
        },
        "coefficients_ms": {
            device: {term: float(f"{value:.4g}") for term, value in zip(family.terms, values, strict=True) if value > 0}
            for device, values in coefficients.items()
        },
    }


def fit_of(family: Family, row: Mapping[str, Any], device: str, graphs: Mapping[str, Any]) -> Fit:
    """What one device's file holds of a family."""
    rows = [graphs[model] for model in row["estimate_over_measured"][device]]
    sizes = [graph["gmacs"] for graph in rows]
    return Fit(
        unit=family.unit,
        runtime=RUNTIMES[family.runtime],
        precision=family.precision,
        rows=len(rows),
        error=row["median_error"][device],
        interval80=row["interval80"],
        gmacs=(min(sizes), max(sizes)),
        greatest_share={name: max(graph["shares"][name] for graph in rows) for name in rows[0]["shares"]},
        coefficients_ms=row["coefficients_ms"][device],
    )


def write_devices(rows: Mapping[Family, Mapping[str, Any]], graphs: Mapping[str, Any]) -> None:
    """``devices/estimates/<device>.yaml`` of every device: for each unit and precision its first family with rows."""
    folder = shipped_folder() / "estimates"
    folder.mkdir(exist_ok=True)
    for device, known_as in DEVICES.items():
        fits: dict[tuple[str, str], Fit] = {}
        for family, row in rows.items():
            if known_as in row["median_error"]:
                fits.setdefault((family.unit, family.precision), fit_of(family, row, known_as, graphs))
        content = DeviceFits(
            device=device, measured_on=known_as, source=SOURCE, licence=LICENCE, fits=tuple(fits.values())
        )
        text = yaml.safe_dump(content.model_dump(mode="json"), sort_keys=False, width=120, default_flow_style=None)
        note = (
            "# Written by benchmarks/device_estimator/run.py. Terms: millions of elements, 10^9 multiply-accumulates.\n"
        )
        (folder / f"{device}.yaml").write_text(note + text, encoding="utf-8")
        print(f"wrote {device}.yaml: {len(fits)} fits", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--graphs", action="store_true", help="build the graphs anew")
    options = parser.parse_args()
    if options.graphs:
        write_row(ROWS / "graphs.json", describe_graphs())
    with options.csv.open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    graphs = usable(table, read_row(ROWS / "graphs.json") or {})
    rows = {}
    for family in FAMILIES:
        rows[family] = fitted(family, measured(table, family, graphs), graphs)
        write_row(ROWS / f"{family.name}.json", rows[family])
        print(json.dumps(rows[family]["median_error"]), flush=True)
    write_devices(rows, graphs)


if __name__ == "__main__":
    main()
