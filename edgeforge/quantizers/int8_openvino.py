"""Eight-bit weights and activations in OpenVINO files, chosen by NNCF on training data before shipping."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge import onnx_graph, openvino_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.extras import require
from edgeforge.core.stage import Job
from edgeforge.core.task import model_inputs
from edgeforge.quantizers import Quantizer
from edgeforge.quantizers._layer_names import matching

if TYPE_CHECKING:
    import openvino

RECORD = "quantization.json"


class Int8Openvino(Quantizer):
    """Static INT8 for OpenVINO: weights and activations in eight bits, their scales fixed in the file.

    NNCF's post-training quantization, with the extremes seen as ranges. In networks with attention, outliers of
    activations move into weights (SmoothQuant: Xiao et al., 2023) and attention's own products stay in float. Weights
    have a scale per output channel, embeddings one per row. One file serves x86 and Arm.
    """

    kind: Literal["int8_openvino"] = "int8_openvino"
    samples: int = Field(default=300, ge=1, description="Training samples the ranges are found on, one at a time.")
    preset: Literal["mixed", "performance"] = Field(
        default="mixed",
        description="mixed: activations of both signs get a zero point, which keeps more of them apart. performance: "
        "none has one, which some processors multiply faster.",
    )
    keep: tuple[str, ...] = Field(
        default=(), description="Layers that stay in float: module paths, with * and ?, or a module for all in it."
    )
    bias_correction: Literal["none", "fast", "accurate"] = Field(
        default="none",
        description="Move biases by what rounding shifts a layer's mean output: fast estimates it from mean inputs "
        "(which can cost small convolutional networks points of accuracy), accurate layer after layer, many times "
        "slower.",
    )

    accepts: ClassVar[frozenset[str]] = frozenset({"openvino"})
    writes: ClassVar[frozenset[str]] = frozenset({"openvino"})
    needs: ClassVar[tuple[str, ...]] = ("nncf", "numpy", "openvino")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.onnx_graph",
        "edgeforge.openvino_graph",
        "edgeforge.quantizers._layer_names",
    )

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Quantizer. Raises ConfigurationError where `keep` names no layer, ModelError where a weight is NaN."""
        original = openvino_graph.load(model.path)
        openvino_graph.widen(original)
        floats = openvino_graph.numbers(original)
        layers = openvino_graph.layers(original)
        _check_finite(layers)
        kept = dict.fromkeys(matching(self.keep, list(layers)), "named in keep")
        # OpenVINO 2026.4 folds such a table away while it still expects integers, and refuses the file.
        kept |= {name: "a table of one row" for name, layer in layers.items() if _is_single_row(layer)}
        samples = list(_samples(job, self.samples))
        attention = any(node.get_type_name() == "Softmax" for node in original.get_ops())
        quantized = self._quantized(original, samples, attention=attention, kept=list(kept))
        unrounded = _take_single_pixels_as_they_are(quantized)
        size = openvino_graph.save(
            quantized, job.folder, metadata=onnx_graph.described(job.data.interface, job.task.kind)
        )
        for name in model.files:
            if name not in (openvino_graph.MODEL, openvino_graph.WEIGHTS):
                shutil.copyfile(model.path / name, job.folder / name)
        _record(quantized, job)
        layers = openvino_graph.layers(quantized)
        integer = [name for name, layer in layers.items() if openvino_graph.is_quantized(layer)]
        if not integer:
            job.progress.warn("int8_openvino found no layer to quantize: the file is as it was")
        covered = sum(openvino_graph.stored(layers[name].weight).data.size for name in integer)
        return {
            "scheme": "static",
            "bits": 8,
            "weight_type": "int8",
            "per_channel": True,
            "preset": self.preset,
            "bias_correction": self.bias_correction,
            "smooth_quant": attention,
            "samples": len(samples),
            "quantized": integer,
            "kept_float": {name: kept.get(name, "NNCF's choice") for name in layers if name not in integer},
            "float_inputs": unrounded,
            "coverage_percent": 100 * covered / floats,
            "bytes": size,
        }

    def _quantized(
        self, original: openvino.Model, samples: list[dict[str, np.ndarray]], *, attention: bool, kept: list[str]
    ) -> openvino.Model:
        nncf = _load_nncf()
        # NNCF's own default is the mean of the samples' extremes, which cuts off more than rounding costs.
        extremes = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
        with _quiet():
            return nncf.quantize(
                original,
                nncf.Dataset(samples),
                preset=nncf.QuantizationPreset(self.preset),
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(samples),
                fast_bias_correction=self.bias_correction != "accurate",
                model_type=nncf.ModelType.TRANSFORMER if attention else None,
                ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    activations_range_estimator_params=extremes,
                    disable_bias_correction=self.bias_correction == "none",
                ),
            )


def _check_finite(layers: Mapping[str, openvino_graph.Layer]) -> None:
    """NNCF takes NaN for a range of nothing, and ReLU for zero: the file would look sound."""
    for name, layer in layers.items():
        if not np.isfinite(openvino_graph.constant(layer.weight)).all():
            raise ModelError(
                f"{name} holds numbers that are not finite, so there is nothing to quantize",
                remedy="look at the chain's metrics: this model is broken before quantization",
            )


def _is_single_row(layer: openvino_graph.Layer) -> bool:
    return layer.activation is None and layer.weight.get_shape()[0] == 1


def _load_nncf() -> Any:
    openvino_graph.load_openvino()
    return require("nncf", "openvino")


def _take_single_pixels_as_they_are(model: openvino.Model) -> list[str]:
    """Unrounded inputs for depthwise convolutions of images of one pixel; their names.

    OpenVINO 2026.4 takes such an input's channels for another layout when a batch of one meets a file for any batch,
    and answers at random. They cost next to nothing, so nothing is lost.
    """
    found = []
    for name, layer in openvino_graph.layers(model).items():
        value = layer.activation
        if layer.node.get_type_name() != "GroupConvolution" or value is None:
            continue
        pixels = list(value.get_partial_shape())[2:]
        rounding = value.get_node()
        if rounding.get_type_name() == "FakeQuantize" and all(axis == 1 for axis in pixels):
            layer.node.input(0).replace_source_output(rounding.input_value(0))
            found.append(name)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's progress bars and its notes on what it does; what goes wrong is raised."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _samples(job: Job, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Training samples drawn by the job's seed, each a batch of its own: texts are not padded, as when one is asked."""
    data = job.data
    size = data.size("train")
    for index in np.random.RandomState(job.seed).permutation(size)[:count]:
        batch = data.batch("train", [int(index)])
        yield {name: value.numpy() for name, value in model_inputs(batch).items()}


def _record(model: openvino.Model, job: Job) -> None:
    """Write ``quantization.json``: the range of each quantized value, and what tells one bias from another.

    Weights are not in it: whoever checks the file has the float ones.
    """
    content = {
        "scheme": "static",
        "values": openvino_graph.quantized_values(model),
        "biases": openvino_graph.bias_digests(model),
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    (job.folder / RECORD).write_text(text, encoding="utf-8")
