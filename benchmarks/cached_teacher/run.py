"""What caching a teacher's answers saves: the same distillation with its teacher live and cached.

`mails` is one epoch of the distil stage of benchmarks/spam (MiniLM, 128 tokens, its half-wide student with four
blocks). `speeches` is a student of SmolLM2-135M's first 24 blocks on a few addresses on the State of the Union, taught
in windows of 128 tokens; the cache keeps each token's 64 likeliest. Seed and order of the data are alike, each run is
in a process of its own, in turn, one thread. CPU time of the stage is compared, its validation included; what the cache
costs once is stated beside. Where every answer is kept, the students' weights must be the same to the bit.

    edgeforge fetch spam-assassin --out data && edgeforge fetch minilm-l6 --out data
    edgeforge fetch smollm2-135m --out data && edgeforge fetch state-of-the-union --out data
    python -m benchmarks.cached_teacher.run --of mails --data data --work data/cached-teacher
    python -m benchmarks.cached_teacher.run --of speeches --data data --work data/cached-teacher
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import run_pipeline, write_row
from benchmarks.spam.run import HALF, MODEL, TAUGHT, distill, task, vocabulary
from edgeforge.core.artifact import Artifact, hash_file
from edgeforge.core.measurement import bootstrap_median
from edgeforge.core.stage import Job, Stage
from edgeforge.environment import describe
from edgeforge.stages.cache import Cache
from edgeforge.stages.distill import Distill

HERE = Path(__file__).parent
PAIRS = 3
TEACHERS: dict[str, dict[str, Any]] = {"live": {"kind": "model"}, "cached": {"kind": "cached"}}
TARGETS = {"mails": 1.5, "speeches": 1.0}
"""Times faster that a step is to be."""
ADDRESSES, CHARACTERS = 4, 20_000
"""So many texts are taught, and so much of each."""
STEPS = 8


def mails(which: str, data: str, work: Path) -> dict[str, Any]:
    """One epoch. The teacher's head is untrained, which changes nothing of what it costs."""
    return {
        "name": f"cached-teacher-{which}",
        "task": task(data),
        "model": {"kind": "pretrained", "path": str(Path(data) / MODEL), "new_head": True},
        "seed": 0,
        "stages": [vocabulary(), {**distill(HALF, TAUGHT, epochs=1), "teacher": TEACHERS[which]}],
        "targets": [],
    }


def speeches(which: str, data: str, work: Path) -> dict[str, Any]:
    """A few steps of four windows."""
    lines = (Path(data) / "state_of_the_union" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [{"text": json.loads(line)["text"][:CHARACTERS]} for line in lines[: ADDRESSES + 1]]
    work.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", texts[:-1]), ("test", [{"text": texts[-1]["text"][:2000]}])):
        (work / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    teacher = {"live": {"kind": "model"}, "cached": {"kind": "cached", "top_k": 64}}[which]
    return {
        "name": f"cached-teacher-{which}",
        "task": {
            "kind": "causal_lm",
            "data": {"kind": "jsonl", "train": str(work / "train.jsonl"), "test": str(work / "test.jsonl")},
            "max_length": 128,
            "evaluation_windows": 2,
        },
        "model": {"kind": "gguf", "path": str(Path(data) / "smollm2_135m.gguf")},
        "seed": 0,
        "stages": [
            {
                "kind": "distill",
                "student": {"kind": "layers", "keep": list(range(24))},
                "teacher": teacher,
                "losses": [{"kind": "soft_targets", "temperature": 1, "weight": 1.0}],
                "steps": STEPS,
                "batch_size": 4,
                "learning_rate": 1e-4,
            }
        ],
        "targets": [],
    }


SUBJECTS = {"mails": mails, "speeches": speeches}


def timed(stage: type[Stage], spent: dict[str, float]) -> None:
    """Have the stage's CPU seconds noted in `spent`, by its kind."""
    run = stage.run

    def clocked(self: Stage, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        began = time.process_time()
        facts = run(self, inputs, job)
        spent[self.kind] = time.process_time() - began
        return facts

    stage.run = clocked  # type: ignore[method-assign]


def one(of: str, which: str, data: str, work: Path) -> None:
    """A run in a store of its own; the last line printed is its result."""
    spent: dict[str, float] = {}
    timed(Distill, spent)
    timed(Cache, spent)
    found = run_pipeline(SUBJECTS[of](which, data, work), work)
    student = next(stage for stage in found["stages"] if stage["name"] == "distill")
    (weights,) = (work / "store" / "sealed" / student["key"]).glob("*.safetensors")
    print(json.dumps({"cpu_seconds": spent, "student": hash_file(weights)}))


def made(of: str, which: str, work: Path, data: str) -> dict[str, Any]:
    """The result of a run in a process of its own; kept beside its folder, so that it is not made again."""
    kept = work.with_suffix(".json")
    if not kept.is_file():
        command = [
            sys.executable,
            "-m",
            "benchmarks.cached_teacher.run",
            "--of",
            of,
            "--data",
            data,
            "--work",
            str(work),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, "--only", which], env=environment, check=True, capture_output=True, text=True)
        kept.write_text(done.stdout.splitlines()[-1], encoding="utf-8")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=SUBJECTS, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", choices=TEACHERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        one(options.of, options.only, options.data, options.work)
        return
    pairs = []
    for number in range(PAIRS):
        pair = {}
        for which in list(TEACHERS) if number % 2 == 0 else reversed(TEACHERS):
            pair[which] = made(options.of, which, options.work / options.of / f"{number}-{which}", options.data)
        pairs.append(pair)
        print(pair, flush=True)
    ratios = [pair["live"]["cpu_seconds"]["distill"] / pair["cached"]["cpu_seconds"]["distill"] for pair in pairs]
    result = {
        "pairs": pairs,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "ci95_of_median": bootstrap_median(ratios),
        "target": TARGETS[options.of],
        "same_student": len({pair[which]["student"] for pair in pairs for which in TEACHERS}) == 1,
        "environment": describe(),
    }
    write_row(HERE / f"{options.of}.json", result)
    print(f"median ratio {result['median_ratio']:.3f}, same student: {result['same_student']}")


if __name__ == "__main__":
    main()
