"""Task metrics of an artifact, on the runtime of its own format."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgeforge import runtimes
from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import model_inputs
from edgeforge.runtimes import runtime_for

if TYPE_CHECKING:
    import numpy as np

    from edgeforge.runtimes import Session

BATCH = 256


class Evaluate(Stage):
    """Run the whole test split through the file as it was written; keep the outputs (`logits.npy`) and labels.

    Core ML away from Apple's machines is computed by the reference evaluator. Where no runtime opens the format, the
    metrics are null and the reason is kept.
    """

    kind: Literal["evaluate"] = "evaluate"

    accepts: ClassVar[frozenset[str]] = frozenset({"torch", "onnx", "openvino", "coreml", "gguf"})
    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.models.loading",
        "edgeforge.openvino_graph",
        *(name for _, name, package in pkgutil.walk_packages(runtimes.__path__, "edgeforge.runtimes.") if not package),
    )

    def identity(self) -> dict[str, Any]:
        """The spec, and whether Apple's own runtime is at hand: its answers are never taken for the reference's."""
        return {**super().identity(), "apple": sys.platform == "darwin"}

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        import numpy as np
        import torch

        model = inputs["model"]
        runtime = runtime_for(model.format, timed=False)
        reason = f"no runtime opens {model.format} files" if runtime is None else runtime.available()
        if reason is not None or runtime is None:
            return {"runtime": runtime.kind if runtime else None, "metrics": None, "reason": reason}
        logits, labels = _outputs(runtime.open(model.path), job)
        np.save(job.folder / "logits.npy", logits)
        np.save(job.folder / "labels.npy", labels)
        if not np.isfinite(logits).all():
            return {"runtime": runtime.kind, "metrics": None, "reason": "the outputs hold NaN or infinity"}
        metrics = job.task.metrics(torch.from_numpy(logits), torch.from_numpy(labels))
        return {"runtime": runtime.kind, "metrics": dict(metrics), "reason": None}


def _outputs(session: Session, job: Job) -> tuple[np.ndarray, np.ndarray]:
    """Logits (float32, shape (N, labels)) and labels (int64, shape (N,)) of the test split."""
    import numpy as np

    data = job.data
    size = data.size("test")
    logits, labels = [], []
    for start in range(0, size, BATCH):
        batch = data.batch("test", range(start, min(size, start + BATCH)))
        labels.append(batch["labels"].numpy())
        logits.append(session.run({name: value.numpy() for name, value in model_inputs(batch).items()}))
        job.progress.update(min(size, start + BATCH), size)
    return np.concatenate(logits).astype(np.float32), np.concatenate(labels)
