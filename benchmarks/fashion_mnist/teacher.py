"""Train the fixed Fashion-MNIST teacher of one seed and write its row.

The teacher is a folder that every other row reads as {kind: pretrained}, so that all rows of a seed have one teacher
whatever changes in EdgeForge between them. Interrupted, it goes on from its checkpoint when run again.

    python -m benchmarks.fashion_mnist.teacher --seed 0 --data data/fashion_mnist.npz --work data/fashion-bench
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from edgeforge.architectures.resnet import Resnet
from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.stage import Job
from edgeforge.data.npz import Npz
from edgeforge.environment import describe
from edgeforge.models import loading
from edgeforge.models.config import Config
from edgeforge.stages.initialize import Initialize
from edgeforge.stages.train import Train
from edgeforge.tasks.image_classification import Augment, ImageClassification, Normalize

ROWS = Path(__file__).parent / "rows"
ARCHITECTURE = Resnet(embedding_size=48, hidden_sizes=(48, 96, 240), depths=(2, 2, 2), layer_type="basic")
RECIPE = Train(epochs=20, batch_size=128, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4)


def task(data: str) -> ImageClassification:
    """The task of every row: mean and std are those of the training images, rounded."""
    return ImageClassification(
        data=Npz(path=data),
        validation=0.03,
        augment=Augment(crop=1, flip=True),
        normalize=Normalize(mean=(0.286,), std=(0.353,)),
    )


class Lines:
    """Progress as plain lines, one in ten seconds."""

    said = 0.0

    def update(self, done: int, total: int, note: str = "") -> None:
        if time.monotonic() - self.said > 10:
            self.said = time.monotonic()
            print(f"{done}/{total} {note}", flush=True)

    def warn(self, message: str) -> None:
        print(f"warning: {message}", flush=True)


def accuracy(folder: Path, the_task: ImageClassification) -> float:
    """Top-1 accuracy of a torch artifact on the whole test split."""
    data, model = the_task.open(), loading.load(folder)
    correct = 0
    with torch.no_grad():
        for start in range(0, data.size("test"), 500):
            batch = data.batch("test", range(start, min(start + 500, data.size("test"))))
            correct += int((model(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).sum())
    return correct / data.size("test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    row, final = ROWS / f"teacher-seed{options.seed}.json", options.work / f"teacher-seed{options.seed}"
    if row.is_file() and final.is_dir():
        print(f"{row.name} is there already")
        return
    the_task, accelerator = task(options.data), functools.cache(Accelerator)
    start, draft = options.work / f".start-seed{options.seed}", options.work / f".draft-seed{options.seed}"
    for folder in (start, draft):
        folder.mkdir(parents=True, exist_ok=True)
    job = Job(the_task, start, options.seed, accelerator, Lines())
    Initialize(model=Config(architecture=ARCHITECTURE)).run({}, job)
    untrained = Artifact(
        key="", kind="initialize", format="torch", path=start, digest="", files={}, parents={}, recipe={}
    )
    began = time.monotonic()
    facts = RECIPE.run({"model": untrained}, Job(the_task, draft, options.seed, accelerator, Lines()))
    seconds = time.monotonic() - began
    shutil.rmtree(draft / "checkpoint", ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    draft.rename(final)
    shutil.rmtree(start)
    result = {
        "row": "teacher",
        "seed": options.seed,
        "teacher": digest_files(hash_folder(final)),
        "accuracy": accuracy(final, the_task),
        "facts": facts,
        "recipe": RECIPE.model_dump(mode="json"),
        "seconds_since_last_start": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "numpy": np.__version__,
        "environment": describe(),
    }
    ROWS.mkdir(exist_ok=True)
    row.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"teacher of seed {options.seed}: {result['accuracy']:.4f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
