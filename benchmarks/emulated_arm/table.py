"""Draw README.md's tables from the raw rows.

python -m benchmarks.emulated_arm.table
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.emulated_arm.run import CALLS, FILES, FLOAT, HERE, MODELS, PROCESSES, PROCESSORS, ROWS
from benchmarks.measuring import read_row

FEWEST = 200
"""Samples that the goal asks for."""
SPREAD = 0.001
"""How far apart the counts of two processes may be, as a share."""
METRICS = ("", "_vector", "_dot_product", "_int8_matrix", "_memory")


def rows() -> list[dict[str, Any]]:
    """Every raw row that was made, in order."""
    names = [(model, file, device) for model in MODELS for file in FILES for device in PROCESSORS]
    found = (read_row(ROWS / f"{model}-{file}-{device}.json") for model, file, device in names)
    return [row for row in found if row]


def answered() -> list[dict[str, Any]]:
    """The rows of quantized files, which have answers; the float32 ones are only counted."""
    return [row for row in rows() if row["file"] != FLOAT]


def spread(row: dict[str, Any]) -> float:
    """The largest distance of two processes' counts, over all that is reported, as a share of the smaller."""
    shares = []
    for suffix in METRICS:
        values = [process[f"instructions{suffix}"] for process in row["counts"]]
        shares.append((max(values) - min(values)) / max(min(values), 1))
    return max(shares)


def answers() -> Iterator[str]:
    """The lines of the table of answers."""
    yield (
        "| file | processor | samples | accuracy here % | accuracy there % | same answers % | largest difference | "
        "allowed | within |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in answered():
        here, there = (100 * row[where]["accuracy"] for where in ("here", "there"))
        share = 100 * row["max_abs_difference"] / row["output_range"]
        yield (
            f"| {row['model']}.{row['file']} | {row['device']} | {row['samples']} | {here:.2f} | {there:.2f} | "
            f"{100 * row['agreement']:.2f} | {row['max_abs_difference']:.3g} ({share:.2g} % of the range) | "
            f"{row['limit']:.3g} | {'yes' if row['within'] else '**no**'} |"
        )


def counts() -> Iterator[str]:
    """The lines of the table of instructions."""
    yield (
        "| file | processor | instructions, M | vector | dot product | int8 matrix | memory | than float32 | "
        f"spread of {PROCESSES} processes % |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    floats = {(row["model"], row["device"]): row["counts"][0] for row in rows() if row["file"] == FLOAT}
    for row in rows():
        process = row["counts"][0]
        cells = " | ".join(f"{process[f'instructions{suffix}'] / 1e6:.3f}" for suffix in METRICS)
        before = floats.get((row["model"], row["device"]))
        against = "" if row["file"] == FLOAT else fewer(before, process) if before else "missing"
        yield f"| {row['model']}.{row['file']} | {row['device']} | {cells} | {against} | {100 * spread(row):.4f} |"


def fewer(before: dict[str, float], after: dict[str, float]) -> str:
    """``1.73 times fewer``, or more."""
    ratio = before["instructions"] / after["instructions"]
    return f"{ratio:.2f} times fewer" if ratio >= 1 else f"{1 / ratio:.2f} times more"


def verdict() -> Iterator[str]:
    """What was to be shown, and how much of it was."""
    whole = len(MODELS) * (len(FILES) - 1) * len(PROCESSORS)
    found = answered()
    enough = sum(row["samples"] >= FEWEST for row in found)
    within = sum(row["within"] for row in found)
    steady = sum(spread(row) <= SPREAD for row in rows())
    yield f"- outputs within what `edgeforge verify` allows on another processor: {within} of {whole} files"
    yield f"- scored on at least {FEWEST} samples: {enough} of {whole} files"
    yield f"- counts repeat within {100 * SPREAD:g} % between processes: {steady} of {len(rows())} rows"


def main() -> None:
    whole = len(MODELS) * len(FILES) * len(PROCESSORS)
    text = "\n".join(
        [
            "# Emulated Arm: answers and instructions of quantized files",
            "",
            f"Written by `table.py` from the raw rows in `rows/`; do not edit. {len(rows())} of {whole} rows are "
            "there.",
            "",
            "The end of the quickstart's chain, and a MiniLM (all-MiniLM-L6-v2, fine-tuned on e-mail: "
            "benchmarks/spam), as INT8 (static with signed activations; dynamic for the MiniLM) and INT4 "
            "(weights) ONNX files. `here` is this machine's processor, `there` an Arm processor under QEMU's "
            "user-mode emulator: a Cortex-A76 (dot products of bytes) and one with matrix products of bytes "
            "(i8mm), running ONNX Runtime's own Arm64 kernels. Everything is emulated: there is no latency in "
            "these tables, and no phone was measured.",
            "",
            *verdict(),
            "",
            "## Answers",
            "",
            "Allowed is what `edgeforge verify` allows a quantized file between two processors: the tolerance of the "
            "file's verification, and as much again as quantization itself moves the answers; at least three of four "
            "answers must be the same.",
            "",
            *answers(),
            "",
            "## Instructions of one call",
            "",
            f"Mean over {CALLS} calls on test samples, one thread, after five calls that are not counted; in millions. "
            "Vector counts all SIMD and floating-point arithmetic, of which dot products (SDOT, UDOT) and int8 matrix "
            "products (SMMLA, UMMLA) are parts; memory is all loads and stores. Instructions are a cost that repeats, "
            "not a time: they do not know caches, nor how many a processor does at once.",
            "",
            *counts(),
            "",
        ]
    )
    (HERE / "README.md").write_text(text, encoding="utf-8")
    print(f"{len(rows())} of {whole} rows")


if __name__ == "__main__":
    main()
