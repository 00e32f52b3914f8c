"""What a model says about samples that do not belong to its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import model_inputs
from edgeforge.data import _probe
from edgeforge.runtimes import runtime_for
from edgeforge.stages import _asking

BATCH = 256


class Probe(Stage):
    """Ask a file about every sample of the pipeline's `probe`, on the runtime of its format; keep its logits.

    Facts: `samples`, `runtime`, and `reason` where there is no answer.
    """

    kind: Literal["probe"] = "probe"
    path: str = Field(min_length=1, description="Texts or images without a label.")

    accepts: ClassVar[frozenset[str]] = _asking.FORMATS
    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = (*_asking.MODULES, "edgeforge.data._probe")

    def identity(self) -> dict[str, Any]:
        """The content, wherever it lies."""
        return {"kind": self.kind, "content": _probe.digest(self.path), **_asking.identity()}

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        model = inputs["model"]
        data = job.task.open_probe(self.path, job.model)
        size = data.size("test")
        runtime = runtime_for(model.format, timed=False)
        reason = f"no runtime opens {model.format} files" if runtime is None else runtime.available()
        if reason is not None or runtime is None:
            return {"samples": size, "runtime": runtime.kind if runtime else None, "reason": reason}
        session, found = runtime.open(model.path), []
        for start in range(0, size, BATCH):
            end = min(size, start + BATCH)
            batch = model_inputs(data.batch("test", range(start, end)))
            found.append(session.run({name: value.numpy() for name, value in batch.items()}))
            job.progress.update(end, size)
        logits = np.concatenate(found).astype(np.float32)
        np.save(job.folder / "logits.npy", logits)
        sound = bool(np.isfinite(logits).all())
        return {
            "samples": size,
            "runtime": runtime.kind,
            "reason": None if sound else "the outputs hold NaN or infinity",
        }
