"""Does the benchmark call a difference where there is none, find one of 10 %, and notice a busy machine?

Two files: a convolutional network of `BLOCKS` equal residual blocks with random weights, and the same network with
`SLOWER_BLOCKS`, which is the injected slow-down: a tenth more of the same layers in the graph. A trial is what
`edgeforge run` does for a target and the file it came from: a process of its own, the rounds, samples and warm-up that
the stage `benchmark` has by default, and its verdict, which budgets judge by (`slower_than_parent`). The trials:

- `same`: the file against itself. Any verdict but "no difference shown" is wrong.
- `slower`: the larger file against the smaller one. Any verdict but "slower" is wrong.
- `busy`: the file against itself while every core has a program that never pauses. The conditions must say so.

`same` and `slower` take turns, so that a machine that changes its pace changes it for both. Every trial is written to
rows/<part>.json when it is done; one that is there is not made again, so that a run that was ended goes on. About ten
minutes on an otherwise idle machine:

    python -m benchmarks.honest_timing.run
    python -m benchmarks.honest_timing.table
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import read_row
from edgeforge.environment import describe, usable_cores
from edgeforge.links import Subject, Workload
from edgeforge.links.local import Local
from edgeforge.stages.benchmark import Benchmark, compare

HERE = Path(__file__).parent
ROWS = HERE / "rows"
PARTS = ("same", "slower", "busy")
BLOCKS, SLOWER_BLOCKS = 20, 22
CHANNELS, SIDE, INPUTS = 16, 16, 16
SETTLING_S = 1.0
"""How long the programs that make the machine busy run before a trial."""


class Quiet:
    """Progress that nobody reads."""

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        print(f"warning: {message}", flush=True)


def network(folder: Path, blocks: int) -> Path:
    """An image classifier: 3x3 convolution, `blocks` times x + relu(3x3 convolution of x), mean over pixels, logits."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    nodes, tensors = [], []

    def weights(name: str, *shape: int) -> str:
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        tensors.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    x = "stem"
    nodes.append(helper.make_node("Conv", ["pixels", weights("stem.weight", CHANNELS, 3, 3, 3)], [x], pads=[1] * 4))
    for index in range(blocks):
        weight = weights(f"block{index}.weight", CHANNELS, CHANNELS, 3, 3)
        nodes.append(helper.make_node("Conv", [x, weight], [f"conv{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"conv{index}"], [f"relu{index}"]))
        nodes.append(helper.make_node("Add", [x, f"relu{index}"], [f"sum{index}"]))
        x = f"sum{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    nodes.append(helper.make_node("MatMul", ["features", weights("head.weight", CHANNELS, 10)], ["logits"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in (("pixels", (3, SIDE, SIDE)), ("logits", (10,)))
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    folder.mkdir()
    save(model, folder / "model.onnx")
    return folder


def trial(part: str, number: int, seed: int, work: Path) -> dict[str, Any]:
    """One comparison, as plain JSON: the verdict, the raw samples, and what the machine did meanwhile."""
    defaults = Benchmark(device="host_cpu")
    larger = "larger" if part == "slower" else "network"
    workload = Workload(
        subjects={
            "model": Subject(runtime="onnxruntime", folder=work / larger),
            "parent": Subject(runtime="onnxruntime", folder=work / "network"),
        },
        inputs=work / "inputs.npz",
        threads=defaults.threads,
        samples=defaults.samples,
        starts={},
        warmup=defaults.warmup,
        min_sample_ms=defaults.min_sample_ms,
        seed=1000 * seed + number,
    )
    began, link = time.monotonic(), Local()
    timings = link.measure(workload, Quiet())
    found = compare(
        timings.latency_ms["parent"], timings.latency_ms["model"], on=(defaults.device, "onnxruntime", link)
    )
    return {
        "trial": number,
        "verdict": found.verdict,
        "ratio": found.ratio,
        "ci95": list(found.ci95),
        "busy": timings.conditions["busy"],
        "waiting_share": timings.waiting_share,
        "load_average": timings.conditions["load_average_before"],
        "calls_per_sample": dict(timings.calls_per_sample),
        "seconds": round(time.monotonic() - began, 2),
        "samples_ms": {name: [float(f"{one:.6g}") for one in values] for name, values in timings.latency_ms.items()},
    }


@contextmanager
def busy_machine() -> Iterator[None]:
    """A program that never pauses for each core, until the block ends."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
    try:
        time.sleep(SETTLING_S)
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


class Rows:
    """The trials of one part, in its file: whole after every trial."""

    def __init__(self, folder: Path, part: str, seed: int) -> None:
        """Raises SystemExit where the file was begun with another seed or on another machine."""
        self.path = folder / f"{part}.json"
        environment = json.loads(json.dumps(describe()))
        known = read_row(self.path) or {"part": part, "seed": seed, "environment": environment, "trials": []}
        if (known["seed"], known["environment"]) != (seed, environment):
            raise SystemExit(f"{self.path} was begun with another seed, machine or library: give another --rows")
        self.head = {name: value for name, value in known.items() if name != "trials"}
        self.trials: list[dict[str, Any]] = known["trials"]

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more, on a line of its own."""
        self.trials.append(row)
        head = json.dumps(self.head)[:-1]
        lines = ",\n".join(json.dumps(one) for one in self.trials)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(f'{head},\n"trials": [\n{lines}\n]}}\n', encoding="utf-8")
        partial.replace(self.path)
        print(f"{self.head['part']} {row['trial']}: {row['ratio']:.3f} {row['verdict']}; {row['busy'] or 'quiet'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="decides the order inside every round")
    parser.add_argument("--trials", type=int, default=100, help="of `same`, and of `slower`")
    parser.add_argument("--busy-trials", type=int, default=10)
    parser.add_argument("--rows", type=Path, default=ROWS, help="where the raw results are written")
    options = parser.parse_args()
    rows = {part: Rows(options.rows, part, options.seed) for part in PARTS}
    with tempfile.TemporaryDirectory(prefix="edgeforge-") as name:
        work = Path(name)
        network(work / "network", BLOCKS)
        network(work / "larger", SLOWER_BLOCKS)
        pixels = np.random.default_rng(1).standard_normal((INPUTS, 3, SIDE, SIDE)).astype(np.float32)
        np.savez(work / "inputs.npz", pixels=pixels)
        for number in range(options.trials):
            for part in ("same", "slower"):
                if number >= len(rows[part].trials):
                    rows[part].add(trial(part, number, options.seed, work))
        for number in range(len(rows["busy"].trials), options.busy_trials):
            with busy_machine():
                rows["busy"].add(trial("busy", number, options.seed, work))


if __name__ == "__main__":
    main()
