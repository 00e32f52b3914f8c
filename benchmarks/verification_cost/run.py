"""What verification costs: its share of a run's time, and how fast the Core ML evaluator is beside torch.

    edgeforge run pipelines/quickstart.yaml --fresh --out runs/quickstart --store STORE
    python -m benchmarks.verification_cost.run --store STORE
    python -m benchmarks.verification_cost.run --evaluator

The first form adds up the seconds that a store's sealed artifacts recorded, all of one fresh run: those of verify steps
against all others. The second exports a ResNet-18 and an encoder of MiniLM's size (random weights), and times the
evaluator and torch eager in turns, batch 1, in one process. Writes ``cost.json`` and ``evaluator.json`` beside this
file. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeforge.environment import describe

HERE = Path(__file__).parent
LIMIT_PERCENT = 20
ROUNDS = 15


def shares(store: Path) -> dict[str, Any]:
    """Seconds by kind of step, and what verification adds to all others together, in percent."""
    seconds: dict[str, float] = defaultdict(float)
    for path in sorted((store / "sealed").glob("*/artifact.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        seconds[manifest["kind"]] += float(manifest["seconds"])
    others = sum(value for kind, value in seconds.items() if kind != "verify")
    added = 100 * seconds["verify"] / others if others else None
    return {"seconds": dict(seconds), "verification_adds_percent": added, "limit_percent": LIMIT_PERCENT}


def evaluator(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per sample of both, medians over interleaved rounds, by model."""
    found = []
    for name, (package, run_torch, sample) in models().items():
        from edgeforge.runtimes.coreml_reference import open_model

        started = time.perf_counter()
        model = open_model(package)
        opened = time.perf_counter() - started
        ours, theirs = _raced([lambda model=model, sample=sample: model.predict(sample), run_torch], rounds)
        ratio = statistics.median(ours) / statistics.median(theirs)
        row = {"model": name, "open_ms": 1e3 * opened, "evaluator_ms": ours, "torch_eager_ms": theirs}
        found.append({**row, "times_torch": ratio})
        print(f"{name}: evaluator {statistics.median(ours):.1f} ms, torch {statistics.median(theirs):.1f} ms")
    return found


def _raced(runs: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Milliseconds of each, in turns, after one round of warming up."""
    found: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for samples, run in zip(found, runs, strict=True):
            started = time.perf_counter()
            run()
            if number:
                samples.append(1e3 * (time.perf_counter() - started))
    return found


def models() -> dict[str, tuple[Path, Callable[[], Any], dict[str, Any]]]:
    """Name -> a package, a call of the same model in torch eager, a sample for the package."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

    from edgeforge.core.task import Input, Interface, Pixels, Tokens
    from edgeforge.exporters._coreml_inputs import images, texts
    from edgeforge.exporters._coreml_weights import Placed
    from edgeforge.exporters.coreml import Coreml

    root = Path(tempfile.mkdtemp(prefix="edgeforge-cost-"))
    found = {}
    labels = tuple(map(str, range(10)))
    resnet = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            num_labels=10,
        )
    ).eval()
    minilm = BertForSequenceClassification(
        BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=10)
    ).eval()
    image = Interface((Input("pixel_values", (3, 224, 224)),), "logits", labels, pixels=Pixels((0.5,) * 3, (0.25,) * 3))
    ids = tuple(Input(name, (128,), "int64", True, 1) for name in ("input_ids", "attention_mask"))
    text = Interface(ids, "logits", labels, tokens=Tokens(30522, 128, 0))
    fronts = {
        "ResNet-18 (224x224)": (resnet, image, images(resnet, image)),
        "MiniLM-L6 (128 tokens)": (minilm, text, texts(minilm, text, flexible=False)),
    }
    for name, (network, interface, front) in fronts.items():
        package = root / f"{network.config.model_type}.mlpackage"
        Coreml()._convert(front, interface, "iOS17", Placed({})).save(str(package))
        tensors = {one.name: torch.ones(1, *one.shape, dtype=getattr(torch, one.dtype)) for one in interface.inputs}
        inputs = (
            {"image": np.ones((1, 3, 224, 224), np.uint8)}
            if interface.pixels
            else {one.name: np.ones((1, 128), np.int32) for one in interface.inputs}
        )

        def run_torch(network: Any = network, tensors: Any = tensors) -> Any:
            with torch.inference_mode():
                return network(**tensors).logits

        found[name] = (package, run_torch, inputs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, help="a store that one fresh run has filled")
    parser.add_argument("--evaluator", action="store_true", help="time the Core ML evaluator beside torch eager")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args()
    if chosen.store:
        result = {"environment": describe(), **shares(chosen.store)}
        (HERE / "cost.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"verification adds {result['verification_adds_percent']:.1f} % (limit {LIMIT_PERCENT} %)")
    if chosen.evaluator:
        rows = {"environment": describe(), "rows": evaluator(chosen.rounds)}
        (HERE / "evaluator.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
