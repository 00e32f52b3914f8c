"""What a step of distillation costs with each loss: CPU time beside `soft_targets`, and the memory that it takes.

Two students on one thread: a ResNet of half its teacher's width on images of 32 x 32 pixels, and a BERT of every second
of its teacher's layers on texts of 128 tokens. Each row trains its student on one loss alone, by EdgeForge's own loop
and with the loss's default settings. `soft_targets, cached` has the teacher's answers from the disk, and `hard_labels`
has no teacher. Weights are random and so are the texts, which changes nothing of what a step costs.

Time: rows take turns in one process, in an order drawn anew each round. A turn is a short training run whose first
step does not count. CPU time is compared round by round, since wall time on a shared machine says little.
Memory: each row trains in a process of its own, which grows by so much from before it reads models and data to its
largest resident set.

    OMP_NUM_THREADS=1 python -m benchmarks.loss_cost.run     # about 8 minutes on an idle core; Linux
    python -m benchmarks.loss_cost.run --table               # writes what was measured into README.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.loss_cost.subjects import SUBJECTS, Subject
from benchmarks.measuring import put_between, read_row, write_row
from edgeforge.core.measurement import bootstrap_median
from edgeforge.environment import describe
from edgeforge.models import loading
from edgeforge.training.loop import fit
from edgeforge.training.objective import Trainee
from edgeforge.training.recipe import needs_teacher

HERE = Path(__file__).parent
ROWS, README = HERE / "rows", HERE / "README.md"
ROUNDS, WARM_UP, STEPS = 9, 1, 4
BASIS = "soft_targets"


class Timed(Trainee):
    """Notes the CPU time at which every step begins to compute the student."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.begun: list[float] = []

    def forward(self, *inputs: Any) -> torch.Tensor:
        self.begun.append(time.process_time())
        return super().forward(*inputs)


def trained(subject: Subject, row: str) -> tuple[float, str]:
    """Train a row's student; CPU milliseconds of a step (teacher, student, backward, optimizer), and the precision."""
    stage = subject.stage(row, WARM_UP + STEPS + 1)
    data = subject.task.open(subject.folder / "teacher")
    with tempfile.TemporaryDirectory() as scratch:
        job = subject.job(Path(scratch))
        asked = needs_teacher(stage.losses)
        teacher = stage.teacher.open(subject.inputs(), job.accelerator.device, data) if asked else None
        trainee = Timed(loading.load(subject.folder / "student"), stage.losses, teacher)
        facts = fit(trainee, stage, data=data, job=job, split="transfer" if asked else "train")
    counted = trainee.begun[WARM_UP:]
    return 1e3 * (counted[-1] - counted[0]) / STEPS, facts["precision"]


def grown(subject: Subject, row: str) -> float:
    """By how many MB this process grows while it trains a row's student."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained(subject, row)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6


def apart(function: Any, *inputs: Any) -> Any:
    """A function's value from a process of its own, which begins with all imports done."""
    torch.set_num_threads(1)  # a child of a process with more of them would wait for threads that it has not
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, inputs)


def raced(subject: Subject, rounds: int) -> tuple[dict[str, list[float]], str]:
    """CPU milliseconds of a step, by row and round; and the precision they were computed in."""
    chance, found = random.Random(0), {row: [] for row in subject.rows}
    for number in range(rounds):
        for row in chance.sample(subject.rows, len(subject.rows)):
            value, precision = trained(subject, row)
            found[row].append(value)
        print(f"round {number + 1} of {rounds}", flush=True)
    return found, precision


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Everything about one student."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        subject = SUBJECTS[name](Path(scratch))
        apart(subject.prepare)
        memory = {row: apart(grown, subject, row) for row in subject.rows}  # before this process has computed anything
        times, precision = raced(subject, rounds)
    return {
        "subject": name,
        "steps": STEPS,
        "batch_size": subject.batch_size,
        "precision": precision,
        "rows": {row: _row(times[row], times[BASIS], memory[row]) for row in subject.rows},
        "seconds": round(time.monotonic() - began, 1),
        "environment": describe(),
    }


def _row(times: list[float], basis: list[float], grown_mb: float) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(times, basis, strict=True)]
    return {
        "cpu_ms": [round(value, 3) for value in times],
        "ratio": statistics.median(ratios),
        "ci95": bootstrap_median(ratios),
        "grown_mb": round(grown_mb, 1),
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rows of all students as Markdown."""
    lines = []
    for name, found in results.items():
        basis = found["rows"][BASIS]
        lines += [
            "",
            f"**{name}**: batches of {found['batch_size']}, {found['precision']}, {len(basis['cpu_ms'])} rounds of "
            f"{found['steps']} steps; a step with `{BASIS}` takes {statistics.median(basis['cpu_ms']):.0f} ms of one "
            f"core of {found['environment']['cpu']}.",
            "",
            f"| loss | a step, `{BASIS}` = 1 | 95 % interval | memory | beside `{BASIS}` |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for row, one in sorted(found["rows"].items(), key=lambda item: item[1]["ratio"]):
            (low, high), memory = one["ci95"], one["grown_mb"]
            step = f"{one['ratio']:.2f} | {low:.2f} to {high:.2f}"
            lines.append(f"| `{row}` | {step} | {memory:.0f} MB | {memory - basis['grown_mb']:+.0f} MB |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SUBJECTS, help="one of the two")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=ROWS, help="folder of the raw results")
    parser.add_argument("--table", action="store_true", help="write what was measured into README.md")
    options = parser.parse_args()
    if options.table:
        found = {name: read_row(ROWS / f"{name}.json") for name in SUBJECTS}
        put_between(README, "losses", table({name: one for name, one in found.items() if one is not None}))
        return
    torch.set_num_threads(1)
    for name in [options.only] if options.only else SUBJECTS:
        write_row(options.out / f"{name}.json", measure(name, options.rounds))


if __name__ == "__main__":
    main()
