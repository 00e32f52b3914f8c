"""Static INT8 of an ONNX file, step by step: what `int8_static` and `smooth_quant` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.core.task import Batch, model_inputs
from edgeforge.device import Layout
from edgeforge.quantizers import _qdq as qdq
from edgeforge.quantizers._calibration import Calibrator, Method, Range
from edgeforge.quantizers._embeddings import quantize_embeddings
from edgeforge.quantizers._kernels import tune
from edgeforge.quantizers._layer_names import matching
from edgeforge.quantizers._record import Record, Smoothed, copy_companions
from edgeforge.quantizers._smoothing import groups, smooth

if TYPE_CHECKING:
    import onnx

SENSITIVITY_SAMPLES = 128

USES = (
    "edgeforge.onnx_graph",
    "edgeforge.onnx_rows",
    "edgeforge.quantizers._calibration",
    "edgeforge.quantizers._embeddings",
    "edgeforge.quantizers._kernels",
    "edgeforge.quantizers._layer_names",
    "edgeforge.quantizers._qdq",
    "edgeforge.quantizers._record",
    "edgeforge.quantizers._smoothing",
    "edgeforge.quantizers._static",
)
NEEDS = ("onnx", "onnxruntime")

Samples = Annotated[int, Field(ge=1, description="Training samples the ranges are found on.")]
Layouts = Annotated[
    Literal["auto", "x86", "arm"],
    Field(
        description="Integers the processor multiplies fast: u8 by s8 (x86) or s8 by s8 (Arm). auto: the target's "
        "devices decide; x86 without any."
    ),
]
Keep = Annotated[
    tuple[str, ...],
    Field(description="Layers that stay in float: module paths, with * and ?, or a module for all in it."),
]


@dataclass(frozen=True)
class Choices:
    """What a static quantizer's options come to; `alpha` (SmoothQuant's) where outliers are moved first."""

    samples: int
    layout: Layout
    keep: Sequence[str]
    embeddings: str
    calibration: Method = "minmax"
    percentile: float = 100.0
    sensitive: int = 0
    per_channel: bool = True
    alpha: float | None = None


def quantize_static(model: Artifact, job: Job, choices: Choices) -> dict[str, Any]:
    """Write the quantized file into ``job.folder``; returns facts.

    Raises ConfigurationError where `keep` names no layer, ModelError where a value is NaN.
    """
    original = onnx_graph.load(model.path)
    prepared = qdq.prepare(original)
    batches = _Batches(job, choices.samples)
    kept = dict.fromkeys(matching(choices.keep, qdq.layers(prepared)), "named in keep")
    smoothed = [] if choices.alpha is None else _smoothed(prepared, batches, choices.alpha, kept)
    names = qdq.touched(prepared, qdq.operators_of(prepared))
    ranges = Calibrator(prepared, names, batches).ranges(choices.calibration, choices.percentile)
    noise = _sensitivity(prepared, ranges, choices, job) if choices.sensitive else {}
    ranked = sorted((name for name in noise if name not in kept), key=lambda name: noise[name])
    kept |= {name: f"sensitive: {noise[name]:.1f} dB" for name in ranked[: choices.sensitive]}
    placed = qdq.place(prepared, ranges, layout=choices.layout, per_channel=choices.per_channel, kept=kept)
    tune(placed.model, prepared, choices.layout)
    tables = quantize_embeddings(placed.model, choices.embeddings)
    onnx_graph.compact(placed.model, quantized=True)
    onnx_graph.describe(placed.model, job.data.interface, job.task.kind)
    size = onnx_graph.save(placed.model, job.folder)
    copy_companions(model, job)
    record = Record("static", placed.weights, placed.values, tables, smoothed, placed.layers_only)
    record.write(job.folder)
    return {
        "scheme": "static",
        "bits": 8,
        "weight_type": "int8",
        "activation_type": "uint8" if choices.layout == "x86" else "int8",
        "layout": choices.layout,
        "per_channel": choices.per_channel,
        "calibration": choices.calibration,
        "samples": batches.samples,
        "quantized": [name for name in qdq.layers(prepared) if name not in kept],
        "kept_float": kept,
        "coverage_percent": record.coverage(original),
        "bytes": size,
        **({"embeddings": choices.embeddings} if tables else {}),
        **({"sensitivity_db": noise} if noise else {}),
        **({"smoothed": len(smoothed)} if smoothed else {}),
    }


def _smoothed(prepared: onnx.ModelProto, batches: _Batches, alpha: float, kept: Mapping[str, str]) -> list[Smoothed]:
    """Move outliers of a prepared graph's values into the weights that are quantized; the graph is changed."""
    found = groups(prepared, kept)
    values = [group.value for group in found]
    return smooth(prepared, found, Calibrator(prepared, values, batches).magnitudes(), alpha) if found else []


def _sensitivity(
    prepared: onnx.ModelProto, ranges: Mapping[str, Range], choices: Choices, job: Job
) -> dict[str, float]:
    """Layer -> signal-to-quantization-noise ratio of the logits (dB) with that layer alone quantized."""
    data = job.data
    count = min(SENSITIVITY_SAMPLES, data.size("validation"))
    indices = np.linspace(0, data.size("validation") - 1, count, dtype=np.int64)
    inputs = _arrays(data.batch("validation", indices.tolist()))
    clean = _run(prepared, inputs)
    names = qdq.layers(prepared)
    noise = {}
    for done, name in enumerate(names):
        placed = qdq.place(prepared, ranges, layout=choices.layout, per_channel=choices.per_channel, only=[name])
        noise[name] = signal_to_noise(clean, _run(placed.model, inputs))
        job.progress.update(done + 1, len(names), f"sensitivity of {name}")
    return noise


class _Batches:
    """Calibration inputs: training samples drawn by the job's seed, not augmented, the same at every pass."""

    def __init__(self, job: Job, samples: int) -> None:
        self._data = job.data
        size = self._data.size("train")
        self.samples = min(samples, size)
        self._indices = np.random.RandomState(job.seed).permutation(size)[: self.samples]

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        step = onnx_graph.batch_size(self._data.interface)
        for start in range(0, self.samples, step):
            yield _arrays(self._data.batch("train", self._indices[start : start + step].tolist()))


def _arrays(batch: Batch) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model_inputs(batch).items()}


def _run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    from edgeforge.runtimes.onnxruntime import EXACT_PRODUCTS, OnnxSession

    session = OnnxSession(model.SerializeToString(), settings=EXACT_PRODUCTS)
    return session.run(inputs)


def signal_to_noise(clean: np.ndarray, disturbed: np.ndarray) -> float:
    """10 log10(power of `clean` / power of the difference), in dB; at most 200, where there is none."""
    signal = float(np.square(clean, dtype=np.float64).sum())
    noise = float(np.square(disturbed.astype(np.float64) - clean).sum())
    return min(200.0, 10 * float(np.log10(signal / noise))) if noise and signal else 200.0
