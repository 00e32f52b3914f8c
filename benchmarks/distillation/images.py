"""Every form of distillation on one student: Fashion-MNIST, the same number of steps, three seeds.

The student is a ResNet of 0.09 M parameters; the teachers are those of benchmarks/fashion_mnist (2.2 M parameters).
Each row is a pipeline that `edgeforge run` could run; its raw result is rows/images-<row>-seed<k>.json. A row that is
there is not made again. `reference` is `soft_targets` written by hand in plain torch; the rows named `omitted` are
never shown one class. Weights of losses are their papers', none was tuned here. table.py draws the table.

    python -m benchmarks.distillation.images --seed 0 --data data/fashion_mnist.npz --work data/fashion-bench
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from benchmarks.fashion_mnist.run import LABELS, TAUGHT
from benchmarks.fashion_mnist.teacher import task
from benchmarks.measuring import SEEDS, arguments, run_pipeline, write_row
from edgeforge.environment import describe

ROWS = Path(__file__).parent / "rows"
STEPS = 1000
RECIPE = {"steps": STEPS, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4}
SIZES = [16, 16, 48]
SHAPE = {"embedding_size": 16, "hidden_sizes": SIZES, "depths": [2, 2, 2], "layer_type": "basic"}
STUDENT = {"kind": "config", "architecture": "resnet", **SHAPE}
SOFT = {"kind": "soft_targets", "temperature": 4, "weight": 0.9}
HARD = {"kind": "hard_labels", "weight": 0.1}
OWN = [{"kind": "hard_labels"}, {"kind": "soft_targets", "temperature": 1}]
"""Where the teacher is no better than the student, labels count in full."""
OMITTED = "Dress"
"""The fourth class, as the paper leaves out threes; not chosen for its result."""

Stages = list[dict[str, Any]]


def distill(losses: Stages, **changes: Any) -> dict[str, Any]:
    return {"kind": "distill", **RECIPE, "student": STUDENT, "losses": losses, **changes}


def from_teacher(seed: int) -> dict[str, Stages]:
    """Row name -> stages of a chain that begins with the seed's teacher."""
    teachers = [f"teacher-seed{number}" for number in SEEDS]
    members = [{"kind": "model", "model": {"kind": "pretrained", "path": name}} for name in teachers]
    assistant = {"kind": "width", "multiple": 0.5}
    return {
        "labels": [distill(LABELS)],
        "soft_targets": [distill(TAUGHT)],
        "hidden_states": [distill([SOFT, HARD, {"kind": "hidden_states", "weight": 1.0}])],
        "attention_transfer": [distill([SOFT, HARD, {"kind": "attention_transfer", "weight": 1.0}])],
        "decoupled": [distill([{"kind": "decoupled", "temperature": 4, "beta": 8}, {"kind": "hard_labels"}])],
        "dist": [distill([{"kind": "dist"}, {"kind": "hard_labels"}])],
        "contrastive": [distill([SOFT, HARD, {"kind": "contrastive", "weight": 0.8}])],
        "ensemble": [distill(TAUGHT, teacher={"kind": "ensemble", "members": members})],
        "assistant": [distill(TAUGHT, name="assistant", student=assistant), distill(TAUGHT)],
    }


def alone() -> dict[str, Stages]:
    """Row name -> stages of a chain that begins with the student itself, its weights fresh: no teacher is needed."""
    return {
        "mutual": [{"kind": "mutual", **RECIPE, "students": [STUDENT, STUDENT], "use": "first"}],
        "born_again": [{"kind": "train", **RECIPE}, {"kind": "born_again", **RECIPE, "generations": 2, "losses": OWN}],
        "exits": [{"kind": "exits", **RECIPE, "after": [1, 3]}],
        "ema": [{"kind": "finetune", **RECIPE, "teacher": {"kind": "ema", "decay": 0.99}, "losses": OWN}],
        "snapshots": [{"kind": "finetune", **RECIPE, "cycles": 2, "teacher": "snapshots", "losses": OWN}],
    }


def left_out() -> dict[str, Stages]:
    """Row name -> stages of a chain that begins with the seed's teacher: Hinton's experiment, one class never shown."""
    shown = {"transfer": {"omit_classes": [OMITTED]}}
    return {
        "omitted_labels": [distill(LABELS, **shown)],
        "omitted_soft_targets": [distill([{**SOFT, "weight": 1.0}], **shown)],
    }


def names() -> list[str]:
    return [*from_teacher(0), *alone(), "reference", *left_out()]


def pipeline(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row as a pipeline file."""
    taught = from_teacher(options.seed) | left_out()
    pretrained = {"kind": "pretrained", "path": f"teacher-seed{options.seed}"}
    return {
        "name": f"distillation-{name}-seed{options.seed}",
        "task": task(options.data).model_dump(mode="json"),
        "model": pretrained if name in taught else STUDENT,
        "seed": options.seed,
        "stages": taught.get(name) or alone()[name],
        "targets": [],
    }


def make(name: str, options: argparse.Namespace) -> None:
    """One row."""
    path = ROWS / f"images-{name}-seed{options.seed}.json"
    if path.is_file():
        return
    row: dict[str, Any] = {"row": name, "seed": options.seed, "steps": STEPS}
    if name == "reference":
        write_row(path, {**row, **reference(options), "environment": describe()})
        return
    source = pipeline(name, options)
    text = json.dumps(source)
    found = run_pipeline(json.loads(text.replace("teacher-seed", f"{options.work}/teacher-seed")), options.work)
    source["task"]["data"]["path"] = "fashion_mnist.npz"
    test = {stage["name"]: stage["facts"]["metrics"] for stage in found["stages"]}
    stages = [{key: stage[key] for key in ("name", "kind", "seconds", "facts")} for stage in found["stages"]]
    write_row(path, {**row, "pipeline": source, "test": test, "stages": stages, "environment": found["environment"]})


def reference(options: argparse.Namespace) -> dict[str, Any]:
    """`soft_targets` in plain torch: the same student, data, number of steps, optimizer and schedule; other draws."""
    import torch
    from torch.nn import functional

    from edgeforge.models import loading
    from edgeforge.models.config import Config

    the_task = task(options.data)
    data = the_task.open()
    teacher = loading.load(options.work / f"teacher-seed{options.seed}").eval()
    torch.manual_seed(options.seed)
    student = Config.model_validate({"kind": "config", "architecture": {"kind": "resnet", **SHAPE}}).build(
        the_task, data.interface
    )
    decayed = [value for value in student.parameters() if value.dim() > 1]
    others = [value for value in student.parameters() if value.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    began, order, warm = time.monotonic(), list[int](), STEPS // 10
    student.train()
    for step in range(STEPS):
        if len(order) < 128:
            order = torch.randperm(data.size("train")).tolist()
        batch = data.batch("train", [order.pop() for _ in range(128)], augment_seed=step)
        rate = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm)))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * rate
        with torch.no_grad():
            wanted = (teacher(batch["pixel_values"]).logits / 4).log_softmax(-1)
        logits = student(batch["pixel_values"]).logits
        soft = functional.kl_div((logits / 4).log_softmax(-1), wanted, reduction="batchmean", log_target=True) * 16
        loss = 0.9 * soft + 0.1 * functional.cross_entropy(logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()
    correct = 0
    with torch.no_grad():
        for start in range(0, data.size("test"), 500):
            batch = data.batch("test", range(start, min(start + 500, data.size("test"))))
            correct += int((student(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).sum())
    return {"test": {"reference": {"accuracy": correct / data.size("test")}}, "seconds": time.monotonic() - began}


def main() -> None:
    options = arguments(__doc__).parse_args()
    for name in [options.only] if options.only else names():
        make(name, options)


if __name__ == "__main__":
    main()
