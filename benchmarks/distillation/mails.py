"""The losses for transformers on one student: real e-mail, the same number of steps, three seeds.

The student is a BERT with two blocks and fresh weights; its width and its number of heads are the teacher's, which
some losses ask for. The teachers are those of benchmarks/spam (MiniLM, fine-tuned on the whole training part); the
student is taught on every second training mail, cut at 64 tokens, and tested on all test mails. Each row is a pipeline
that `edgeforge run` could run; its raw result is rows/mails-<row>-seed<k>.json. A row that is there is not made again.
Weights of losses are their papers' or the defaults, none was tuned here. table.py draws the table.

`task_only` and `general_then_task` are TinyBERT's two phases, half of the steps each: layers, then answers. In the
first the former reads mails and is taught by the fine-tuned MiniLM; the latter reads paragraphs of a novel and is
taught by MiniLM as it was before.

Of the rows that begin with `few`, 200 of the taught mails have a label; soft targets are about all of them.

    edgeforge fetch spam-assassin --out data && edgeforge fetch minilm-l6 --out data && edgeforge fetch moby-dick ...
    python -m benchmarks.spam.run --seed 0 --data data --work data/spam-bench --only teacher-mail
    python -m benchmarks.distillation.mails --seed 0 --data data --work data/spam-bench
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.measuring import arguments, run_pipeline, write_row
from benchmarks.spam.run import DATA, LABELLED, LABELS, MODEL, TAUGHT, teacher_folder

ROWS = Path(__file__).parent / "rows"
STEPS = 200
LENGTH = 64
EVERY = 2
"""One training mail of so many is taught on."""
NOVEL = "moby_dick"
SHORTEST = 200
"""Characters of a paragraph; shorter ones are mostly speech."""
RECIPE = {"batch_size": 32, "learning_rate": 5e-4}
STUDENT = {
    "kind": "config",
    "architecture": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
    "intermediate_size": 768,
}
LAYERS = [{"kind": "hidden_states", "layers": "evenly_spaced"}, {"kind": "attention_maps"}]
FINE_TUNED = {"kind": "cached", "stage": "model"}
"""Where answers alone teach, they are computed once; the student is the same to the bit."""
ASKED = {"kind": "model", "stage": "model"}
"""The same, where a cache would hold answers about the novel, too."""

Stages = list[dict[str, Any]]


def distill(losses: Stages, *, steps: int = STEPS, **changes: Any) -> dict[str, Any]:
    return {"kind": "distill", **RECIPE, "steps": steps, "student": STUDENT, "losses": losses, **changes}


def rows(data: str, steps: int) -> dict[str, Stages]:
    """Row name -> stages of a chain that begins with the seed's teacher."""
    half = steps // 2
    answers = {"kind": "finetune", **RECIPE, "steps": steps - half, "losses": TAUGHT, "teacher": FINE_TUNED}
    before = {"kind": "model", "model": {"kind": "pretrained", "path": str(Path(data) / MODEL), "new_head": True}}
    general = distill(LAYERS, steps=half, name="general", teacher=before, transfer={"samples": "unlabelled"})
    deeper = {
        "hidden_states": [*TAUGHT, {"kind": "hidden_states"}],
        "attention_maps": [*TAUGHT, {"kind": "attention_maps"}],
        "value_relations": [*TAUGHT, {"kind": "value_relations"}],
        "cosine_embedding": [*TAUGHT, {"kind": "cosine_embedding", "weight": 0.2}],
        "contrastive": [*TAUGHT, {"kind": "contrastive", "weight": 0.8}],
    }
    return {
        "labels": [distill(LABELS, steps=steps)],
        "soft_targets": [distill(TAUGHT, steps=steps, teacher=FINE_TUNED)],
        **{name: [distill(losses, steps=steps)] for name, losses in deeper.items()},
        "task_only": [distill(LAYERS, steps=half, name="layers"), answers],
        "few_labels": [distill(LABELS, steps=steps)],
        "few_soft_targets": [distill(TAUGHT, steps=steps, teacher=FINE_TUNED)],
        "general_then_task": [general, {**answers, "teacher": ASKED, "transfer": {"samples": "labelled"}}],
    }


def names() -> list[str]:
    return list(rows("", STEPS))


def with_few_labels(name: str) -> bool:
    return name.startswith("few_")


def written(options: argparse.Namespace) -> dict[str, str]:
    """The texts of all rows, as files in the work folder: where each lies, by what the data kind calls it."""
    folder = options.work / "distillation-mails"
    folder.mkdir(parents=True, exist_ok=True)
    train = (Path(options.data) / DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()
    novel = (Path(options.data) / NOVEL / f"{NOVEL}.jsonl").read_text(encoding="utf-8").splitlines()
    paragraphs = (" ".join(text.split()) for line in novel for text in json.loads(line)["text"].split("\n\n"))
    general = [json.dumps({"text": text}) for text in paragraphs if len(text) >= SHORTEST]
    for name, lines in (("train", train[::EVERY]), ("unlabelled", general)):
        path, text = folder / f"{name}.jsonl", "\n".join(lines) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # another seed may be reading it
            path.write_text(text, encoding="utf-8")
    return {
        "train": str(folder / "train.jsonl"),
        "test": str(Path(options.data) / DATA / "test.jsonl"),
        "unlabelled": str(folder / "unlabelled.jsonl"),
    }


def pipeline(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The row as a pipeline file."""
    files = written(options)
    if name != "general_then_task":
        del files["unlabelled"]
    known = {"labelled": LABELLED} if with_few_labels(name) else {}
    return {
        "name": f"distillation-mails-{name}-seed{options.seed}",
        "task": {"kind": "text_classification", "data": {"kind": "jsonl", **files}, "max_length": LENGTH, **known},
        "model": {"kind": "pretrained", "path": str(teacher_folder("mail", options))},
        "seed": options.seed,
        "stages": rows(options.data, options.steps)[name],
        "targets": [],
    }


def make(name: str, options: argparse.Namespace) -> None:
    """One row; with other than `STEPS` steps it is a trial, and is not written."""
    path = ROWS / f"mails-{name}-seed{options.seed}.json"
    if path.is_file():
        return
    source = pipeline(name, options)
    found = run_pipeline(source, options.work)
    test = {stage["name"]: stage["facts"]["metrics"] for stage in found["stages"]}
    stages = [{key: stage[key] for key in ("name", "kind", "seconds", "facts")} for stage in found["stages"]]
    if options.steps != STEPS:
        print(json.dumps({"row": name, "test": test, "seconds": [stage["seconds"] for stage in stages]}), flush=True)
        return
    # Where things lay is of no interest to others.
    text = json.dumps(source).replace(str(options.work), "work").replace(str(options.data), "data")
    row: dict[str, Any] = {"row": name, "seed": options.seed, "steps": STEPS, "pipeline": json.loads(text)}
    write_row(path, {**row, "test": test, "stages": stages, "environment": found["environment"]})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer, to try a row; it is not written")
    options = parser.parse_args()
    for name in [options.only] if options.only else names():
        make(name, options)


if __name__ == "__main__":
    main()
