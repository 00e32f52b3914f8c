"""A file under verification, whatever its format, beside the models it came from and real inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.runtimes import Session
from edgeforge.verification import Check, Fidelity, differences, real_inputs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Inputs = dict[str, np.ndarray]

PARITY_SAMPLES = 64
"""Samples computed in float64 as well, which takes several times as long."""

ROUNDINGS = 16
"""How many times torch's own float32 error a runtime may be off: it sums the same numbers in another order."""


def batches_of(inputs: Inputs, size: int) -> list[Inputs]:
    """The same arrays, `size` samples at a time."""
    count = len(next(iter(inputs.values())))
    return [{name: array[start : start + size] for name, array in inputs.items()} for start in range(0, count, size)]


class Opened:
    """A file that opens, the models it came from, and real inputs."""

    batch_matters = False
    """Whether some numbers are found at run time over the whole batch."""

    def __init__(self, inputs: Mapping[str, Artifact], job: Job, session: Session) -> None:
        self.inputs = inputs
        self.job = job
        self.folder = inputs["file"].path
        self.data = job.data
        self.interface: Interface = self.data.interface
        self.quantized = "unquantized" in inputs or inputs["reference"].digest != inputs["model"].digest
        self.session = session
        self.samples, self.labels = real_inputs(self.data)
        self.batch = onnx_graph.batch_size(self.interface)

    def run(self, session: Session, samples: Inputs) -> np.ndarray:
        """Logits of `samples`."""
        return self._in_batches(session.run, samples)

    def _in_batches(self, run: Callable[[Inputs], np.ndarray], samples: Inputs) -> np.ndarray:
        """Always the same batches: what is quantized at run time depends on them."""
        return np.concatenate([run(batch) for batch in batches_of(samples, self.batch)])

    def unusable(self) -> Check | None:
        """A failed check where the file does not run or gives numbers that are not finite."""
        try:
            self.outputs = self.run(self.session, self.samples)
        except ModelError as error:
            return Check("runs", False, error.what)
        expected = (len(self.labels), len(self.interface.labels))
        if self.outputs.shape != expected:
            return Check("runs", False, f"the output has shape {self.outputs.shape}, not {expected}")
        if not np.isfinite(self.outputs).all():
            share = 1 - np.isfinite(self.outputs).all(axis=1).mean()
            return Check("finite outputs", False, f"{share:.1%} of the samples give NaN or Infinity")
        return None

    def torch_outputs(
        self, role: str, samples: Inputs, dtype: str = "float32", *, half_weights: bool = False
    ) -> np.ndarray:
        """Logits of a torch artifact, computed in `dtype`; `half_weights`: its weights rounded to float16 before."""
        from edgeforge.models import loading

        model = loading.load(self.inputs[role].path)
        if half_weights:
            for parameter in model.parameters():
                parameter.data = parameter.data.half().float()
        return self.logits(model, samples, dtype)

    def logits(self, network: PreTrainedModel, samples: Inputs, dtype: str) -> np.ndarray:
        """Of a torch model, which is left in `dtype`."""
        import torch

        kind: torch.dtype = getattr(torch, dtype)
        model = network.to(kind)

        def run(batch: Inputs) -> np.ndarray:
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            typed = {
                name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
            }
            logits: np.ndarray = model(**typed).logits.numpy()
            return logits

        with torch.inference_mode():
            return self._in_batches(run, samples)

    def fidelity(self) -> Fidelity:
        """How far the file is from the float model, as its user will notice."""
        import torch

        reference = self.torch_outputs("model", self.samples)
        found = differences(self.outputs, reference)
        labels = torch.from_numpy(self.labels)
        measured = [dict(self.job.task.metrics(torch.from_numpy(item), labels)) for item in (reference, self.outputs)]
        name = next(iter(measured[0]))
        return Fidelity(
            agreement=float(found["agreement"] or 0.0),
            cosine=float(found["cosine"] or 0.0),
            metric=name,
            metric_drop=float(measured[0][name]) - float(measured[1][name]),
            samples=len(self.labels),
        )


def float_limit(exact: np.ndarray, single: np.ndarray) -> tuple[float, str]:
    """What float32 arithmetic may move: torch's own rounding error on these samples, times a factor."""
    own = float(np.abs(single - exact).max())
    last = float(np.finfo(np.float32).eps * np.abs(exact).max())
    limit = ROUNDINGS * max(own, last)
    return limit, f"at most {limit:.3g}: {ROUNDINGS} times torch's own float32 rounding error on these samples"
