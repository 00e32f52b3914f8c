"""Task metrics of an artifact, on the runtime of its own format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Answers, Batch
from edgeforge.runtimes import runtime_for
from edgeforge.runtimes.torch_eager import TorchEager
from edgeforge.stages import _asking

if TYPE_CHECKING:
    import torch

    from edgeforge.runtimes import Session


class Evaluate(Stage):
    """Run the whole test split through the file as it was written; keep what the task makes of its outputs, per sample.

    Core ML away from Apple's machines is computed by the reference evaluator. Where no runtime opens the format, the
    metrics are null and the reason is kept.
    """

    kind: Literal["evaluate"] = "evaluate"

    accepts: ClassVar[frozenset[str]] = _asking.FORMATS
    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = _asking.MODULES

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), **_asking.identity()}

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        import numpy as np

        model = inputs["model"]
        runtime = runtime_for(model.format, timed=False)
        reason = f"no runtime opens {model.format} files" if runtime is None else runtime.available()
        if reason is not None or runtime is None:
            return {"runtime": runtime.kind if runtime else None, "metrics": None, "reason": reason}
        reference = _answers(TorchEager().open(inputs["reference"].path)) if "reference" in inputs else None
        found = job.task.evaluate(
            _answers(runtime.open(model.path)), job.data, "test", reference=reference, progress=job.progress.update
        )
        for name, array in found.arrays.items():
            np.save(job.folder / f"{name}.npy", array)
        if "reason" in found.metrics:
            return {"runtime": runtime.kind, "metrics": None, "reason": found.metrics["reason"]}
        return {"runtime": runtime.kind, "metrics": dict(found.metrics), "reason": None}


def _answers(session: Session) -> Answers:
    """A session as a task asks it."""
    import torch

    def logits(batch: Batch) -> torch.Tensor:
        return torch.from_numpy(session.run({name: value.cpu().numpy() for name, value in batch.items()}))

    return Answers(logits, getattr(session, "generate", None))
