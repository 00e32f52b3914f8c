"""How fast and how large a shipped file is when it runs: measured in processes of its own, beside the baseline."""

from __future__ import annotations

import json
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import DeviceProblem, IncompatiblePlanError
from edgeforge.core.measurement import Measurement, bootstrap_median, difference, percentile
from edgeforge.core.report import LatencyComparison, MeasurementRow, Verdict, finite
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Interface, model_inputs
from edgeforge.device import DeviceProfile, own_folder, profile
from edgeforge.environment import fingerprint, packages
from edgeforge.estimators import estimator_for
from edgeforge.links import Link, Start, Subject, Timings, Workload, link_of
from edgeforge.runtimes import runtime_for
from edgeforge.stages import _text_benchmark

if TYPE_CHECKING:
    import torch

REAL_INPUTS = 16
"""How many test samples the timed calls go through in turn."""
MOVED = 0.05
"""A latency that moved by less, while a file ran without a pause, is called steady."""
RESAMPLES = 2000
FEWEST_ROUNDS = 10
"""Of a device that was lost after fewer, nothing is said: the interval of one round would be a point."""


class Benchmark(Stage):
    """Latency, load time, first inference and peak memory of a file, batch 1, on real inputs.

    The file, the baseline, the unquantized file that it came from, and an empty graph (the floor: what a call costs
    that computes nothing) take turns in shuffled rounds inside one process; a latency sample is the mean of the calls
    that fill `min_sample_ms`. Load time (runtime library and disk cache warm), first inference and peak memory come
    from `starts` fresh processes.
    Time in which other programs held the process's core is not counted where the system says how much it was (Linux).
    A file whose runtime cannot run on the device gets no numbers and a reason. An emulated processor has no times: the
    instructions of a call are counted, in as many processes.

    Of a language model, what llama-bench measures: `prefill_tokens_per_s` of a prompt of `prompt_tokens` real tokens,
    which is also said as the time to the first token (`first_token_ms`), and `decode_tokens_per_s` of `new_tokens`
    written one by one from an empty memory. `latency_ms` is the time for one of these, so that budgets and ratios of
    latency are of the speed of writing. `memory_bandwidth_percent` is what writing reads (all weights, once for each
    token) in percent of what the processor can read, probed in the same round on a block in huge pages.
    """

    kind: Literal["benchmark"] = "benchmark"
    device: str = Field(description="The device profile to measure on.")
    threads: int = Field(default=1, ge=1, description="Threads the runtime may use.")
    samples: int = Field(default=40, ge=30, description="Latency samples of each file.")
    min_sample_ms: float = Field(
        default=5, gt=0, description="A sample is a batch of calls lasting at least this (ms)."
    )
    starts: int = Field(default=3, ge=1, description="Fresh processes for load time, first inference and peak memory.")
    warmup: int = Field(default=5, ge=0, description="Rounds run and thrown away before the first sample.")
    sustained_s: float = Field(
        default=0, ge=0, description="Seconds the file then runs without a pause, to show a device that throttles."
    )
    accuracy_samples: int = Field(
        default=0, ge=0, description="Test samples the device itself answers, so that its accuracy is known; 0: none."
    )
    prompt_tokens: int = Field(
        default=512, ge=1, description="Of language models: tokens of the prompt; fewer where a model takes fewer."
    )
    new_tokens: int = Field(default=128, ge=1, description="Of language models: tokens written one by one.")
    text_rounds: int = Field(
        default=10, ge=3, description="Of language models: how often each file reads the prompt, and writes."
    )

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx", "openvino", "coreml", "gguf"})
    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.links",
        "edgeforge.links._answers",
        "edgeforge.links._browser",
        "edgeforge.links._browser.process",
        "edgeforge.links._browser.server",
        "edgeforge.links._conditions",
        "edgeforge.links._emulator",
        "edgeforge.links._llama_worker",
        "edgeforge.links._local_worker",
        "edgeforge.links._memory",
        "edgeforge.links._programs",
        "edgeforge.links._remote",
        "edgeforge.links._runner",
        "edgeforge.links._text_worker",
        "edgeforge.links._worker",
        "edgeforge.links.adb",
        "edgeforge.links.browser",
        "edgeforge.links.local",
        "edgeforge.links.qemu",
        "edgeforge.links.ssh",
        "edgeforge.openvino_graph",
        "edgeforge.runtimes._coreml_decoder",
        "edgeforge.runtimes._llama.model",
        "edgeforge.runtimes._llama.session",
        "edgeforge.runtimes._onnx_decoder",
        "edgeforge.runtimes.llama_cpp",
        "edgeforge.runtimes.onnxruntime",
        "edgeforge.runtimes.openvino",
        "edgeforge.stages._text_benchmark",
    )

    def identity(self) -> dict[str, Any]:
        """The spec, the host and the way to the device: timings of another machine are never taken for this one's.

        And llama.cpp's version, which `needs` cannot name: most pipelines do without it.
        """
        here = {"host": fingerprint(), "llama_cpp": packages().get("llama-cpp-python")}
        return {**super().identity(), **here, "connection": dict(profile(self.device).connection)}

    def check(self) -> None:
        device = profile(self.device)
        if device.link is None:
            raise IncompatiblePlanError(f"{self.device} cannot be reached from here", remedy=_way_to(device))

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        device = profile(self.device)
        link = link_of(str(device.link), device.connection)
        facts: dict[str, Any] = {"device": self.device, "threads": self.threads, "measurements": []}
        runtime = runtime_for(inputs["model"].format)
        reason = "nothing here runs this format" if runtime is None else link.unavailable(runtime.kind)
        if reason is None and runtime is not None:
            facts |= {"runtime": runtime.kind, **self._measured(inputs, job, link)}
        else:
            facts["reason"] = reason
        (job.folder / "measurements.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return facts

    def _measured(self, inputs: Mapping[str, Artifact], job: Job, link: Link) -> dict[str, Any]:
        data = job.data
        interface = data.interface
        if interface.per_token:
            return self._texts(inputs, job, link)
        with tempfile.TemporaryDirectory(prefix="edgeforge-") as name:
            folder = Path(name)
            indices = range(min(REAL_INPUTS, data.size("test")))
            _save(folder / "inputs.npz", model_inputs(data.batch("test", indices)))
            subjects = _subjects(inputs, link)
            if any(artifact.format == "onnx" for artifact in inputs.values()):
                subjects["floor"] = Subject(runtime="onnxruntime", folder=_empty_graph(folder / "floor", interface))
            workload = Workload(
                subjects=subjects,
                inputs=folder / "inputs.npz",
                threads=self.threads,
                samples=self.samples,
                starts={"model": self.starts} | ({"floor": 1} if "floor" in subjects else {}),
                warmup=self.warmup,
                min_sample_ms=self.min_sample_ms,
                seed=job.seed,
                sustained={"model": self.sustained_s} if self.sustained_s else {},
            )
            facts = self._facts(workload, link.measure(workload, job.progress), link)
            if self.accuracy_samples:
                facts["on_device"] = self._answered(subjects["model"], job, link, folder / "shard.npz")
        return facts

    def _texts(self, inputs: Mapping[str, Artifact], job: Job, link: Link) -> dict[str, Any]:
        if not link.times_texts:
            return {"reason": f"language models are not measured over the link {link.kind} yet"}
        subjects = _subjects(inputs, link)
        limit = _text_benchmark.longest_text(subjects)
        prompt = _text_benchmark.prompt(job.data, min(self.prompt_tokens, limit or self.prompt_tokens))
        with tempfile.TemporaryDirectory(prefix="edgeforge-") as name:
            path = Path(name) / "inputs.npz"
            _text_benchmark.save(path, prompt)
            workload = Workload(
                subjects=subjects,
                inputs=path,
                threads=self.threads,
                samples=self.text_rounds,
                starts={"model": self.starts},
                warmup=min(1, self.warmup),
                min_sample_ms=self.min_sample_ms,
                seed=job.seed,
                new_tokens=min(self.new_tokens, limit - 1 if limit else self.new_tokens),
                sustained={"model": self.sustained_s} if self.sustained_s else {},
            )
            timings = link.measure(workload, job.progress)
            facts = self._facts(workload, timings, link)
        del facts["min_sample_ms"]
        if timings.memory_gb_per_s:  # not every link can tell
            memory = {"gb_per_s": statistics.median(timings.memory_gb_per_s), "samples": list(timings.memory_gb_per_s)}
            facts["conditions"]["memory"] = {**timings.conditions["memory"], **memory}
        if self.accuracy_samples:
            reason = "language models are evaluated by the stage `evaluate`"
            facts["on_device"] = {"samples": 0, "metrics": None, "reason": reason}
        return facts

    def _answered(self, subject: Subject, job: Job, link: Link, inputs: Path) -> dict[str, Any]:
        """Metrics of the device's own answers to the first test samples, beside this machine's to the same."""
        import torch

        data = job.data
        batch = data.batch("test", range(min(self.accuracy_samples, data.size("test"))))
        _save(inputs, model_inputs(batch))
        found: dict[str, Any] = {"samples": len(batch["labels"]), "metrics": None, "reason": None}
        try:
            logits = link.outputs(subject, inputs, job.progress)
        except DeviceProblem as problem:  # the timings are there already, and are kept
            return {**found, "reason": problem.what}
        host = link_of("local")
        found["metrics"] = finite(job.task.metrics(torch.from_numpy(logits), batch["labels"]))
        if host.unavailable(subject.runtime) is None:
            here = host.outputs(subject, inputs, job.progress)
            found["agreement_with_host"] = float((logits.argmax(-1) == here.argmax(-1)).mean())
            found["max_abs_difference_from_host"] = float(abs(logits - here).max())
        return found

    def _facts(self, workload: Workload, timings: Timings, link: Link) -> dict[str, Any]:
        rows = {
            name: [row.model_dump(mode="json") for row in self._rows(name, workload, timings, link)]
            for name in workload.subjects
        }
        facts: dict[str, Any] = {
            "measurements": rows["model"],
            "baseline": rows.get("baseline", []),
            "parent": rows.get("parent", []),
            "floor": rows.get("floor", []),
            "calls_per_sample": dict(timings.calls_per_sample),
            "min_sample_ms": self.min_sample_ms,
            "conditions": {**timings.conditions, "waiting_share": timings.waiting_share},
            "latency": None,
            "parent_latency": None,
        }
        if not timings.latency_ms:
            del facts["min_sample_ms"]
        if timings.sustained.get("model"):
            facts["sustained"] = throttling(timings.sustained["model"])
        for role, fact in (("baseline", "latency"), ("parent", "parent_latency")):
            if role in timings.latency_ms:
                facts[fact] = compare(
                    timings.latency_ms[role],
                    timings.latency_ms["model"],
                    on=(self.device, workload.subjects["model"].runtime, link),
                ).model_dump(mode="json")
        return facts

    def _rows(self, name: str, workload: Workload, timings: Timings, link: Link) -> list[MeasurementRow]:
        subject = workload.subjects[name]
        samples = {"latency_ms": timings.latency_ms[name]} if name in timings.latency_ms else {}
        if counts := timings.counts.get(name):
            samples |= {metric: tuple(count[metric] for count in counts) for metric in counts[0]}
        if workload.new_tokens:
            samples |= _text_benchmark.samples(name, subject, timings)
        if starts := timings.starts.get(name):
            for metric in Start.model_fields:
                values = tuple(getattr(start, metric) for start in starts)
                samples |= {metric: values} if None not in values else {}
        return [
            MeasurementRow.of(
                Measurement(
                    metric=metric,
                    device=self.device,
                    runtime=subject.runtime,
                    origin=link.origin,
                    samples=tuple(float(f"{value:.6g}") for value in values),
                ),
                threads=self.threads,
            )
            for metric, values in samples.items()
        ]


def _way_to(device: DeviceProfile) -> str:
    """What to do where no link to a device is set up."""
    links = " or ".join(f"`link: {link}`" for link in device.reachable_by)
    ways = [f"write {links} in {own_folder() / device.name}.yaml (docs/devices.md)"] if links else []
    if device.by_bundle:
        ways.append(device.by_bundle)
    if estimator_for(device.name) is not None:
        ways.append("a target that names it gets an estimate")
    return "; ".join(ways) or "see `edgeforge devices` for those that can"


def throttling(series: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """How latency (ms) moved while a file ran without a pause: the last quarter's median over the first's.

    `series`: (seconds, latency) in order. `ci95` is a bootstrap interval of that ratio. Neighbouring samples resemble
    each other, which makes it too narrow, so the verdict asks for `MOVED` beyond it. Plain JSON.
    """
    quarter = max(1, len(series) // 4)
    first = [latency for _, latency in series[:quarter]]
    last = [latency for _, latency in series[-quarter:]]
    rng = random.Random(0)
    ratios = [
        statistics.median(rng.choices(last, k=quarter)) / statistics.median(rng.choices(first, k=quarter))
        for _ in range(RESAMPLES)
    ]
    low, high = percentile(ratios, 2.5), percentile(ratios, 97.5)
    return {
        "seconds": series[-1][0],
        "first_quarter_ms": statistics.median(first),
        "last_quarter_ms": statistics.median(last),
        "ratio": statistics.median(last) / statistics.median(first),
        "ci95": [low, high],
        "verdict": "slows down" if low > 1 + MOVED else "speeds up" if high < 1 / (1 + MOVED) else "steady",
        "series": [[round(at_s, 3), float(f"{latency:.6g}")] for at_s, latency in series],
    }


def compare(baseline: Sequence[float], target: Sequence[float], *, on: tuple[str, str, Link]) -> LatencyComparison:
    """Median of the rounds' ratios baseline / target, with its bootstrap 95 % interval; `on`: device, runtime, link.

    The interval is of these rounds; what it shows, see `core.measurement.difference`.
    """
    ratios = [before / after for before, after in zip(baseline, target, strict=True)]
    low, high = bootstrap_median(ratios)
    verdict: Verdict = "no difference shown"
    if len(ratios) >= FEWEST_ROUNDS:
        verdict = difference((low, high))
    device, runtime, link = on
    row = Measurement(metric="ratio", device=device, runtime=runtime, origin=link.origin, samples=tuple(ratios))
    return LatencyComparison(
        device=device,
        runtime=runtime,
        origin=link.origin,
        n=row.n,
        ratio=row.median,
        ci95=(low, high),
        verdict=verdict,
    )


def _subjects(inputs: Mapping[str, Artifact], link: Link) -> dict[str, Subject]:
    subjects = {}
    for role in ("model", "baseline", "parent"):
        if role in inputs and (runtime := runtime_for(inputs[role].format)) and not link.unavailable(runtime.kind):
            subjects[role] = Subject(runtime=runtime.kind, folder=inputs[role].path.absolute())
    return subjects


def _save(path: Path, inputs: Mapping[str, torch.Tensor]) -> None:
    import numpy as np

    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # stub: a keyword of its own


def _empty_graph(folder: Path, interface: Interface) -> Path:
    """An ONNX model that returns its first input: what remains of a call's time when there is nothing to compute."""
    from onnx import TensorProto, checker, helper, save

    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    ends = []
    for value in interface.inputs:
        last = "length" if value.variable else value.shape[-1]
        shape = ["batch", *value.shape[:-1], last]
        ends.append(helper.make_tensor_value_info(value.name, types[value.dtype], shape))
    output = helper.make_value_info(interface.output_name, ends[0].type)
    node = helper.make_node("Identity", [ends[0].name], [output.name])
    graph = helper.make_graph([node], "empty", ends, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    folder.mkdir()
    save(model, folder / "model.onnx")
    return folder
