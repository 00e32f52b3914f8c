"""Draw README.md's table from the raw rows: means over the seeds with 95 % intervals (Student's t).

python -m benchmarks.spam.table
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import SEEDS, mean, put_between, read_row, verdict
from benchmarks.spam.run import CUTS, FEW_STEPS, FINE_TUNING, LABELLED, RECIPE, RECOVERY, SHAPE, SMALL, VOCABULARY, rows

HERE = Path(__file__).parent
HEADLINE = [
    "quantize.int8",
    "quantize.openvino",
    "distil-prune.int8",
    "prune-distil.int8",
    "distil.int8",
    "prune.int8",
    "distil-alone.fp32",
]

ABOUT = (
    "SpamAssassin's public mails, copies removed, threads kept on one side of the split (`edgeforge fetch "
    "spam-assassin`), so numbers are not comparable with random splits. MiniLM-L6 is fine-tuned for "
    f"{FINE_TUNING['epochs']} epochs at 128 tokens; students learn for {RECIPE['epochs']} epochs, recovery takes "
    f"{RECOVERY['epochs']}, rows with {LABELLED} labels {FEW_STEPS} steps. Every row but `quantize` first cuts the "
    f"vocabulary to {VOCABULARY} tokens. INT8 rows all end in one shape: {SHAPE}; the float32 row `distil-alone` has a "
    f"quarter of the numbers: {SMALL}. Quantization is last in every row, since a pipeline quantizes what its targets "
    "write. Every file is measured as written. Points lost are against the seed's own teacher's fp32 ONNX "
    "file; times faster is batch 1, one thread, 128 tokens, against that file in the same run. "
    "Means over the seeds with 95 % intervals (t)."
)


def row(name: str, seed: int) -> dict[str, Any] | None:
    """A raw row, or None where it was not made yet."""
    return read_row(HERE / "rows" / f"{name}-seed{seed}.json")


def file_of(name: str, target: str, seed: int) -> dict[str, Any] | None:
    """A file's entry in a raw row."""
    entries = (row(name, seed) or {"artifacts": []})["artifacts"]
    return next((entry for entry in entries if entry["name"] == target), None)


def collected(name: str, target: str) -> dict[str, list[float]]:
    """Macro F1, points of it lost, MB, times smaller, times faster and agreement of one file, a value per seed."""
    found: dict[str, list[float]] = {key: [] for key in ("f1", "lost", "mb", "smaller", "faster", "agreement")}
    for seed in SEEDS:
        entry, teacher = file_of(name, target, seed), file_of(name, "baseline", seed)
        if entry is None or teacher is None or entry["metrics"].get("macro_f1") is None:
            continue
        found["f1"].append(100 * entry["metrics"]["macro_f1"])
        found["lost"].append(100 * (teacher["metrics"]["macro_f1"] - entry["metrics"]["macro_f1"]))
        found["mb"].append(entry["bytes"] / 1e6)
        found["smaller"].append(teacher["bytes"] / entry["bytes"])
        if entry.get("comparison"):
            found["agreement"].append(100 * entry["comparison"]["agreement"])
        timed = row("latency", seed)
        if timed and f"{name}.{target}" in timed["files"]:
            found["faster"].append(timed["files"][f"{name}.{target}"]["ratio"])
    return found


def table() -> Iterator[str]:
    """The lines of the main table."""
    yield "| file | macro F1 % | points lost | MB | times smaller | times faster | agrees with teacher % |"
    yield "|---|---|---|---|---|---|---|"
    for name, (_, _, targets) in rows().items():
        for target in targets:
            values = collected(name, target["name"])
            cells = [mean(values[key]) for key in ("f1", "lost", "mb", "smaller", "faster", "agreement")]
            yield f"| {name}.{target['name']} | {' | '.join(cells)} |"


def teachers() -> Iterator[str]:
    """The fine-tuned models that all else is compared with, beside counting words; of one cut, words alone."""
    bayes = (read_row(HERE / "rows" / "naive-bayes.json") or {"cuts": {}})["cuts"]
    yield "| cut | teacher macro F1 % | naive Bayes macro F1 % | naive Bayes accuracy % | mails, train / test |"
    yield "|---|---|---|---|---|"
    starts = {"mail": "quantize", "subject": "subject", "source": None}
    for cut in CUTS:
        entries = [file_of(str(starts[cut]), "baseline", seed) for seed in SEEDS]
        found = (
            mean([100 * entry["metrics"]["macro_f1"] for entry in entries if entry]) if starts[cut] else "words only"
        )
        counted = bayes.get(cut)
        cells = [f"{100 * counted['macro_f1']:.1f}", f"{100 * counted['accuracy']:.1f}"] if counted else ["missing"] * 2
        sizes = f"{counted['train']} / {counted['test']}" if counted else ""
        yield f"| {cut} | {found} | {' | '.join(cells)} | {sizes} |"


def claims() -> Iterator[str]:
    """What the rows were made to show."""
    goal = collected("distil-prune", "int8")
    yield (
        "- Goal, 20 times smaller and 12 times faster at no more than 1 point of macro F1 lost: `distil-prune.int8` is "
        f"{mean(goal['smaller'])} times smaller, {mean(goal['faster'])} times faster, {mean(goal['lost'])} points lost."
    )
    pairs = [
        (f"soft targets against labels alone, {LABELLED} labels", "few-soft", "few-labels"),
        ("soft targets against labels alone, all labels", "distil", "labels"),
        ("distil, then prune, against prune, then distil", "distil-prune", "prune-distil"),
        ("distil, then prune, against distil alone, same shape", "distil-prune", "distil"),
        ("distil, then prune, against prune alone, same shape", "distil-prune", "prune"),
    ]
    for claim, better, worse in pairs:
        gains = [
            100 * (first["metrics"]["macro_f1"] - second["metrics"]["macro_f1"])
            for seed in SEEDS
            if (first := file_of(better, "int8", seed)) and (second := file_of(worse, "int8", seed))
        ]
        above = sum(gain > 0 for gain in gains)
        said = f"{mean(gains)} points of macro F1, above 0 in {above} of {len(gains)} seeds"
        yield f"- {claim}: {verdict(gains)} ({said})"


def main() -> None:
    names = list(rows())
    made = [(name, seed) for name in names for seed in SEEDS if row(name, seed)]
    lines = list(table())
    text = "\n".join(
        [
            "# Real e-mail: one fine-tuned MiniLM, compressed in every order",
            "",
            "Written by `table.py` from the raw rows in `rows/`; do not edit. "
            f"{len(made)} of {len(names) * len(SEEDS)} rows are there.",
            "",
            ABOUT,
            "",
            "## Teachers, and what counting words reaches",
            "",
            *teachers(),
            "",
            "## Every file",
            "",
            *lines,
            "",
            "`subject` and `few-*` rows are compared with teachers of their own (subject lines alone; "
            f"{LABELLED} labelled mails), and are not timed.",
            "",
            "## What was to be shown",
            "",
            *claims(),
            "",
        ]
    )
    (HERE / "README.md").write_text(text, encoding="utf-8")
    block = [
        "MiniLM-L6 fine-tuned on SpamAssassin's mails, against its own float32 ONNX file on one thread, 128 tokens; "
        f"{len(made)} of {len(names) * len(SEEDS)} rows, means over three seeds with 95 % intervals "
        "([all rows and raw results](benchmarks/spam/README.md)):",
        "",
        *lines[:2],
        *(line for line in lines[2:] if line.split()[1] in HEADLINE),
        "",
    ]
    put_between(HERE.parent.parent / "README.md", "spam", block)
    print(f"{len(made)} of {len(names) * len(SEEDS)} rows")


if __name__ == "__main__":
    main()
