"""How fast a shipped file probably is on a device that is not at hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.report import Basis, MeasurementRow
from edgeforge.core.stage import Job, Stage
from edgeforge.estimators import Estimate as Estimated
from edgeforge.estimators import Estimator, estimator_for


class Estimate(Stage):
    """Latency of a file, batch 1, by a model fitted to measurements of other models on the same device.

    Nothing runs. Each row has origin `estimated`, and beside it its 80 % interval, the error on models left out of the
    fit and their number. What there are no measurements of is refused, with the reason.
    """

    kind: Literal["estimate"] = "estimate"
    device: str = Field(description="The device profile to estimate for.")

    accepts: ClassVar[frozenset[str]] = frozenset({"onnx", "openvino", "coreml", "gguf"})
    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("onnx",)
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.estimators",
        "edgeforge.estimators._features",
        "edgeforge.estimators.fitted",
        "edgeforge.onnx_graph",
    )

    def identity(self) -> dict[str, Any]:
        """The spec, and the coefficients behind the estimate."""
        return {**super().identity(), "fitted": self._estimator().digest(self.device)}

    def check(self) -> None:
        self._estimator()

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        model = inputs["model"]
        found = self._estimator().estimate(self.device, model.path, model.format)
        estimates = [answer for answer in found if isinstance(answer, Estimated)]
        refused = [f"no estimate: {answer.reason}" for answer in found if not isinstance(answer, Estimated)]
        facts: dict[str, Any] = {
            "device": self.device,
            "measurements": [self._row(estimate).model_dump(mode="json") for estimate in estimates],
            "conditions": {"estimates": [item.model_dump(mode="json") for item in estimates], "refused": refused},
        }
        if not estimates:
            facts["reason"] = "; ".join(refused)
        (job.folder / "measurements.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        return facts

    def _row(self, estimate: Estimated) -> MeasurementRow:
        return MeasurementRow(
            device=self.device,
            runtime=f"{estimate.runtime} on the {estimate.unit.upper()}",
            metric="latency_ms",
            origin="estimated",
            n=0,
            median=estimate.latency_ms,
            p90=None,
            ci95=(None, None),  # it is of a median of samples; an estimate has its own, of 80 %
            basis=Basis(
                unit=estimate.unit,
                precision=estimate.precision,
                interval80=estimate.interval80_ms,
                error=estimate.error,
                rows=estimate.rows,
                source=estimate.source,
            ),
        )

    def _estimator(self) -> Estimator:
        estimator = estimator_for(self.device)
        if estimator is None:
            raise IncompatiblePlanError(
                f"there are no measurements from which {self.device} could be estimated",
                remedy="see `edgeforge devices` for those that can",
            )
        return estimator
