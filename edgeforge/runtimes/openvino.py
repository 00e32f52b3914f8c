"""OpenVINO files on OpenVINO's CPU plugin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.core.errors import ModelError
from edgeforge.openvino_graph import MODEL, core, load_openvino, reason
from edgeforge.runtimes import Runtime

if TYPE_CHECKING:
    import numpy as np
    import openvino

SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    # Without this, values are rounded to bfloat16 or float16 on processors that multiply those faster.
    "INFERENCE_PRECISION_HINT": "f32",
    # Who measures chooses the cores; the plugin would choose others.
    "ENABLE_CPU_PINNING": "NO",
}

FLOAT_INPUTS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Products with weights that are kept as integers take their inputs as they are, not rounded to 8 bits."""


class Openvino(Runtime):
    """OpenVINO's CPU plugin, one request at a time, float32 where the file says so, on every processor.

    An app that leaves the precision to OpenVINO gets bfloat16 or float16 arithmetic on some processors: faster for
    files in float, with outputs that differ in the third digit.
    """

    kind: Literal["openvino"] = "openvino"

    format: ClassVar[str] = "openvino"

    def available(self) -> str | None:
        from importlib.util import find_spec

        return None if find_spec("openvino") else "openvino is not installed (pip install 'edgeforge[openvino]')"

    def prepare(self) -> None:
        load_openvino()
        core().get_property("CPU", "FULL_DEVICE_NAME")  # the plugin is a library of its own

    def open(self, folder: Path, *, threads: int | None = None) -> OpenvinoSession:
        """See Runtime. Raises ModelError where a file is missing or damaged."""
        return OpenvinoSession(folder / MODEL, threads=threads)


class OpenvinoSession:
    """An opened model with one output."""

    def __init__(
        self,
        model: Path | openvino.Model,
        *,
        threads: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`model`: the ``.xml`` file, or a graph. `settings`: properties of the plugin beside `SETTINGS`."""
        chosen = {**SETTINGS, **(settings or {})}
        if threads is not None:
            chosen["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            compiled = core().compile_model(model, "CPU", chosen)
        except (RuntimeError, UnicodeDecodeError) as error:
            raise ModelError(
                f"OpenVINO {load_openvino().get_version().partition('-')[0]} cannot open it: {reason(error)}",
                where=str(model) if isinstance(model, Path) else None,
                remedy="export the model again",
            ) from error
        self._inputs = {value.any_name: value.element_type.to_dtype() for value in compiled.inputs}
        self._request = compiled.create_infer_request()

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See Session. Raises ModelError where the inputs' names, types or shapes are not the file's."""
        # An input that is left out would hold whatever was there, and another type would be converted.
        if {name: array.dtype for name, array in inputs.items()} != self._inputs:
            given = {name: str(array.dtype) for name, array in inputs.items()}
            wanted = {name: str(dtype) for name, dtype in self._inputs.items()}
            raise ModelError(f"the file does not run: it takes {wanted}, not {given}")
        try:
            return self._request.infer(inputs, share_inputs=True)[0]  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise ModelError(f"the file does not run: {reason(error)}") from error
