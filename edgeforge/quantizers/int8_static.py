"""Eight-bit weights and activations in ONNX files, with ranges found on training data before shipping."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.spec import perhaps
from edgeforge.core.stage import Job
from edgeforge.device import Layout
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers import _qdq as qdq
from edgeforge.quantizers._calibration import Calibrator, Method, Range
from edgeforge.quantizers._kernels import tune
from edgeforge.quantizers._record import copy_companions, coverage, record

if TYPE_CHECKING:
    from typing import Self

    import onnx

SENSITIVITY_SAMPLES = 128


class Int8Static(Quantizer):
    """Static INT8: weights and activations in eight bits, their scales fixed in the file (QDQ).

    In convolutional networks all values stay integers from the image to the last layer. In networks with
    LayerNormalization (transformers, ConvNeXt) only layers with weights compute in integers.
    """

    kind: Literal["int8_static"] = "int8_static"
    samples: int = Field(default=512, ge=1, description="Training samples the ranges are found on.")
    calibration: Method = Field(
        default="minmax",
        description="What eight bits span: all that was seen, all but a share of outliers, or what loses the least "
        "information.",
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="percentile: the share of values within the range (%)."
    )
    layout: Literal["auto", "x86", "arm"] = Field(
        default="auto",
        description="Integers the processor multiplies fast: u8 by s8 (x86) or s8 by s8 (Arm). auto: the target's "
        "devices decide; x86 without any.",
    )
    keep: tuple[str, ...] = Field(
        default=(), description="Layers that stay in float: module paths, with * and ?, or a module for all in it."
    )
    sensitive: int = Field(
        default=0,
        ge=0,
        description="How many more layers stay in float: those whose quantization alone disturbs the outputs most, "
        "measured on validation data.",
    )
    per_channel: bool = Field(default=True, description="One scale per output channel of a weight, or one for all.")

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx"})
    writes: ClassVar[frozenset[str]] = frozenset({"onnx"})
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.onnx_graph",
        "edgeforge.quantizers._calibration",
        "edgeforge.quantizers._kernels",
        "edgeforge.quantizers._qdq",
        "edgeforge.quantizers._record",
    )

    def for_layout(self, layout: Layout) -> Self:
        return self.model_copy(update={"layout": layout}) if self.layout == "auto" else self

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Quantizer. Raises ConfigurationError where `keep` names no layer, ModelError where a value is NaN."""
        original = onnx_graph.load(model.path)
        prepared = qdq.prepare(original)
        layout: Layout = "arm" if self.layout == "arm" else "x86"
        names = qdq.touched(prepared, qdq.operators_of(prepared))
        batches = _Batches(job, self.samples)
        ranges = Calibrator(prepared, names, batches).ranges(self.calibration, self.percentile)
        kept = dict.fromkeys(_matching(self.keep, qdq.layers(prepared)), "named in keep")
        noise = self._sensitivity(prepared, ranges, layout, job) if self.sensitive else {}
        ranked = sorted((name for name in noise if name not in kept), key=lambda name: noise[name])
        kept |= {name: f"sensitive: {noise[name]:.1f} dB" for name in ranked[: self.sensitive]}
        placed = qdq.place(prepared, ranges, layout=layout, per_channel=self.per_channel, kept=kept)
        tune(placed.model, prepared, layout)
        onnx_graph.compact(placed.model, quantized=True)
        onnx_graph.describe(placed.model, job.task.open().interface, job.task.kind)
        size = onnx_graph.save(placed.model, job.folder)
        copy_companions(model, job)
        record(job, "static", values=placed.values, weights=placed.weights)
        return {
            "scheme": "static",
            "bits": 8,
            "weight_type": "int8",
            "activation_type": "uint8" if layout == "x86" else "int8",
            "layout": layout,
            "per_channel": self.per_channel,
            "calibration": self.calibration,
            "samples": batches.samples,
            "quantized": [name for name in qdq.layers(prepared) if name not in kept],
            "kept_float": kept,
            "coverage_percent": coverage(original, placed.weights),
            "bytes": size,
            **({"sensitivity_db": noise} if noise else {}),
        }

    def _sensitivity(
        self, prepared: onnx.ModelProto, ranges: Mapping[str, Range], layout: Layout, job: Job
    ) -> dict[str, float]:
        """Layer -> signal-to-quantization-noise ratio of the logits (dB) with that layer alone quantized."""
        data = job.task.open()
        count = min(SENSITIVITY_SAMPLES, data.size("validation"))
        indices = np.linspace(0, data.size("validation") - 1, count, dtype=np.int64)
        inputs = data.batch("validation", indices.tolist())[data.interface.input_name].numpy()
        clean = _run(prepared, inputs)
        names = qdq.layers(prepared)
        noise = {}
        for done, name in enumerate(names):
            placed = qdq.place(prepared, ranges, layout=layout, per_channel=self.per_channel, only=[name])
            noise[name] = signal_to_noise(clean, _run(placed.model, inputs))
            job.progress.update(done + 1, len(names), f"sensitivity of {name}")
        return noise


class _Batches:
    """Calibration inputs: training samples drawn by the job's seed, not augmented, the same at every pass."""

    def __init__(self, job: Job, samples: int) -> None:
        self._data = job.task.open()
        size = self._data.size("train")
        self.samples = min(samples, size)
        self._indices = np.random.RandomState(job.seed).permutation(size)[: self.samples]

    def __call__(self) -> Iterator[np.ndarray]:
        step = onnx_graph.batch_size(self._data.interface.input_shape)
        for start in range(0, self.samples, step):
            batch = self._data.batch("train", self._indices[start : start + step].tolist())
            yield batch[self._data.interface.input_name].numpy()


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    found = []
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not hits:
            raise ConfigurationError(
                perhaps("no layer is named", pattern, list(names)),
                where="quantize.keep",
                remedy="name a layer or module",
            )
        found += hits
    return found


def _run(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    from edgeforge.runtimes.onnxruntime import EXACT_PRODUCTS, OnnxSession

    session = OnnxSession(model.SerializeToString(), settings=EXACT_PRODUCTS)
    return session.run({model.graph.input[0].name: inputs})


def signal_to_noise(clean: np.ndarray, disturbed: np.ndarray) -> float:
    """10 log10(power of `clean` / power of the difference), in dB; at most 200, where there is none."""
    signal = float(np.square(clean, dtype=np.float64).sum())
    noise = float(np.square(disturbed.astype(np.float64) - clean).sum())
    return min(200.0, 10 * float(np.log10(signal / noise))) if noise and signal else 200.0
