"""The rows on real e-mail: one fine-tuned MiniLM per seed, compressed in every order, and each step alone.

Every row is a pipeline that `edgeforge run` could run; its raw result is rows/<row>-seed<k>.json. A row that is there
is not made again, and one that was killed goes on from its checkpoint. Latency is measured last, of all files of a seed
in one run on an otherwise idle machine. table.py draws the table.

    edgeforge fetch spam-assassin --out data && edgeforge fetch minilm-l6 --out data
    python -m benchmarks.spam.run --seed 0 --data data --work data/spam-bench
    python -m benchmarks.spam.run --seed 0 ... --latency
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.measuring import arguments, race, run_pipeline, write_row
from edgeforge.core.artifact import digest_files, hash_folder
from edgeforge.core.document import to_yaml
from edgeforge.environment import describe
from edgeforge.links import Subject
from edgeforge.pipeline import parse
from edgeforge.plan import build
from edgeforge.store import Store

ROWS = Path(__file__).parent / "rows"
DATA, MODEL = "spam_assassin", "minilm_l6"
LABELLED = 200
"""How many mails have a label in the rows with few labels."""

CUTS: dict[str, dict[str, str]] = {"mail": {}, "subject": {"text": "subject"}, "source": {"label": "source"}}
"""What is read and told apart: the whole mail, its subject line alone, or which of five folders it came from."""

FINE_TUNING = {"batch_size": 32, "learning_rate": 5e-5, "epochs": 2}
RECIPE = {"batch_size": 32, "learning_rate": 5e-4, "epochs": 8}
RECOVERY = {"batch_size": 32, "learning_rate": 3e-4, "epochs": 3}
FEW_STEPS = 1050
"""As many as eight epochs of all mails have, which the other students learn for."""
TAUGHT = [{"kind": "soft_targets", "temperature": 2, "weight": 0.9}, {"kind": "hard_labels", "weight": 0.1}]
LABELS = [{"kind": "hard_labels"}]

KEPT = [0, 2, 3, 5]
SHAPE = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 384}
"""What every INT8 row ends in; MiniLM is 384 wide with 6 layers, 12 heads and 1536 inside."""
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
"""The shape of the float32 rows of the same size: a quarter of the numbers."""
VOCABULARY = 12000

INT8 = {"name": "int8", "quantize": "int8_dynamic", "export": "onnx", "devices": []}
INT4 = {"name": "int4", "quantize": {"kind": "int4_weights", "block_size": 32}, "export": "onnx", "devices": []}
OPENVINO = {"name": "openvino", "quantize": "int8_openvino", "export": "openvino", "devices": []}
COREML = {"name": "coreml", "quantize": "int8_weights", "export": "coreml", "devices": []}
FP32 = {"name": "fp32", "export": "onnx", "devices": []}


def task(data: str, cut: str = "mail", **choices: Any) -> dict[str, Any]:
    """The task of a row."""
    files = {part: str(Path(data) / DATA / f"{part}.jsonl") for part in ("train", "test")}
    return {
        "kind": "text_classification",
        "data": {"kind": "jsonl", **files, **CUTS[cut]},
        "max_length": 128,
        **choices,
    }


# -- stages


def vocabulary() -> dict[str, Any]:
    """Tokens that the mails seldom or never use leave."""
    return {"kind": "prune", "name": "vocabulary", "structure": {"kind": "vocabulary", "max_size": VOCABULARY}}


def distill(student: dict[str, Any], losses: list[dict[str, Any]], **recipe: Any) -> dict[str, Any]:
    """A student on these losses; a teacher's answers are computed once."""
    teacher = {} if losses is LABELS else {"teacher": {"kind": "cached"}}
    return {"kind": "distill", **RECIPE, **recipe, "student": student, "losses": losses, **teacher}


def prune(structure: dict[str, Any], losses: list[dict[str, Any]], *, teacher: str | None = None) -> dict[str, Any]:
    """Prune, and train what is left on these losses."""
    recover: dict[str, Any] = {**RECOVERY, "losses": losses}
    if teacher is not None:
        recover["teacher"] = {"kind": "cached", "stage": teacher}
    return {"kind": "prune", "structure": structure, "criterion": "magnitude", "recover": recover}


def fresh(shape: dict[str, int]) -> dict[str, Any]:
    """A student with random weights."""
    return {"kind": "config", "architecture": "bert", **shape}


HALF = {"kind": "width", "multiple": 0.5, "weights": "teacher", "keep": KEPT}
"""Half as wide, four of six blocks, begun from the teacher's own weights."""
INNER_HALF = {"kind": "ffn_width", "ratio": 0.5}
"""768 -> 384 inside the feed-forward parts."""


def chain(teacher: str = "vocabulary") -> list[dict[str, Any]]:
    """Distil, then prune."""
    return [vocabulary(), distill(HALF, TAUGHT), prune(INNER_HALF, TAUGHT, teacher=teacher)]


TO_SHAPE = {"kind": "channels", "ratio": 0.5, "ratios": {"*.intermediate.dense": 0.75}}
"""From MiniLM's widths to those of `SHAPE`: half of the residual width and of each head, a quarter inside."""


def rows() -> dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]]:
    """Row name -> (the teacher it starts from, stages after the teacher's training, targets)."""
    kept = {"kind": "prune", "name": "shallow", "structure": {"kind": "layers", "keep": KEPT}}
    few = {"epochs": None, "steps": FEW_STEPS}
    return {
        "quantize": ("mail", [], [INT8, INT4, OPENVINO]),
        "distil-prune": ("mail", chain(), [INT8, FP32, INT4, OPENVINO, COREML]),
        "prune-distil": (
            "mail",
            [vocabulary(), prune(INNER_HALF, TAUGHT, teacher="vocabulary"), distill(HALF, TAUGHT)],
            [INT8],
        ),
        "distil": ("mail", [vocabulary(), distill(fresh(SHAPE), TAUGHT)], [INT8]),
        "labels": ("mail", [vocabulary(), distill(fresh(SHAPE), LABELS)], [INT8]),
        "prune": ("mail", [vocabulary(), kept, prune(TO_SHAPE, LABELS)], [INT8]),
        "distil-alone": ("mail", [vocabulary(), distill(fresh(SMALL), TAUGHT)], [FP32]),
        "subject": ("subject", chain(), [INT8]),
        "few-soft": ("few", [vocabulary(), distill(fresh(SHAPE), TAUGHT, **few)], [INT8]),
        "few-labels": ("few", [vocabulary(), distill(fresh(SHAPE), LABELS, **few)], [INT8]),
    }


TEACHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mail": ({}, {}),
    "subject": ({"cut": "subject"}, {}),
    "few": ({"labelled": LABELLED}, {"epochs": None, "steps": 60}),
}
"""Teacher -> (what its task is, how its training differs)."""


def pipeline(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row, or a teacher's training, as a pipeline file."""
    if name.startswith("teacher-"):
        teacher, targets = name.removeprefix("teacher-"), []
        stages = [{"kind": "train", **FINE_TUNING, **TEACHERS[teacher][1]}]
        model = {"kind": "pretrained", "path": str(Path(options.data) / MODEL), "new_head": True}
    else:
        teacher, stages, targets = rows()[name]
        model = {"kind": "pretrained", "path": str(teacher_folder(teacher, options))}
    return {
        "name": f"{name}-seed{options.seed}",
        "task": task(options.data, **TEACHERS[teacher][0]),
        "model": model,
        "seed": options.seed,
        "stages": stages,
        "targets": targets,
    }


def teacher_folder(teacher: str, options: argparse.Namespace) -> Path:
    """Where a teacher lies, so that all rows of a seed have the same one whatever changes in EdgeForge between them."""
    folder: Path = options.work / f"teacher-{teacher}-seed{options.seed}"
    return folder


def make(name: str, options: argparse.Namespace) -> None:
    """One row, its teacher first: run its pipeline, write its raw result."""
    path = ROWS / f"{name}-seed{options.seed}.json"
    teacher = None if name.startswith("teacher-") else rows()[name][0]
    if teacher is not None:
        make(f"teacher-{teacher}", options)
    if path.is_file():
        return
    source = pipeline(name, options)
    found = run_pipeline(source, options.work)
    folder = teacher_folder(teacher or name.removeprefix("teacher-"), options)
    if teacher is None:
        shutil.copytree(last_model(source, options.work), folder, dirs_exist_ok=True)
    # Where things lay is of no interest to others.
    text = json.dumps(source).replace(str(options.work), "work").replace(str(options.data), "data")
    row = {"row": name, "seed": options.seed, "teacher": digest_files(hash_folder(folder))}
    write_row(path, {**row, "pipeline": json.loads(text), **found})


def last_model(source: dict[str, Any], work: Path) -> Path:
    """The folder of the chain's last model."""
    plan = build(parse(to_yaml(source).encode(), source["name"]))
    artifact = Store(work / "store").open(plan.step(plan.chain[-1]).key)
    assert artifact is not None
    return artifact.path


def latency(options: argparse.Namespace) -> None:
    """Every file of a seed against the teacher's float32 ONNX file, whole mails cut at 128 tokens."""
    folders = {}
    for name, (teacher, _, _) in rows().items():
        for file in sorted((options.work / "runs" / f"{name}-seed{options.seed}" / "artifacts").glob("*")):
            if teacher == "mail" and file.name != "coreml" and (file.name != "baseline" or name == "quantize"):
                runtime = "openvino" if file.name == "openvino" else "onnxruntime"
                row = "teacher" if file.name == "baseline" else f"{name}.{file.name}"
                folders[row] = Subject(runtime=runtime, folder=file)
    # As the smallest vocabulary reads them: every file knows those ids, and which they are makes no difference to time.
    reader = folders["distil-prune.int8"].folder
    data = parse(to_yaml(pipeline("quantize", options)).encode(), "quantize").task.open(reader)
    write_row(ROWS / f"latency-seed{options.seed}.json", race(folders, data, options.seed))


def naive_bayes(options: argparse.Namespace) -> None:
    """What counting words reaches, on each cut: multinomial naive Bayes on word counts, scikit-learn's defaults."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    result: dict[str, Any] = {"row": "naive-bayes", "cuts": {}}
    for cut, keys in CUTS.items():
        parts = {}
        for part in ("train", "test"):
            lines = (Path(options.data) / DATA / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
            mails = [json.loads(line) for line in lines]
            parts[part] = [[mail[keys.get(key, key)] for mail in mails] for key in ("text", "label")]
        model = make_pipeline(CountVectorizer(), MultinomialNB()).fit(*parts["train"])
        predicted = model.predict(parts["test"][0])
        result["cuts"][cut] = {
            "train": len(parts["train"][0]),
            "test": len(parts["test"][0]),
            "accuracy": float(accuracy_score(parts["test"][1], predicted)),
            "macro_f1": float(f1_score(parts["test"][1], predicted, average="macro")),
        }
    write_row(ROWS / "naive-bayes.json", {**result, "environment": describe()})


def main() -> None:
    options = arguments(__doc__).parse_args()
    if options.latency:
        latency(options)
        return
    if options.only in (None, "naive-bayes"):
        naive_bayes(options)
    for name in [options.only] if options.only else list(rows()):
        if name != "naive-bayes":
            make(name, options)


if __name__ == "__main__":
    main()
