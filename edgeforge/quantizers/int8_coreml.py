"""Eight-bit weights and activations in Core ML packages, their ranges found on any machine."""

from __future__ import annotations

import contextlib
import functools
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest import mock

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import model_inputs
from edgeforge.quantizers import Quantizer
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes._coreml_writing import renumber, write_package
from edgeforge.runtimes.coreml_reference import CoremlReference, reference_predictions

LAYERS = ("conv", "linear")


class Int8Coreml(Quantizer):
    """Static INT8 for Core ML (W8A8): weights and inputs of layers in eight bits, their scales fixed in the package.

    coremltools writes it, symmetric, weights with a scale per output channel. It finds the ranges of activations by
    running the program, which Apple's library does on a Mac only: here EdgeForge's evaluator runs it, so that any
    machine will do. On the Neural Engine of A17 Pro, M4 and later, eight-bit products are faster than float16 ones.
    Embedding tables stay float16: where they are most of a model, `int8_weights` makes smaller files.
    """

    kind: Literal["int8_coreml"] = "int8_coreml"
    samples: int = Field(default=64, ge=1, description="Training samples the ranges are found on.")
    min_elements: int = Field(default=512, ge=0, description="Weights with fewer numbers stay in float.")

    accepts: ClassVar[frozenset[str]] = frozenset({"coreml"})
    writes: ClassVar[frozenset[str]] = frozenset({"coreml"})
    needs: ClassVar[tuple[str, ...]] = ("coremltools", "numpy", "torch")
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.runtimes._coreml",
        "edgeforge.runtimes._coreml_writing",
        "edgeforge.runtimes._mil.evaluator",
        "edgeforge.runtimes._mil.model",
        "edgeforge.runtimes.coreml_reference",
    )

    def quantize(self, model: Artifact, job: Job) -> Mapping[str, Any]:
        """See Quantizer. Raises ModelError for a language model, and for a package of float32 arithmetic."""
        interface = job.data.interface
        if interface.per_token:
            raise ModelError("language models are not quantized so", remedy="use int8_weights or int4_weights")
        package = model.path / runtime.PACKAGE
        samples = _samples(model.path, job, self.samples)
        converted = self._quantized(package, samples)
        spec = converted.get_spec()
        original = runtime.load_coremltools().utils.load_spec(str(package))
        spec.description.CopyFrom(original.description)
        renumber(spec)
        write_package(job.folder / runtime.PACKAGE, spec, Path(converted.weights_dir))
        for name in model.files:
            if not name.startswith(runtime.PACKAGE):
                (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(model.path / name, job.folder / name)
        return {"scheme": "static", "bits": 8, "weight_type": "int8", "per_channel": True, **_facts(spec, samples, job)}

    def _quantized(self, package: Path, samples: list[dict[str, Any]]) -> Any:
        """The MLModel with both; neither loaded nor compiled."""
        coremltools = runtime.load_coremltools()
        from coremltools.optimize import coreml as optimize

        activations = optimize.experimental.OpActivationLinearQuantizerConfig(mode="linear_symmetric")
        weights = optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int8", weight_threshold=self.min_elements
        )
        layers = optimize.OptimizationConfig(op_type_configs=dict.fromkeys(LAYERS, activations))
        try:
            with _quiet(), reference_predictions():
                original = coremltools.models.MLModel(str(package), skip_model_load=True)
                found = optimize.linear_quantize_activations(original, layers, samples)
                return optimize.linear_quantize_weights(found, optimize.OptimizationConfig(global_config=weights))
        except ModelError:
            raise
        except Exception as error:  # a pass meets a program it does not know: anything may come
            reason = next(iter(str(error).splitlines()), "")
            raise ModelError(
                f"coremltools cannot quantize it: {type(error).__name__}: {reason}",
                remedy="use int8_weights, which leaves activations as they are",
            ) from error


def _samples(folder: Path, job: Job, count: int) -> list[dict[str, Any]]:
    """Training samples drawn by the job's seed, as the package takes them."""
    import numpy as np

    session = CoremlReference().open(folder)
    size = job.data.size("train")
    rows = np.random.RandomState(job.seed).permutation(size)[:count].tolist()
    inputs = {name: value.numpy() for name, value in model_inputs(job.data.batch("train", rows)).items()}
    found: list[dict[str, Any]] = session.samples(inputs)  # type: ignore[attr-defined]  # a classifier's
    return found


def _facts(spec: Any, samples: list[dict[str, Any]], job: Job) -> dict[str, Any]:
    main = spec.mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    rounded = sum(operation.type == "quantize" for operation in operations)
    integer = [operation.outputs[0].name for operation in operations if operation.type.startswith("constexpr_")]
    if not rounded:
        job.progress.warn("int8_coreml found no activation to quantize: export with precision: float16")
    package = job.folder / runtime.PACKAGE
    return {
        "samples": len(samples),
        "quantized": integer,
        "quantized_activations": rounded,
        "bytes": sum(path.stat().st_size for path in package.rglob("*") if path.is_file()),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without coremltools' progress bars and numpy's notes on float16; what goes wrong is raised."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    silent = functools.partialmethod(tqdm.__init__, disable=True)
    with mock.patch.object(tqdm, "__init__", silent), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield
