"""Draw README.md's table and curve.svg from the raw rows: means over the seeds with 95 % intervals (Student's t).

pip install -e '.[bench]' && python -m benchmarks.fashion_mnist.table
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.fashion_mnist.run import EPOCHS, GOAL, SHORT_EPOCHS, WIDTHS, rows
from benchmarks.measuring import SEEDS, mean, put_between, read_row

HERE = Path(__file__).parent


def row(name: str, seed: int) -> dict[str, Any] | None:
    """A raw row, or None where it was not made yet."""
    return read_row(HERE / "rows" / f"{name}-seed{seed}.json")


def file_of(name: str, target: str, seed: int) -> dict[str, Any] | None:
    """A file's entry in a raw row."""
    found = row(name, seed)
    entries = found["artifacts"] if found else []
    return next((entry for entry in entries if entry["name"] == target), None)


def collected(name: str, target: str) -> dict[str, list[float]]:
    """Accuracy points lost, bytes, times smaller, times faster and agreement of one file, a value per seed."""
    found: dict[str, list[float]] = {key: [] for key in ("accuracy", "lost", "kb", "smaller", "faster", "agreement")}
    for seed in SEEDS:
        entry, teacher = file_of(name, target, seed), file_of(name, "baseline", seed)
        if entry is None or teacher is None:
            continue
        accuracy, reference = entry["metrics"]["accuracy"], teacher["metrics"]["accuracy"]
        found["accuracy"].append(100 * accuracy)
        found["lost"].append(100 * (reference - accuracy))
        found["kb"].append(entry["bytes"] / 1000)
        found["smaller"].append(teacher["bytes"] / entry["bytes"])
        if entry.get("comparison"):
            found["agreement"].append(100 * entry["comparison"]["agreement"])
        timed = row("latency", seed)
        if timed and f"{name}.{target}" in timed["files"]:
            found["faster"].append(timed["files"][f"{name}.{target}"]["ratio"])
    return found


def table() -> Iterator[str]:
    """The lines of the main table."""
    yield "| file | accuracy % | points lost | kB | times smaller | times faster | agrees with teacher % |"
    yield "|---|---|---|---|---|---|---|"
    for name, (_, targets) in rows().items():
        for target in targets:
            values = collected(name, target["name"])
            cells = [mean(values[key]) for key in ("accuracy", "lost", "kb", "smaller", "faster", "agreement")]
            yield f"| {name}.{target['name']} | {' | '.join(cells)} |"


def stage_accuracy(name: str, stage: str) -> dict[int, float]:
    """Test accuracy (%) of a stage's torch model by seed."""
    found = {}
    for seed in SEEDS:
        entries = (row(name, seed) or {"stages": []})["stages"]
        for entry in entries:
            if entry["name"] == stage:
                found[seed] = 100 * entry["facts"]["metrics"]["accuracy"]
    return found


def file_accuracy(name: str, target: str) -> dict[int, float]:
    """Test accuracy (%) of a written file by seed."""
    entries = {seed: file_of(name, target, seed) for seed in SEEDS}
    return {seed: 100 * entry["metrics"]["accuracy"] for seed, entry in entries.items() if entry}


def orderings() -> Iterator[str]:
    """Which of the expected orderings hold for the mean of the seeds."""
    chain = file_accuracy(f"chain-{GOAL}", "int8")
    claims = [
        ("soft targets > labels alone", file_accuracy("distill-alone", "fp32"), file_accuracy("labels-alone", "fp32")),
        (
            "recovered > pruned",
            stage_accuracy(f"chain-{GOAL}", "prune.recover"),
            stage_accuracy(f"chain-{GOAL}", "prune"),
        ),
        *(
            (
                f"{criterion} >= random, {stage}",
                stage_accuracy(f"criterion-{criterion}", step),
                stage_accuracy("criterion-random", step),
            )
            for criterion in ("taylor", "bn_scale", "magnitude")
            for stage, step in (("pruned", "prune"), (f"after {SHORT_EPOCHS} epochs", "prune.recover"))
        ),
        ("all three > distillation alone", chain, file_accuracy("distill-alone", "fp32")),
        ("all three > pruning alone", chain, file_accuracy("prune-alone", "fp32")),
        ("with distillation > without", chain, file_accuracy("chain-without-distillation", "int8")),
    ]
    yield "| ordering | mean difference, points | per seed | holds |"
    yield "|---|---|---|---|"
    for claim, better, worse in claims:
        gains = [better[seed] - worse[seed] for seed in sorted(better.keys() & worse.keys())]
        if not gains:
            yield f"| {claim} | missing | | |"
            continue
        holds = "yes" if statistics.mean(gains) > 0 or (">=" in claim and statistics.mean(gains) == 0) else "**no**"
        yield f"| {claim} | {mean(gains)} | {', '.join(f'{gain:+.2f}' for gain in gains)} | {holds} |"


def teachers() -> Iterator[str]:
    """One line per teacher."""
    for seed in SEEDS:
        found = row("teacher", seed)
        if found is None:
            yield f"- seed {seed}: missing"
        else:
            minutes = found["seconds_since_last_start"] / 60
            yield f"- seed {seed}: {100 * found['accuracy']:.2f} % ({minutes:.0f} minutes, {found['threads']} thread)"


def verdict() -> Iterator[str]:
    """The goal (20 times smaller, 6 times faster, at most 1.0 point lost), and what was reached."""
    yield "The goal is 20 times smaller and 6 times faster at no more than 1.0 point lost."
    yield ""
    for name in (f"chain-{GOAL}", "shallow-p2", "shallow-p3"):
        values = collected(name, "int8")
        yield (
            f"- `{name}.int8`: {mean(values['smaller'])} times smaller, {mean(values['faster'])} times faster, "
            f"{mean(values['lost'])} points lost"
        )


def draw(path: Path) -> None:
    """Accuracy lost against bytes and against latency, one point per width and seed mean."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "edgeforge"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    series = {
        "chain, INT8": [(f"chain-{widths}", "int8") for widths in WIDTHS],
        "chain without the last block, INT8": [("shallow-p2", "int8"), ("shallow-p3", "int8")],
        "quantization alone": [("quantize", "int8"), ("quantize", "int4")],
        "distillation alone": [("distill-alone", "fp32")],
        "labels alone": [("labels-alone", "fp32")],
        "pruning alone": [("prune-alone", "fp32")],
    }
    for axis, key, title in zip(axes, ("smaller", "faster"), ("times smaller", "times faster (1 thread)"), strict=True):
        for label, names in series.items():
            points = [(collected(*name)[key], collected(*name)["lost"]) for name in names]
            whole = [(statistics.mean(x), statistics.mean(y)) for x, y in points if x and y]
            style = "o-" if label.startswith("chain") else "s"
            whole.sort()
            if whole:
                axis.plot(*zip(*whole, strict=True), style, label=label)
        axis.set_xlabel(title)
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("accuracy points lost")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def into_readme(made: int, whole: int) -> None:
    """The main results, between the marks in the project's README."""
    names = ["quantize.int8", "distill-alone.fp32", "prune-alone.fp32", f"chain-{GOAL}.int8"]
    names += ["shallow-p2.int8", "shallow-p3.int8"]
    lines = list(table())
    block = [
        "Fashion-MNIST, a 2.2 M parameter ResNet, against its own float32 ONNX file on one thread of an x86 CPU with "
        f"AVX-512 VNNI; means over seeds with 95 % intervals, {made} of {whole} rows made so far "
        "([all rows, orderings and raw results](benchmarks/fashion_mnist/README.md)):",
        "",
        *lines[:2],
        *(line for line in lines[2:] if line.split()[1] in names),
        "",
    ]
    put_between(HERE.parent.parent / "README.md", "fashion_mnist", block)


def main() -> None:
    made = [(name, seed) for name in rows() for seed in SEEDS if row(name, seed)]
    whole = len(rows()) * len(SEEDS)
    text = "\n".join(
        [
            "# Fashion-MNIST: one teacher, compressed from lightly to heavily",
            "",
            f"Written by `table.py` from the raw rows in `rows/`; do not edit. {len(made)} of {whole} rows are there.",
            "",
            "Real Fashion-MNIST, deduplicated: 59,946 training images (3 % of them kept apart as validation) and "
            "10,000 test images, split by hash, so accuracies are not comparable with the official split. Every file "
            "is measured as written, on ONNX Runtime. Points lost are against the seed's own teacher's fp32 ONNX file; "
            "kB count every file that the session loads; times faster is batch 1, one thread, all files of a seed in "
            "shuffled rounds of one process. Means over the seeds with 95 % intervals (t).",
            "",
            f"Recovery and students: {EPOCHS} epochs. `chain` rows prune by magnitude, recover with the teacher's soft "
            "targets, and quantize to INT8; `shallow` rows first drop the teacher's last block and let the whole "
            f"teacher teach the rest for {SHORT_EPOCHS} epochs; the `alone` rows are fp32 files of about the size of "
            f"`chain-{GOAL}.int8`. p1 to p6 are widths, from light to heavy pruning (`WIDTHS` in run.py).",
            "",
            "## Teachers",
            "",
            *teachers(),
            "",
            "## Goal",
            "",
            *verdict(),
            "",
            "## Every file",
            "",
            *table(),
            "",
            "![accuracy lost against size and speed](curve.svg)",
            "",
            "## Orderings",
            "",
            *orderings(),
            "",
        ]
    )
    (HERE / "README.md").write_text(text, encoding="utf-8")
    into_readme(len(made), whole)
    draw(HERE / "curve.svg")
    print(f"{len(made)} of {whole} rows")


if __name__ == "__main__":
    main()
