"""Is a written file what it should be? One module per format; `edgeforge.stages.verify` picks it by the file's format.

Such a module is named like the format and offers ``verify(inputs, job) -> facts`` (see `Verification`). It never
raises for a bad file: a file that cannot even be opened is a failed check.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from edgeforge.core.task import model_inputs

if TYPE_CHECKING:
    from edgeforge.core.artifact import Artifact
    from edgeforge.core.stage import Job
    from edgeforge.core.task import TaskData

SAMPLES = 256
"""Real inputs, from the validation split, that a file is compared on."""


class Verification(Protocol):
    """What a module of this folder offers."""

    def verify(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        """Compare ``inputs["file"]`` with the torch artifact it was made from; returns `outcome`.

        `inputs`: ``file``; ``model`` (the float torch model); ``reference`` (the torch model whose weights lie on the
        grid, or ``model`` again); ``unquantized`` where a quantizer rewrote that file into ``file``.
        """


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `passed` is None where it could not be looked at here, which `detail` explains."""

    name: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class Parity:
    """The file's outputs against those of `reference`, which says in words what it is.

    `tolerance` (in the outputs' unit) bounds `max_abs_error`; `why` says what it follows from. `cosine` and
    `agreement` (share of equal argmax) are means over samples. `passed` is None where the file cannot run here.
    """

    reference: str
    passed: bool | None
    why: str
    max_abs_error: float | None = None
    tolerance: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    samples: int = 0


@dataclass(frozen=True)
class Fidelity:
    """A quantized file against the float model: what its user will notice.

    `metric` names the task's headline metric on these samples; `metric_drop` is the float model's minus the file's.
    """

    agreement: float
    cosine: float
    metric: str
    metric_drop: float
    samples: int


def verification_of(format: str) -> Verification | None:
    """The module that verifies files of `format`, or None."""
    name = f"{__name__}.{format}"
    if format.startswith("_") or importlib.util.find_spec(name) is None:
        return None
    return cast(Verification, importlib.import_module(name))


def outcome(
    parity: Parity, checks: Sequence[Check], fidelity: Fidelity | None = None, *, layers: Sequence[Any] = ()
) -> dict[str, Any]:
    """The facts of a verification, as plain JSON.

    ``{"passed", "reason", "parity": {...}, "fidelity": {...} | None, "checks": [{"name", "passed", "detail"}],
    "layers": [{"name", "weight_db", "output_db"}]}``; `layers` are dataclasses like `LayerNoise`, the worst first.
    The file passes when nothing that could be looked at failed.
    """
    failed = [f"{check.name}: {check.detail}" for check in checks if check.passed is False]
    if parity.passed is False:
        failed.append(f"parity with {parity.reference}: {parity.why}")
    return {
        "passed": not failed,
        "reason": failed[0] if failed else None,
        "parity": asdict(parity),
        "fidelity": asdict(fidelity) if fidelity else None,
        "checks": [asdict(check) for check in checks],
        "layers": [asdict(layer) for layer in layers],
    }


def differences(outputs: np.ndarray, reference: np.ndarray) -> dict[str, float | int | None]:
    """``max_abs_error``, ``cosine``, ``agreement``, ``samples`` of logits, both of shape (N, labels).

    Numbers that are not finite give an error of None (JSON knows no NaN) and count as disagreement.
    """
    finite = bool(np.isfinite(outputs).all() and np.isfinite(reference).all())
    outputs, reference = outputs.astype(np.float64), reference.astype(np.float64)
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(outputs, axis=1) * np.linalg.norm(reference, axis=1)
        cosine = np.sum(outputs * reference, axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)
    usable = np.isfinite(outputs).all(axis=1)
    return {
        "max_abs_error": float(np.abs(outputs - reference).max()) if finite else None,
        "cosine": float(cosine.mean()) if finite else None,
        "agreement": float(((outputs.argmax(axis=1) == reference.argmax(axis=1)) & usable).mean()),
        "samples": len(outputs),
    }


def real_inputs(data: TaskData) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs by name and labels of up to `SAMPLES` validation samples, evenly spread over the split."""
    size = data.size("validation")
    indices = np.linspace(0, size - 1, num=min(SAMPLES, size), dtype=np.int64)
    batch = data.batch("validation", indices.tolist())
    inputs = {name: value.numpy() for name, value in model_inputs(batch).items()}
    return inputs, batch["labels"].numpy()
