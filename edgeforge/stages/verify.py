"""Checking a written file against what it should be."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, Literal

from pydantic import Field

from edgeforge import runtimes, verification
from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job, Stage
from edgeforge.verification import Check, Parity, _golden, outcome, verification_of
from edgeforge.verification._recorded import recorded_check

READERS = ("coremltools", "gguf", "llama-cpp-python", "openvino")


class Verify(Stage):
    """Open the written file again and compare it with the model it was made from.

    The file's arithmetic is held against torch to rounding error. Beside that, a quantized file must stay near the
    float model: the limits below catch what is broken; how much loss is too much is for budgets to say. A file that
    fails does not raise: its facts say ``passed: false`` and why.
    """

    kind: Literal["verify"] = "verify"
    min_agreement: float = Field(
        default=0.7, ge=0, le=1, description="Least share of samples on which file and float model predict the same."
    )
    min_token_agreement: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="The same for language models, of tokens: two or three bits change many a near choice.",
    )
    min_cosine: float = Field(default=0.7, ge=-1, le=1, description="Least mean cosine of their outputs.")
    max_metric_drop: float = Field(
        default=0.1, ge=0, description="Most the headline metric may fall below the float model's (absolute)."
    )

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx", "openvino", "coreml", "gguf"})
    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "torch", "transformers")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.batch_norm",
        "edgeforge.models.loading",
        "edgeforge.models.operations",
        "edgeforge.models.quantized_weights",
        "edgeforge.onnx_graph",
        "edgeforge.runtimes.onnxruntime",
        "edgeforge.verification",
        "edgeforge.openvino_graph",
        "edgeforge.gguf_file",
        "edgeforge.gguf_names",
        "edgeforge.models.gguf_tokenizer",
        *(name for _, name, package in pkgutil.walk_packages(runtimes.__path__, "edgeforge.runtimes.") if not package),
        *(f"edgeforge.verification.{module.name}" for module in pkgutil.iter_modules(verification.__path__)),
    )

    def identity(self) -> dict[str, Any]:
        """The spec, and the versions of what reads formats that not everybody needs."""
        return {**super().identity(), "readers": {name: _installed(name) for name in READERS}}

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        checker = verification_of(inputs["file"].format)
        if checker is None:
            why = f"EdgeForge cannot verify {inputs['file'].format} files"
            return outcome(Parity("nothing", None, why), [Check("verification", False, why)])
        facts = dict(checker.verify(inputs, job))
        same = recorded_check(inputs["model"], job)
        facts["checks"] = [*facts["checks"], *(_plain(check) for check in same)]
        for check in same:
            if check.passed is False:
                facts["passed"], facts["reason"] = False, facts["reason"] or f"{check.name}: {check.detail}"
        missed = [limit for limit in self._limits(facts.get("fidelity"), job) if not limit.passed]
        for check in facts["checks"]:
            if check["passed"] is None:
                job.progress.warn(f"not checked: {check['name']}: {check['detail']}")
        if missed:
            facts["passed"] = False
            facts["reason"] = facts["reason"] or f"{missed[0].name}: {missed[0].detail}"
            facts["checks"] = [*facts["checks"], *map(_plain, missed)]
        if facts["passed"]:
            facts["golden"] = _golden.write(inputs, job)
        return facts

    def _limits(self, fidelity: Mapping[str, Any] | None, job: Job) -> list[Check]:
        """How a quantized file compares with the float model; empty where it was not compared."""
        if fidelity is None:
            return []
        agreement = self.min_token_agreement if job.task.answers_per == "token" else self.min_agreement
        found = [
            ("agreement with float", fidelity["agreement"], fidelity["agreement"] >= agreement),
            ("cosine with float", fidelity["cosine"], fidelity["cosine"] >= self.min_cosine),
            (f"drop of {fidelity['metric']}", fidelity["metric_drop"], fidelity["metric_drop"] <= self.max_metric_drop),
        ]
        limits = (agreement, self.min_cosine, self.max_metric_drop)
        return [
            Check(name, passed, f"{value:.3f}, limit {limit:g}")
            for (name, value, passed), limit in zip(found, limits, strict=True)
        ]


def _plain(check: Check) -> dict[str, Any]:
    return {"name": check.name, "passed": check.passed, "detail": check.detail}


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
