"""The Fashion-MNIST rows: one teacher per seed, compressed from lightly to heavily, and each step alone.

Every row is a pipeline that `edgeforge run` could run; its raw result is rows/<row>-seed<k>.json. A row that is there
is not made again, and one that was killed goes on from its checkpoint. Latency is measured last, of all files of a seed
in one run on an otherwise idle machine. Train the teachers first (teacher.py); table.py draws the table.

    python -m benchmarks.fashion_mnist.run --seed 0 --data data/fashion_mnist.npz --work data/fashion-bench
    python -m benchmarks.fashion_mnist.run --seed 0 ... --latency
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.fashion_mnist.teacher import ROWS, task
from benchmarks.measuring import arguments, race, read_row, run_pipeline, write_row
from edgeforge.core.artifact import digest_files, hash_folder
from edgeforge.links import Subject

EPOCHS, SHORT_EPOCHS = 6, 2
SHALLOW = [0, 1, 2, 3, 4]
"""Blocks that the shallow chain keeps: all but the last, which holds half of the teacher's weights."""
RECIPE = {"batch_size": 128, "optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 5e-4}
TAUGHT = [{"kind": "soft_targets", "temperature": 4, "weight": 0.9}, {"kind": "hard_labels", "weight": 0.1}]
LABELS = [{"kind": "hard_labels"}]
WIDTHS = {
    # residual width of each stage, inner width of its blocks; the teacher has 48, 96, 240 for both
    "p1": ((48, 96, 192), (32, 64, 128)),
    "p2": ((32, 64, 160), (32, 48, 80)),
    "p3": ((32, 64, 128), (16, 32, 64)),
    "p4": ((16, 64, 128), (16, 32, 64)),
    "p5": ((16, 48, 96), (16, 32, 48)),
    "p6": ((16, 32, 64), (16, 16, 32)),
}
GOAL = "p3"
FULL = (48, 96, 240)
INT8 = {"name": "int8", "quantize": {"kind": "int8_static", "samples": 512}, "export": {"kind": "onnx"}, "devices": []}
FP32 = {"name": "fp32", "export": {"kind": "onnx"}, "devices": []}


def shallow() -> dict[str, Any]:
    """The teacher without its last block, taught by the whole one."""
    student = {"kind": "layers", "keep": SHALLOW}
    return {"kind": "distill", **RECIPE, "epochs": SHORT_EPOCHS, "student": student, "losses": TAUGHT}


def structure(widths: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, Any]:
    """Channel pruning of the teacher to these residual and inner widths."""
    ratios = {}
    for stage, full in enumerate(FULL):
        residual, inner = widths[0][stage], widths[1][stage]
        ratios[f"resnet.encoder.stages.{stage}"] = _ratio(full, residual)
        ratios[f"resnet.encoder.stages.{stage}.layers.*.layer.0.convolution"] = _ratio(full, inner)
    ratios["resnet.embedder"] = _ratio(FULL[0], widths[0][0])
    return {"kind": "channels", "ratio": 0, "ratios": ratios, "round_to": 16}


def _ratio(full: int, kept: int) -> float:
    return round(1 - kept / full, 4)


def prune(
    widths: str,
    losses: list[dict[str, Any]],
    *,
    criterion: str = "magnitude",
    epochs: int = EPOCHS,
    teacher: str | None = None,
) -> dict[str, Any]:
    """Prune the chain's model and train it on `losses`, `teacher` naming the stage whose model teaches."""
    recover: dict[str, Any] = {**RECIPE, "epochs": epochs, "losses": losses}
    if teacher is not None:
        recover["teacher"] = {"kind": "model", "stage": teacher}
    return {
        "kind": "prune",
        "structure": structure(WIDTHS[widths]),
        "criterion": {"kind": criterion},
        "recover": recover,
    }


def distill(sizes: tuple[int, int, int], losses: list[dict[str, Any]], epochs: int = EPOCHS) -> dict[str, Any]:
    student = {
        "kind": "config",
        "architecture": "resnet",
        "embedding_size": sizes[0],
        "hidden_sizes": list(sizes),
        "depths": [2, 2, 2],
        "layer_type": "basic",
    }
    return {"kind": "distill", **RECIPE, "learning_rate": 0.1, "epochs": epochs, "student": student, "losses": losses}


def rows() -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Row name -> (stages, targets)."""
    # `alone` rows are fp32 files of the size that the goal's INT8 file has (about 0.37 MB: 92,000 parameters).
    small = (16, 16, 48)
    found = {"quantize": ([], [INT8, {**INT8, "name": "int4", "quantize": "int4_weights"}])}
    for widths in WIDTHS:
        found[f"chain-{widths}"] = ([prune(widths, TAUGHT)], [INT8])
    for widths in ("p2", "p3"):
        found[f"shallow-{widths}"] = ([shallow(), prune(widths, TAUGHT, teacher="model")], [INT8])
    found["chain-without-distillation"] = ([prune(GOAL, LABELS)], [INT8])
    found["distill-alone"] = ([distill(small, TAUGHT)], [FP32])
    found["labels-alone"] = ([distill(small, LABELS)], [FP32])
    found["prune-alone"] = ([prune("p6", LABELS)], [FP32])
    for criterion in ("magnitude", "taylor", "bn_scale", "random"):
        found[f"criterion-{criterion}"] = ([prune(GOAL, LABELS, criterion=criterion, epochs=SHORT_EPOCHS)], [])
    return found


def pipeline(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The row as a pipeline file."""
    stages, targets = rows()[name]
    return {
        "name": f"{name}-seed{seed}",
        "task": task(options.data).model_dump(mode="json"),
        "model": {"kind": "pretrained", "path": str(options.work / f"teacher-seed{seed}")},
        "seed": seed,
        "stages": stages,
        "targets": targets,
    }


def teacher_digest(options: argparse.Namespace) -> str:
    """The digest of the seed's teacher. All rows of a seed are of one teacher: another machine may train another."""
    digest = digest_files(hash_folder(options.work / f"teacher-seed{options.seed}"))
    for path in ROWS.glob(f"*-seed{options.seed}.json"):
        made_with = (read_row(path) or {}).get("teacher", digest)
        if made_with != digest:
            raise SystemExit(f"{path.name} was made with another teacher; remove the rows of this seed and start anew")
    return digest


def make(name: str, options: argparse.Namespace) -> None:
    """One row: run its pipeline, write its raw result."""
    path = ROWS / f"{name}-seed{options.seed}.json"
    if path.is_file():
        return
    digest = teacher_digest(options)
    source = pipeline(name, options.seed, options)
    found = run_pipeline(source, options.work)
    source["model"]["path"], source["task"]["data"]["path"] = f"teacher-seed{options.seed}", "fashion_mnist.npz"
    row = {"row": name, "seed": options.seed, "teacher": digest, "epochs": EPOCHS, "pipeline": source}
    write_row(path, {**row, **found})


def latency(options: argparse.Namespace) -> None:
    """Every file of a seed against its teacher's fp32 file."""
    folders = {}
    for name in rows():
        for file in sorted((options.work / "runs" / f"{name}-seed{options.seed}" / "artifacts").glob("*")):
            if file.name != "baseline" or name == "quantize":
                row = "teacher" if file.name == "baseline" else f"{name}.{file.name}"
                folders[row] = Subject(runtime="onnxruntime", folder=file)
    found = race(folders, task(options.data).open(), options.seed)
    write_row(ROWS / f"latency-seed{options.seed}.json", found)


def main() -> None:
    options = arguments(__doc__).parse_args()
    if options.latency:
        latency(options)
        return
    for name in [options.only] if options.only else list(rows()):
        make(name, options)


if __name__ == "__main__":
    main()
