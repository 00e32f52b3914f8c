"""Draw QUANTIZATION.md from the raw rows: means over windows, with paired bootstrap intervals over windows.

python -m benchmarks.smollm2.quantization_table
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import read_row
from benchmarks.smollm2.quantization import DOMAINS, MOST_BITS, TYPES, WINDOW, names, path_of

RESAMPLES = 10_000
ABOUT = (
    "SmolLM2-135M-Instruct as float16 GGUF, quantized by llama.cpp; every file is measured against that float16 file. "
    "In domain: addresses on the State of the Union of years from which no calibration text is; out of domain: Moby "
    f"Dick. Windows of {WINDOW} tokens, every position. KLD is the mean divergence from the float16 file in nats per "
    "token, PPL the perplexity; ± is half the 95 % interval (bootstrap over windows), for PPL that of the ratio to "
    "the float16 file's on the same windows. Bits per weight count every tensor, not metadata. Tensors that llama.cpp "
    "would make Q4_1 or Q5_1, on whose grid this model lies, are Q4_0 or Q5_0."
)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval, by a percentile bootstrap over windows (Efron, 1979)."""
    array = np.asarray(values)
    draws = np.random.RandomState(0).randint(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return float(array.mean()), float(low), float(high)


def divergence_of(row: dict[str, Any], domain: str) -> str:
    """``0.0256 ±0.0012``."""
    middle, low, high = mean_and_interval(row["domains"][domain]["kld"])
    return f"{middle:.4f} ±{(high - low) / 2:.4f}"


def perplexity_of(row: dict[str, Any], domain: str) -> str:
    """Perplexity, ± by how much its ratio to the float16 file's is uncertain."""
    found = row["domains"][domain]
    reference = float(np.mean(found["reference_nll"]))
    lost = [own - other for own, other in zip(found["nll"], found["reference_nll"], strict=True)]
    middle, low, high = mean_and_interval(lost)
    return f"{math.exp(reference + middle):.2f} ±{math.exp(reference) * (math.exp(high) - math.exp(low)) / 2:.2f}"


def float_perplexity(domain: str) -> str:
    """The float16 file's own, as any row has it."""
    row = next((row for name in names() if (row := read_row(path_of(name)))), None)
    return "" if row is None else f"{math.exp(float(np.mean(row['domains'][domain]['reference_nll']))):.2f}"


def table() -> Iterator[str]:
    """One line per row that was made."""
    yield "| row | MB | bits per weight | PPL in | KLD in | PPL out | KLD out | same likeliest in % |"
    yield "|---|---|---|---|---|---|---|---|"
    yield f"| float16 | 270.9 | 16.00 | {float_perplexity('in')} | 0 | {float_perplexity('out')} | 0 | 100 |"
    for name in names():
        if (row := read_row(path_of(name))) is None:
            continue
        cells = [f"{row['bytes'] / 1e6:.1f}", f"{row['bits_per_weight']:.2f}"]
        for domain in DOMAINS:
            cells += [perplexity_of(row, domain), divergence_of(row, domain)]
        cells.append(f"{100 * float(np.mean(row['domains']['in']['top1'])):.1f}")
        yield f"| {name} | {' | '.join(cells)} |"


def compared(fixed: dict[str, Any], mix: dict[str, Any], domain: str) -> tuple[str, bool]:
    """By how much the mix's divergence is lower, with its paired interval; and whether that excludes 0."""
    pairs = zip(fixed["domains"][domain]["kld"], mix["domains"][domain]["kld"], strict=True)
    middle, low, high = mean_and_interval([before - after for before, after in pairs])
    return f"{middle:.4f} [{low:.4f}, {high:.4f}]", low > 0


def claims() -> Iterator[str]:
    """Mixes against the fixed types they have the bytes of, with the same importance."""
    yield "| fixed type | bits per weight | MB, fixed and mix | KLD lower by, in | out | predicted, measured | holds |"
    yield "|---|---|---|---|---|---|---|"
    for word in TYPES:
        fixed, mix = read_row(path_of(word)), read_row(path_of(f"mix-{word}"))
        if fixed is None or fixed["bits_per_weight"] > MOST_BITS:
            continue
        if mix is None:
            yield f"| {word} | {fixed['bits_per_weight']:.2f} | not made | | | | |"
            continue
        assert mix["bytes"] <= fixed["bytes"], word
        found = {domain: compared(fixed, mix, domain) for domain in DOMAINS}
        measured = float(np.mean(mix["domains"]["in"]["kld"]))
        holds = "yes" if all(clear for _, clear in found.values()) else "**no**"
        yield (
            f"| {word} | {fixed['bits_per_weight']:.2f} | {fixed['bytes'] / 1e6:.1f}, {mix['bytes'] / 1e6:.1f} | "
            f"{found['in'][0]} | {found['out'][0]} | {mix['predicted_kld']:.4f}, {measured:.4f} | {holds} |"
        )


def main() -> None:
    made = sum(path_of(name).is_file() for name in names())
    lines = [
        "# SmolLM2-135M in every type of llama.cpp, and in mixes chosen by sensitivity",
        "",
        "Written by `quantization_table.py` from the raw rows in `rows/`; do not edit. "
        f"{made} rows are there. Rows named `-plain` have no importance matrix.",
        "",
        ABOUT,
        "",
        *table(),
        "",
        "## Mixes of no more bytes",
        "",
        f"For each fixed type up to {MOST_BITS} bits per weight, with the same importance matrix. Intervals are "
        "paired: of the differences of windows.",
        "",
        *claims(),
        "",
    ]
    (Path(__file__).parent / "QUANTIZATION.md").write_text("\n".join(lines), encoding="utf-8")
    print(f"{made} rows")


if __name__ == "__main__":
    main()
