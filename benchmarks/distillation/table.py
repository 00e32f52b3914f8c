"""Draw README.md from the raw rows: every form of distillation on one student, means over the seeds with intervals.

Each method's own rows are also put under it in docs/distillation.md.

python -m benchmarks.distillation.table
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.distillation import images, mails
from benchmarks.measuring import SEEDS, mean, put_between, read_row, verdict
from benchmarks.spam.run import LABELLED

README = Path(__file__).parent / "README.md"
PAGE = README.parents[2] / "docs" / "distillation.md"
LABELS, SOFT, REFERENCE = "labels", "soft_targets", "reference"
FEW_LABELS, FEW_SOFT = "few_labels", "few_soft_targets"
GENERAL, TASK = "general_then_task", "task_only"


SECTIONS = {
    "soft targets": (SOFT, "decoupled", "dist"),
    "layers": ("hidden_states", "attention_transfer", "attention_maps", "value_relations", "contrastive"),
    "cosine": ("cosine_embedding",),
    "general": (TASK, GENERAL),
    "assistant": ("assistant",),
    "ensemble": ("ensemble",),
    "mutual": ("mutual",),
    "born again": ("born_again",),
    "exits": ("exits",),
    "itself": ("ema", "snapshots"),
}
"""Mark in docs/distillation.md -> the rows that stand there."""


@dataclass(frozen=True)
class Rows:
    """The raw rows of one student, by name, and its headline: a metric of the whole test split, in percent."""

    data: str
    names: Sequence[str]
    metric: str

    def of(self, name: str) -> list[dict[str, Any]]:
        found = (read_row(images.ROWS / f"{self.data}-{name}-seed{seed}.json") for seed in SEEDS)
        return [row for row in found if row is not None]

    def there(self) -> int:
        return sum(len(self.of(name)) for name in self.names)

    def values(self, name: str) -> list[float]:
        """Of the chain's last model."""
        return [self._value(row) for row in self.of(name)]

    def _value(self, row: dict[str, Any]) -> float:
        return 100 * float(last_test(row)[self.metric])

    def gain(self, name: str, other: str) -> list[float]:
        """Points of one row over another, seed by seed, where both are there."""
        theirs = {row["seed"]: self._value(row) for row in self.of(other)}
        return [self._value(row) - theirs[row["seed"]] for row in self.of(name) if row["seed"] in theirs]

    def compared(self, name: str, other: str) -> str:
        gains = self.gain(name, other)
        return f"{verdict(gains)} ({mean(gains)} points)"

    def seconds(self, name: str) -> str:
        found = [sum(stage["seconds"] for stage in row["stages"]) for row in self.of(name) if "stages" in row]
        return f"{statistics.median(found):.0f}" if found else ""

    def table(self, names: Sequence[str]) -> list[str]:
        title = self.metric.replace("_", " ")
        lines = [
            f"| row | {title} % | points over `{LABELS}` | | points over `{SOFT}` | | seconds |",
            "|---|---|---|---|---|---|---|",
        ]
        for name in names:
            over = " | ".join(self.over(name, other) for other in (LABELS, SOFT))
            lines.append(f"| {name} | {mean(self.values(name))} | {over} | {self.seconds(name)} |")
        return lines

    def over(self, name: str, other: str) -> str:
        """Two cells: the gain of one row over another, and what it comes to."""
        return f"{mean(self.gain(name, other))} | {verdict(self.gain(name, other))}" if name != other else " | "


IMAGES = Rows("images", images.names(), "accuracy")
MAILS = Rows("mails", mails.names(), "macro_f1")


def last_test(row: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the chain's last model."""
    found: dict[str, Any] = list(row["test"].values())[-1]
    return found


def about_images() -> list[str]:
    omitted = list(images.left_out())
    lines = [
        "## Images",
        "",
        f"Fashion-MNIST, a ResNet of 0.09 M parameters, {images.STEPS} steps of 128 images for each student, accuracy "
        "on the whole test split. Each generation of `born_again`, the first of which is taught by labels, and both "
        "stages of `assistant` take as many steps; `mutual` trains two students at once. The teachers are those of "
        "benchmarks/fashion_mnist; rows from `mutual` on have none.",
        "",
        *IMAGES.table([name for name in IMAGES.names if name not in omitted]),
        "",
        f"- Soft targets beat labels alone: {IMAGES.compared(SOFT, LABELS)}.",
        f"- `{REFERENCE}` is `{SOFT}` by hand in plain torch, with other draws: {IMAGES.compared(REFERENCE, SOFT)}.",
    ]
    for row in IMAGES.of("born_again"):
        facts = row["stages"][-1]["facts"]
        said = [*(one["accuracy"] for one in [facts["teacher"], *facts["generations"]]), facts["ensemble"]["accuracy"]]
        lines.append(
            f"- `born_again`, seed {row['seed']}, on the validation split: labels {said[0]:.4f}, then "
            f"{', '.join(f'{value:.4f}' for value in said[1:-1])}, their ensemble {said[-1]:.4f}."
        )
    return [*lines, "", *without_a_class(omitted)]


def without_a_class(names: Sequence[str]) -> list[str]:
    """Hinton's experiment: what is known of a class that was never shown."""
    lines = [
        f"Students that were never shown the class {images.OMITTED} (Hinton, Vinyals and Dean, 2015, section 3). The "
        "bias is the number that, added to the class's logit, gets most of the validation split right; the columns "
        "before it are the test split's.",
        "",
        f"| row | all classes % | {images.OMITTED} % | its share of validation right % | bias | with it % |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        rows = IMAGES.of(name)
        mine = [100 * row["stages"][-1]["facts"]["per_class_accuracy"][images.OMITTED] for row in rows]
        facts = [row["stages"][-1]["facts"]["transfer"]["omitted"] for row in rows]
        said = [
            mean([scale * one[key] for one in facts])
            for key, scale in (("accuracy", 100), ("bias", 1), ("accuracy_with_bias", 100))
        ]
        lines.append(f"| {name} | {mean(IMAGES.values(name))} | {mean(mine)} | {' | '.join(said)} |")
    return lines


def about_mails() -> list[str]:
    return [
        "## Mails",
        "",
        f"SpamAssassin, a BERT with two blocks of MiniLM's width and fresh weights, taught on every second training "
        f"mail, cut at {mails.LENGTH} tokens, {mails.STEPS} steps of 32; macro F1 on all test mails. The teacher is "
        "MiniLM fine-tuned on the whole training part (benchmarks/spam). `task_only` and `general_then_task` are "
        "TinyBERT's two phases, half of the steps each; the latter's first reads paragraphs of a novel and is taught "
        "by MiniLM as it was before fine-tuning.",
        "",
        *MAILS.table([name for name in MAILS.names if not mails.with_few_labels(name)]),
        "",
        f"- Soft targets beat labels alone: {MAILS.compared(SOFT, LABELS)}.",
        f"- {few_labels()} These rows were added when all labels had shown no difference.",
        f"- General texts first against the task's own: {MAILS.compared(GENERAL, TASK)}.",
    ]


def few_labels() -> str:
    """What labels alone and soft targets reach where most mails have no label."""
    labels, soft = (mean(MAILS.values(name)) for name in (FEW_LABELS, FEW_SOFT))
    return (
        f"With {LABELLED} labels and the same mails, labels alone reach {labels} %, soft targets about all of them "
        f"{soft} %: {MAILS.compared(FEW_SOFT, FEW_LABELS)}."
    )


def under_their_methods() -> None:
    """Put the rows into the page where each method is described."""
    for mark, names in SECTIONS.items():
        lines = [f"| measured | points over `{LABELS}` | | points over `{SOFT}` | |", "|---|---|---|---|---|"]
        for name in names:
            for rows in (IMAGES, MAILS):
                if name in rows.names:
                    cells = " | ".join(rows.over(name, other) for other in (LABELS, SOFT))
                    lines.append(f"| `{name}`, {rows.data} | {cells} |")
        put_between(PAGE, mark, [*lines, *(["", few_labels()] if SOFT in names else []), ""])
    put_between(PAGE, "class left out", [*without_a_class(list(images.left_out()))[2:], ""])


def main() -> None:
    there, wanted = IMAGES.there() + MAILS.there(), (len(IMAGES.names) + len(MAILS.names)) * len(SEEDS)
    lines = [
        "# Every form of distillation on one student",
        "",
        f"Written by `table.py` from the raw rows in `rows/`; do not edit. {there} of {wanted} rows are there.",
        "",
        "Weights and temperatures are the papers' or the defaults, none was tuned. Means over the seeds with 95 % "
        "intervals (t); differences are taken seed by seed. Seconds are the median of all stages, on whatever else "
        "the machine had to do.",
        "",
        *about_images(),
        "",
        *about_mails(),
    ]
    README.write_text("\n".join(lines) + "\n", encoding="utf-8")
    under_their_methods()
    print(f"wrote {README.name} and the rows in {PAGE.name}")


if __name__ == "__main__":
    main()
