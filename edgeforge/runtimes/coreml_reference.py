"""Core ML packages on any machine: their programs computed operation by operation with torch.

What it proves: what the file says. Its weights as they decompress, how its operations are wired, its interface
(images, labels, shapes, states) and, in float16, what rounding and overflow do to the numbers.
What it does not prove: that Apple's compiler takes the program, how the kernels of a phone's CPU, GPU and Neural
Engine round inside an operation (here it computes in float32 and rounds once, at its end; sums on the Neural Engine
may overflow earlier), and nothing about speed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from unittest import mock

from pydantic import Field

from edgeforge.core.errors import ModelError
from edgeforge.runtimes import Runtime
from edgeforge.runtimes._coreml import PACKAGE, load_coremltools, session_of

if TYPE_CHECKING:
    import numpy as np

    from edgeforge.runtimes import Session
    from edgeforge.runtimes._mil.model import ReferenceModel

Precision = Literal["float32", "float16"]


class CoremlReference(Runtime):
    """Core ML packages evaluated with torch, on any system: what the file says, not what a phone's kernels do.

    Its speed says nothing about any device, so it is never benchmarked.
    """

    kind: Literal["coreml_reference"] = "coreml_reference"
    precision: Precision = Field(
        default="float32",
        description="Of arithmetic. float16 rounds the result of every operation that the package computes in float16 "
        "(of every operation, where it computes all in float32), so that overflow and loss of precision show.",
    )

    format: ClassVar[str] = "coreml"
    measures_speed: ClassVar[bool] = False

    def available(self) -> str | None:
        return None if find_spec("coremltools") else "coremltools is not installed (pip install 'edgeforge[coreml]')"

    def prepare(self) -> None:
        load_coremltools()
        from edgeforge.runtimes._mil import model  # noqa: F401  (which imports torch)

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """See Runtime. Raises MissingExtraError without coremltools, ModelError for a package that is broken, unsafe,
        of another kind, or has an operation that is not known here.
        """
        model = open_model(folder / PACKAGE, precision=self.precision)
        try:
            session = session_of(model, model.metadata, model.features)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"its metadata is not that of a package written by EdgeForge: {error}",
                where=str(folder / PACKAGE),
                remedy="open it with edgeforge.runtimes.coreml_reference.open_model",
            ) from error
        return session if threads is None else _Threaded(session, threads)


class _Threaded:
    """A session that computes with so many threads."""

    def __init__(self, session: Session, threads: int) -> None:
        self._session, self._threads = session, threads

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        import torch

        before = torch.get_num_threads()
        # The number of threads belongs to the process: others find it as they left it.
        torch.set_num_threads(self._threads)
        try:
            return self._session.run(inputs)
        finally:
            torch.set_num_threads(before)


def open_model(path: Path, *, precision: Precision = "float32") -> ReferenceModel:
    """Open any ML Program (.mlpackage, or .mlmodel without a file of weights), whoever wrote it.

    The model's `predict` and `make_state` are those of coremltools' MLModel. Raises as `CoremlReference.open`.
    """
    load_coremltools()
    from edgeforge.runtimes._mil.model import ReferenceModel

    return ReferenceModel(path, precision=precision)


@contextmanager
def reference_predictions(*, precision: Precision = "float32") -> Iterator[None]:
    """While it lasts, coremltools' MLModel predicts by this evaluator, so that calibration runs off the Mac.

    ``coremltools.optimize.coreml.linear_quantize_activations`` works inside it, and takes its ranges over all samples:
    coremltools 9 itself keeps those of the last sample only. Give it a float16 program; it writes float16 scales.
    """
    coremltools = load_coremltools()
    from coremltools.optimize.coreml import _post_training_quantization as quantization
    from coremltools.optimize.coreml.experimental._model_debugger import ModelDebugger

    @functools.lru_cache(maxsize=1)
    def opened(package: str) -> ReferenceModel:
        return open_model(Path(package), precision=precision)

    def predict(self: Any, data: Any, state: Any = None) -> Any:
        return opened(self.package_path).predict(data, state)

    def make_state(self: Any) -> Any:
        return opened(self.package_path).make_state()

    def ranges(model: Any, samples: Sequence[Mapping[str, Any]], _: int = -1) -> dict[str, dict[str, float]]:
        return _ranges(opened(model.package_path), samples, concatenations=ModelDebugger(model)._get_concat_op_info())

    with (
        mock.patch.object(coremltools.models.MLModel, "predict", predict),
        mock.patch.object(coremltools.models.MLModel, "make_state", make_state),
        mock.patch.object(quantization, "_get_activation_calibration_stats", ranges),
    ):
        yield


def _ranges(
    model: ReferenceModel, samples: Sequence[Mapping[str, Any]], *, concatenations: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """The least and greatest finite number that each value took, in coremltools' form and within float16's range.

    What goes into one concatenation and what comes out of it share a range, as coremltools wants it.
    """
    import numpy as np
    from coremltools.optimize._utils import _adjust_concat_surrounding_activation_stats

    found: dict[str, dict[str, float]] = {}
    limit = float(np.finfo(np.float16).max)
    for sample in samples:
        for name, value in model.values(sample).items():
            finite = value[np.isfinite(value)]
            if value.dtype.kind == "f" and finite.size:
                low, high = np.clip((finite.min(), finite.max()), -limit, limit).tolist()
                old = found.get(name, {"rmin": low, "rmax": high})
                found[name] = {"rmin": min(old["rmin"], low), "rmax": max(old["rmax"], high)}
    _adjust_concat_surrounding_activation_stats(concatenations, found)
    return found
