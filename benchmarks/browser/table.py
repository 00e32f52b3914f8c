"""Draw README.md's tables from the raw rows.

python -m benchmarks.browser.table

A block's ratio is that of its two medians; a run's is the median over its blocks, with a bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.browser.run import FILES, MODELS, ROWS
from benchmarks.measuring import put_between, read_row
from edgeforge.core.measurement import bootstrap_median

README = Path(__file__).parent / "README.md"
NAMES = {"image": "image (quickstart)", "text": "text (MiniLM-L6)"}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Every raw row that was made: by model, threads and run."""
    found = [row for path in sorted(folder.glob("*.json")) if (row := read_row(path))]
    return sorted(found, key=lambda row: (MODELS.index(row["model"]), row["threads"], row["seed"]))


def medians(file: Mapping[str, Any], link: str) -> list[float]:
    """Milliseconds of each block."""
    return [statistics.median(samples) for samples in file[link]["samples_ms"]]


def ratio(over: list[float], under: list[float]) -> str:
    """``5.3 [5.1, 5.5]``, of pairs from the same block."""
    ratios = [one / other for one, other in zip(over, under, strict=True)]
    low, high = bootstrap_median(ratios)
    return f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]"


def latency(found: list[dict[str, Any]]) -> Iterator[str]:
    """Both ways to run a file, and what quantization gains in each."""
    yield (
        "| model | threads | run | file | MB | native ms | browser ms | browser / native "
        "| fp32 / file, native | fp32 / file, browser |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in found:
        native = {name: medians(row["files"][name], "native") for name in FILES}
        page = {name: medians(row["files"][name], "page") for name in FILES}
        for name in FILES:
            cells = (
                NAMES[row["model"]],
                str(row["threads"]),
                str(row["seed"]),
                name,
                f"{row['files'][name]['bytes'] / 1e6:.2f}",
                f"{statistics.median(native[name]):.3f}",
                f"{statistics.median(page[name]):.3f}",
                ratio(page[name], native[name]),
                *("" if name == "fp32" else ratio(both["fp32"], both[name]) for both in (native, page)),
            )
            yield f"| {' | '.join(cells)} |"


def answers(found: list[dict[str, Any]]) -> Iterator[str]:
    """Whether both say the same; answers do not depend on the run, so its first is shown."""
    yield (
        "| model | file | samples | largest difference | of the answers' range | same class "
        "| accuracy native | accuracy in the browser |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    first = {row["model"]: row for row in reversed(found)}
    for model in MODELS:
        for name in FILES if model in first else ():
            said = first[model]["files"][name]["answers"]
            share = 100 * said["max_abs_difference"] / said["native_range"]
            cells = (
                NAMES[model],
                name,
                str(said["samples"]),
                f"{said['max_abs_difference']:.2g}",
                f"{share:.2g} %",
                f"{100 * said['agreement']:.1f} %",
                f"{100 * said['native_accuracy']:.1f} %",
                f"{100 * said['page_accuracy']:.1f} %",
            )
            yield f"| {' | '.join(cells)} |"


def starts(found: list[dict[str, Any]]) -> Iterator[str]:
    """What a first visit costs, medians over all fresh starts of one thread."""
    yield "| model | file | | load ms | first inference ms | peak memory MB | starts |"
    yield "|---|---|---|---|---|---|---|"
    for model in MODELS:
        chosen = [row for row in found if (row["model"], row["threads"]) == (model, 1)]
        for name in FILES:
            for link in ("native", "page"):
                all_starts = [start for row in chosen for start in row["files"][name][link]["starts"]]
                if not all_starts:
                    continue
                load, first, peak = (
                    [start[key] for start in all_starts if start[key] is not None]
                    for key in ("load_ms", "first_inference_ms", "peak_rss_mb")
                )
                memory = f"{statistics.median(peak):.0f}" if peak else "not readable"
                cells = (f"{statistics.median(load):.1f}", f"{statistics.median(first):.1f}", memory)
                where = "browser" if link == "page" else link
                yield f"| {NAMES[model]} | {name} | {where} | {' | '.join(cells)} | {len(all_starts)} |"


def measured_on(found: list[dict[str, Any]]) -> Iterator[str]:
    """Machine, versions and disturbances, as sentences."""
    for text in dict.fromkeys(
        f"{row['environment']['cpu']}, {row['environment']['cores']} cores, {row['environment']['os']}; native: ONNX "
        f"Runtime {row['environment']['packages'].get('onnxruntime')}; browser: "
        f"{row['conditions'][0]['browser']['runtime_on_device']}."
        for row in found
    ):
        yield f"- {text}"
    for row in found:
        busy = [block["browser"]["busy"] for block in row["conditions"] if block["browser"]["busy"]]
        if busy:
            yield (
                f"- {NAMES[row['model']]}, {row['threads']} threads, run {row['seed']}: the machine was busy in "
                f"{len(busy)} of {len(row['conditions'])} blocks."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--readme", type=Path, default=README)
    options = parser.parse_args()
    found = rows(options.rows)
    for draw in (latency, answers, starts, measured_on):
        put_between(options.readme, draw.__name__, [*draw(found), ""])


if __name__ == "__main__":
    main()
