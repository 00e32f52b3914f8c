"""What EdgeForge's training loop costs: 200 steps of the Fashion-MNIST teacher against a plain torch loop.

Both train the same model on the same batches (same order, same crop and flip, same optimizer, bfloat16 autocast, one
thread); the plain loop has no accelerate, no checkpoints and no progress. Pairs are interleaved and each run has a
process of its own; CPU time is compared, since wall time on a shared machine says little.

    python benchmarks/training_overhead/run.py --data data/fashion_mnist.npz
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
STEPS, BATCH, PAIRS = 200, 128, 5


def edgeforge_loop(data: str) -> float:
    """CPU seconds of `fit`."""
    from accelerate import Accelerator

    from edgeforge.core.stage import Job
    from edgeforge.losses.hard_labels import HardLabels
    from edgeforge.training.loop import fit
    from edgeforge.training.objective import Trainee

    model, task = _model_and_task(data)
    recipe = _recipe()
    job = Job(task, Path(tempfile.mkdtemp()), 0, functools.cache(Accelerator), _Silent())
    began = time.process_time()
    fit(Trainee(model, [HardLabels()], None), recipe, data=job.data, job=job)
    return time.process_time() - began


def plain_loop(data: str) -> float:
    """CPU seconds of the loop one would write by hand."""
    import torch
    from torch.nn import functional

    model, task = _model_and_task(data)
    recipe, source = _recipe(), task.open()
    began = time.process_time()
    model = model.to(memory_format=torch.channels_last).train()
    decayed = [value for value in model.parameters() if value.dim() > 1]
    others = [value for value in model.parameters() if value.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    warm = round(0.1 * STEPS)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (STEPS - warm)))
        ),
    )
    order = torch.randperm(source.size("train")).tolist()
    for step in range(STEPS):
        batch = source.batch("train", order[step * BATCH : (step + 1) * BATCH], augment_seed=step)
        images = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(pixel_values=images).logits.float(), batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return time.process_time() - began


def _model_and_task(data: str):
    sys.path.insert(0, str(HERE.parent / "fashion_mnist"))
    import torch
    from teacher import ARCHITECTURE, task

    from edgeforge.models.config import Config

    the_task = task(data)
    torch.manual_seed(0)
    model = Config(architecture=ARCHITECTURE).build(the_task, the_task.open().interface)
    the_task.open().batch("train", range(BATCH), augment_seed=0)  # both start with the data loaded
    return model, the_task


def _recipe():
    from edgeforge.training.recipe import Recipe

    return Recipe(
        steps=STEPS, batch_size=BATCH, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, precision="bfloat16"
    )


class _Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        print(message, file=sys.stderr)


def _measured(which: str, data: str) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--data", data, "--only", which]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", choices=["edgeforge", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(edgeforge_loop(options.data) if options.only == "edgeforge" else plain_loop(options.data))
        return
    from edgeforge.environment import describe

    pairs = []
    for number in range(PAIRS):
        order = ["edgeforge", "plain"] if number % 2 == 0 else ["plain", "edgeforge"]
        pairs.append({which: _measured(which, options.data) for which in order})
        print(pairs[-1], flush=True)
    ratios = [pair["edgeforge"] / pair["plain"] for pair in pairs]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=PAIRS)) for _ in range(2000))
    result = {
        "steps": STEPS,
        "batch_size": BATCH,
        "cpu_seconds": pairs,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "ci95_of_median": [medians[50], medians[1949]],
        "target": 1.05,
        "environment": describe(),
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"median ratio {result['median_ratio']:.3f}, 95 % interval {result['ci95_of_median']}")


if __name__ == "__main__":
    main()
