"""A report as a real run leaves one: shipped, quarantined and absent rows, hostile label names, gaps in the numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from edgeforge.core.measurement import Measurement
from edgeforge.core.report import MeasurementRow, Report

CLASSES = [
    "T-shirt & top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "<script>alert('shirt')</script>", "Sneaker",
    "Bag|tote", "Ankle boot",
]  # fmt: skip
BASELINE_CLASSES = [0.893, 0.989, 0.909, 0.938, 0.901, 0.987, 0.792, 0.979, 0.990, 0.968]


def measured(metric: str, around: float, *, spread: float = 0.03, n: int = 40, seed: int = 0) -> dict[str, Any]:
    rng = random.Random(f"{metric}{around}{seed}")
    samples = tuple(around * (1 + abs(rng.gauss(0, spread))) for _ in range(n))
    measurement = Measurement(
        metric=metric, device="host_cpu", runtime="onnxruntime", origin="measured", samples=samples
    )
    return MeasurementRow.of(measurement, threads=1).model_dump(mode="json")


def measurements(latency_ms: float, load_ms: float, rss_mb: float) -> list[dict[str, Any]]:
    return [
        measured("latency_ms", latency_ms),
        measured("load_ms", load_ms, n=3),
        measured("first_inference_ms", 2.1 * latency_ms, n=3),
        measured("peak_rss_mb", rss_mb, n=3, spread=0.002),
    ]


def per_class(shift: float, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    return {
        name: min(1.0, value + shift + rng.gauss(0, 0.008))
        for name, value in zip(CLASSES, BASELINE_CLASSES, strict=True)
    }


def conditions(floor_ms: float = 0.0041) -> dict[str, Any]:
    return {
        "device": "host_cpu",
        "threads": 1,
        "min_sample_ms": 5,
        "floor": [measured("latency_ms", floor_ms)],
        "load_average_before": [0.42, 0.61, 0.7],
        "load_average_after": [1.08, 0.72, 0.73],
        "cpu_mhz_before": None,
        "other_programs": [{"name": "python", "cpu_percent": 37}],
        "pinned_to_cores": [1],
        "seconds": 9.4,
    }


def latency(ratio: float, low: float, high: float, verdict: str) -> dict[str, Any]:
    return {
        "device": "host_cpu", "runtime": "onnxruntime", "origin": "measured", "n": 40,
        "ratio": ratio, "ci95": [low, high], "verdict": verdict,
    }  # fmt: skip


def stage(name: str, kind: str, *, params: int, macs: int, accuracy: float | None, **rest: Any) -> dict[str, Any]:
    metrics = {} if accuracy is None else {"accuracy": accuracy, "expected_calibration_error": 0.031}
    history = (
        {"loss": [1.1 * math.exp(-0.4 * i) + 0.2 for i in range(9)]} if kind not in ("initialize", "prune") else None
    )
    return {
        "name": name,
        "kind": kind,
        "key": format(abs(hash(name)) % 16**12, "012x") * 4,
        "cached": rest.get("cached", False),
        "seconds": rest.get("seconds", 311.2),
        "facts": {"params": params, "macs": macs, "metrics": metrics} | ({"history": history} if history else {}),
    }


def artifact(name: str, **rest: Any) -> dict[str, Any]:
    shipped = {
        "name": name,
        "status": "shipped",
        "format": "onnx",
        "path": f"artifacts/{name}/model.onnx",
        "sha256": "9f" * 32,
        "parity": {
            "reference": "fake-quantized torch model",
            "max_abs_error": 0.0021,
            "tolerance": 0.01,
            "cosine": 0.99999,
            "passed": True,
        },
        "checks": [
            {"name": "opens", "passed": True, "detail": "ONNX Runtime 1.31"},
            {"name": "runs on a Mac", "passed": None, "detail": "no Mac here"},
        ],
        "fidelity": {"agreement": 0.981, "cosine": 0.998, "metric": "accuracy", "metric_drop": 0.004, "samples": 256},
        "companions": {"labels.json": 143, "preprocessing.json": 96},
        "lineage": {"steps": [{"step": "train", "kind": "train", "key": "ab" * 32}]},
    }
    return shipped | rest


@pytest.fixture
def report_data() -> dict[str, Any]:
    """The report as plain data, to be changed by a test."""
    accuracy = 0.9354
    int8 = artifact(
        "android_int8",
        bytes=431_260,
        quantization={"kind": "int8_static", "activations": "uint8", "weights": "int8 per channel"},
        metrics={"accuracy": 0.9281, "expected_calibration_error": 0.018},
        metrics_runtime="onnxruntime",
        per_class_accuracy=per_class(-0.0073, 1),
        measurements=measurements(0.0338, 9.1, 61.9),
        latency=[latency(6.36, 6.21, 6.5, "faster")],
        deltas={"size_ratio": 8_812_004 / 431_260, "latency_ratio": 6.36, "accuracy": -0.0073},
        comparison={"n": 10000, "agreement": 0.9563, "difference": -0.0073, "ci95": [-0.0109, -0.0037]},
        conditions=[conditions()],
    )  # fmt: skip
    dynamic = artifact(
        "web_dynamic",
        bytes=1_204_113,
        quantization={"kind": "int8_dynamic"},
        metrics={"accuracy": 0.9302, "expected_calibration_error": 0.024},
        metrics_runtime="onnxruntime",
        per_class_accuracy=per_class(-0.005, 2),
        measurements=measurements(0.212, 11.8, 64.4),
        latency=[latency(1.01, 0.985, 1.04, "no difference shown")],
        deltas={"size_ratio": 8_812_004 / 1_204_113, "latency_ratio": 1.01, "accuracy": -0.0052},
        comparison={"n": 10000, "agreement": 0.961, "difference": -0.0052, "ci95": [-0.0087, -0.0017]},
        conditions=[conditions()],
        warnings=["3 of 21 convolutions stay in float32: they lose more than 0.1 points"],
    )
    apple = artifact(
        "ios_int4",
        format="coreml",
        path="artifacts/ios_int4/model.mlpackage",
        bytes=398_870,
        quantization={
            "kind": "int4_weights",
            "scheme": "palettized",
            "bits": 4,
            "kept_float": {"head.bias": "a vector"},
        },
        coverage_percent=97.2,
        metrics_reason="Core ML runs on Apple's systems only",
        parity={"reference": "compressed torch weights", "max_abs_error": 0.0, "passed": None},
        deltas={"size_ratio": 22.1, "latency_ratio": None},
        conditions=[{"device": "host_cpu", "reason": "Core ML runs on Apple's systems only"}],
    )
    broken = artifact(
        "android_entropy",
        status="quarantined",
        path="quarantine/android_entropy/model.onnx",
        reason="agrees with the float model on 61.2 % of samples, fewer than 90 %",
        bytes=431_264,
        quantization={"kind": "int8_static", "calibration": "entropy"},
        metrics={"accuracy": 0.861, "expected_calibration_error": 0.09},
        per_class_accuracy=per_class(-0.074, 3),
        parity={"reference": "fake-quantized torch model", "max_abs_error": 3.1, "cosine": 0.81, "passed": False},
        measurements=measurements(0.0341, 9.2, 62.0),
        latency=[latency(6.3, 6.1, 6.44, "faster")],
        deltas={"size_ratio": 20.4, "latency_ratio": 6.3, "accuracy": -0.0744},
        conditions=[conditions()],
    )
    absent = {
        "name": "watch",
        "status": "absent",
        "reason": "watch.export: the converter has no translation for aten::<foo>",
        "format": "coreml",
    }
    baseline = artifact(
        "baseline",
        bytes=8_812_004,
        metrics={"accuracy": accuracy, "expected_calibration_error": 0.024},
        metrics_runtime="onnxruntime",
        per_class_accuracy=dict(zip(CLASSES, BASELINE_CLASSES, strict=True)),
        measurements=measurements(0.215, 14.9, 78.6),
        conditions=[conditions()],
        parity={"reference": "torch model", "max_abs_error": 1.9e-6, "cosine": 1.0, "passed": True},
    )
    return {
        "schema": "edgeforge.report/1",
        "pipeline": "fashion-phone",
        "run": "fashion-phone-20261121T221504Z",
        "edgeforge": "0.1.0",
        "created": "2026-11-21T22:15:04+00:00",
        "environment": {
            "cpu": "AMD EPYC", "cores": 2, "physical_cores": 2, "ram_gb": 25.3, "os": "Linux 6.1 x86_64",
            "python": "3.11.7", "packages": {"onnxruntime": "1.31.1", "torch": "2.13.0"},
            "cpu_features": ["avx2", "avx512_bf16", "avx512_vnni", "fma"],
        },
        "stages": [
            stage("model", "initialize", params=2_170_000, macs=16_400_000, accuracy=None, seconds=0.4, cached=True),
            stage("train", "train", params=2_170_000, macs=16_400_000, accuracy=0.9352, seconds=1083.0, cached=True),
            stage("distill", "distill", params=860_000, macs=7_100_000, accuracy=0.9339),
            stage("prune", "prune", params=402_000, macs=2_310_000, accuracy=0.7112, seconds=3.1),
            stage("prune.recover", "finetune", params=402_000, macs=2_310_000, accuracy=0.9297),
        ],
        "artifacts": [baseline, int8, dynamic, apple, broken, absent],
        "budgets": [
            {"target": "android_int8", "metric": "accuracy_drop", "limit": 0.01, "value": 0.0073, "passed": True},
            {"target": "android_int8", "metric": "size_ratio", "limit": 20, "value": 20.43, "passed": True},
            {"target": "web_dynamic", "metric": "size_ratio", "limit": 20, "value": 7.32, "passed": False},
            {"target": "ios_int4", "metric": "accuracy_drop", "limit": 0.01, "value": None, "passed": False,
             "reason": "could not be measured here"},
        ],
        "task": "image_classification",
        "seed": 0,
        "baseline": "train",
        "warnings": ["web_dynamic: convolutions without calibrated ranges are slower than float32 on this processor"],
    }  # fmt: skip


@pytest.fixture
def report(report_data: dict[str, Any]) -> Report:
    return Report.model_validate(report_data)


SUSTAINED = {
    "seconds": 120.0, "first_quarter_ms": 0.03, "last_quarter_ms": 0.042, "ratio": 1.4, "ci95": [1.37, 1.44],
    "verdict": "slows down", "series": [[i / 10, 0.03 + i * 1e-4] for i in range(120)], "threads": 1,
}  # fmt: skip
ANSWERED = {
    "samples": 300, "metrics": {"accuracy": 0.9267, "expected_calibration_error": 0.02}, "origin": "emulated",
    "agreement_with_host": 0.9967, "max_abs_difference_from_host": 0.0313,
}  # fmt: skip


def counted(instructions: float) -> dict[str, Any]:
    counts = {"instructions": instructions, "instructions_dot_product": instructions / 9}
    return {"device": "emulated_a76", "runtime": "onnxruntime", "origin": "emulated", "n": 3, "counts": counts}


def estimate(latency_ms: float, unit: str) -> dict[str, Any]:
    basis = {
        "unit": unit, "precision": "w8a8", "interval80": [0.76 * latency_ms, 1.27 * latency_ms], "error": 0.0838,
        "rows": 15, "source": "a table",
    }  # fmt: skip
    return {
        "device": "galaxy_s24", "runtime": f"ONNX Runtime on the {unit.upper()}", "metric": "latency_ms",
        "origin": "estimated", "n": 0, "median": latency_ms, "p90": None, "ci95": [None, None], "basis": basis,
    }  # fmt: skip


def rows_of_counts(instructions: float) -> list[dict[str, Any]]:
    said = counted(instructions)
    return [
        {**said, "metric": metric, "median": value, "p90": value, "ci95": [value, value], "samples": [value] * 3}
        for metric, value in said.pop("counts").items()
    ]


@pytest.fixture
def device_data(report_data: dict[str, Any]) -> dict[str, Any]:
    """The same report with a device of every kind: measured, emulated, estimated, and one that did not answer."""
    baseline, int8, dynamic = report_data["artifacts"][:3]
    gone = {"device": "pixel_8", "reason": "no Android device is connected"}
    refused = {"device": "galaxy_s24", "refused": ["no estimate: there are no measurements of float models"]}
    estimated = {"device": "galaxy_s24", "estimates": [], "refused": []}
    for row, count in ((baseline, 16.4e6), (int8, 2.6e6)):
        row["measurements"] += rows_of_counts(count)
        row["conditions"] += [{"device": "emulated_a76", "hardware": "emulated by QEMU 7.2"}, gone]
    int8["measurements"] += [estimate(0.41, "npu"), estimate(1.9, "cpu")]
    int8["conditions"][0]["sustained"] = SUSTAINED
    int8["conditions"][1]["on_device"] = ANSWERED
    int8["conditions"] += [estimated]
    baseline["conditions"] += [refused]
    for row, factor in ((baseline, 3.1), (dynamic, 2.4)):
        timed = measured("latency_ms", factor * 0.2)
        row["measurements"] += [{**timed, "device": "browser"}]
        row["conditions"] += [{"device": "browser", "busy": "the device was busy: 1.3 cores"}]
    report_data["devices"] = [
        {"name": "host_cpu", "title": "This machine's CPU", "family": "host", "link": "local"},
        {"name": "galaxy_s24", "title": "Samsung Galaxy S24", "family": "phone", "chip": "Snapdragon 8 Gen 3"},
        {"name": "emulated_a76", "title": "Cortex-A76, emulated", "family": "emulator", "link": "qemu"},
        {"name": "pixel_8", "title": "Google Pixel 8", "family": "phone", "chip": "Tensor <G3>", "link": "adb"},
        {"name": "browser", "title": "A web browser here", "family": "browser", "link": "browser"},
    ]
    limit = {"target": "android_int8", "metric": "latency_ms", "limit": 0.05}
    report_data["budgets"] += [
        {**limit, "device": "host_cpu", "value": 0.0342, "passed": True},
        {**limit, "device": "pixel_8", "value": None, "passed": False, "reason": "could not be measured here"},
    ]
    return report_data


@pytest.fixture
def device_report(device_data: dict[str, Any]) -> Report:
    return Report.model_validate(device_data)
