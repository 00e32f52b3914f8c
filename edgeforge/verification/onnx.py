"""ONNX files: opened again with ONNX Runtime and held against torch, on real inputs.

What a float file must equal is the torch model, within what float32 arithmetic may move. What a quantized file must
equal is computed by `_evaluator` from the float file's weights and the quantizer's recorded numbers: the file's own
integers and scales are never trusted.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeforge import onnx_graph
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Interface
from edgeforge.runtimes.onnxruntime import EXACT_PRODUCTS, FLOAT_INPUTS, OnnxSession
from edgeforge.verification import Check, Fidelity, Parity, differences, outcome, real_inputs
from edgeforge.verification._onnx_quantized import Quantized

if TYPE_CHECKING:
    import onnx
    import torch

PARITY_SAMPLES = 64
"""Samples computed in float64 as well, which takes several times as long."""

ROUNDINGS = 16
"""How many times torch's own float32 error a runtime may be off: it sums the same numbers in another order."""


def verify(inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
    """See `edgeforge.verification.Verification`."""
    try:
        opened = _Opened(inputs, job)
    except ModelError as error:
        nothing = Parity("the torch model", None, "the file does not open")
        return outcome(nothing, [Check("opens", False, error.what)])
    checks = [Check("opens", True), *_interface_checks(opened), _paths_check(inputs["file"])]
    if (broken := opened.unusable()) is not None:
        return outcome(Parity("the torch model", None, "the file does not run"), [*checks, broken])
    if "unquantized" in inputs:
        parity, more = _rewritten_parity(opened)
    else:
        parity, more = _torch_parity(opened)
    fidelity = opened.fidelity() if opened.quantized else None
    return outcome(parity, [*checks, *more], fidelity)


class _Opened:
    """A file that opens, the models it came from, and real inputs. Raises ModelError where it does not open."""

    def __init__(self, inputs: Mapping[str, Artifact], job: Job) -> None:
        self.inputs = inputs
        self.job = job
        self.folder = inputs["file"].path
        self.data = job.task.open()
        self.interface: Interface = self.data.interface
        self.quantized = "unquantized" in inputs or inputs["reference"].digest != inputs["model"].digest
        self.proto = onnx_graph.load(self.folder)
        self.session = OnnxSession(self.folder / onnx_graph.MODEL)
        self.samples, self.labels = real_inputs(self.data)
        self.batch = onnx_graph.batch_size(self.interface.input_shape)

    def run(self, session: OnnxSession, samples: np.ndarray) -> np.ndarray:
        """Logits of `samples`."""
        return self._in_batches(lambda batch: session.run({self.interface.input_name: batch}), samples)

    def _in_batches(self, run: Callable[[np.ndarray], np.ndarray], samples: np.ndarray) -> np.ndarray:
        """Always the same batches: what is quantized at run time depends on them."""
        return np.concatenate(
            [run(samples[start : start + self.batch]) for start in range(0, len(samples), self.batch)]
        )

    def unusable(self) -> Check | None:
        """A failed check where the file does not run or gives numbers that are not finite."""
        try:
            self.outputs = self.run(self.session, self.samples)
        except ModelError as error:
            return Check("runs", False, error.what)
        expected = (len(self.samples), len(self.interface.labels))
        if self.outputs.shape != expected:
            return Check("runs", False, f"the output has shape {self.outputs.shape}, not {expected}")
        if not np.isfinite(self.outputs).all():
            share = 1 - np.isfinite(self.outputs).all(axis=1).mean()
            return Check("finite outputs", False, f"{share:.1%} of the samples give NaN or Infinity")
        return None

    def torch_outputs(self, role: str, samples: np.ndarray, dtype: str = "float32") -> np.ndarray:
        """Logits of a torch artifact, computed in `dtype`."""
        import torch

        from edgeforge.models import loading

        kind: torch.dtype = getattr(torch, dtype)
        model = loading.load(self.inputs[role].path).to(kind)
        with torch.inference_mode():
            return self._in_batches(lambda batch: model(torch.from_numpy(batch).to(kind)).logits.numpy(), samples)

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
            samples=len(self.samples),
        )


# -- what the file says of itself


def _interface_checks(opened: _Opened) -> list[Check]:
    return [
        _valid(opened.proto),
        _tensors(opened),
        _any_batch(opened),
        _metadata(opened),
        _companions(opened),
    ]


def _valid(proto: onnx.ModelProto) -> Check:
    import onnx

    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("valid ONNX", False, str(error).splitlines()[0])
    return Check("valid ONNX", True)


def _tensors(opened: _Opened) -> Check:
    interface = opened.interface
    inputs, outputs = opened.session.interface()
    wanted = (
        [(interface.input_name, "tensor(float)", list(interface.input_shape))],
        [(interface.output_name, "tensor(float)", [len(interface.labels)])],
    )
    found = tuple([(name, kind, list(shape[1:])) for name, kind, shape in values] for values in (inputs, outputs))
    return Check("inputs and outputs", found == wanted, "" if found == wanted else f"{found}, expected {wanted}")


def _any_batch(opened: _Opened) -> Check:
    """Batches of one and of three run, and (but for scales found at run time) give what the samples give together."""
    name = opened.interface.input_name
    samples = opened.samples[:3]
    try:
        three = opened.session.run({name: samples})
        single = np.concatenate([opened.session.run({name: sample[None]}) for sample in samples])
    except ModelError as error:
        return Check("any batch size", False, error.what)
    if three.shape != single.shape:
        return Check("any batch size", False, f"three samples give shape {three.shape}, one by one {single.shape}")
    if "DynamicQuantizeLinear" in {node.op_type for node in opened.proto.graph.node}:
        return Check("any batch size", True, "scales are found at run time and depend on the batch")
    apart = float(np.abs(three - single).max()) if np.isfinite(three).all() and np.isfinite(single).all() else np.inf
    largest = float(np.abs(single).max())
    # A batch may be summed in another order; a value on the edge of a step may then take the other one.
    limit = (0.05 if opened.quantized else 1e-4) * max(largest, 1e-6)
    return Check("any batch size", apart <= limit, f"together and one by one they differ by {apart:.3g}")


def _metadata(opened: _Opened) -> Check:
    wanted = onnx_graph.described(opened.interface, opened.job.task.kind)
    found = {item.key: item.value for item in opened.proto.metadata_props}
    for key, value in wanted.items():
        if found.get(key) != value:
            return Check("metadata", False, f"'{key}' is {found.get(key)!r}, expected {value!r}")
    return Check("metadata", True)


def _companions(opened: _Opened) -> Check:
    """``config.json`` names the labels in order; ``preprocessor_config.json`` says how inputs are made."""
    interface = opened.interface
    wanted = {
        "config.json": {"id2label": {str(index): label for index, label in enumerate(interface.labels)}},
        onnx_graph.PREPROCESSOR: json.loads(json.dumps(onnx_graph.preprocessor(interface))),
    }
    for name, entries in wanted.items():
        try:
            content = json.loads((opened.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return Check("companion files", False, f"{name} cannot be read: {error}")
        for key, value in entries.items():
            if content.get(key) != value:
                return Check("companion files", False, f"{name}: '{key}' is {content.get(key)!r}, expected {value!r}")
    return Check("companion files", True)


def _paths_check(file: Artifact) -> Check:
    """No file tells where it was made."""
    places = {Path.home(), Path.cwd(), Path(sys.prefix), Path(__file__).parent.parent, Path(tempfile.gettempdir())}
    telling = {str(place).encode() for place in places if len(str(place)) > 4} | {
        b"site-packages",
        b"/home/",
        b"/Users/",
    }
    for name in file.files:
        content = (file.path / name).read_bytes()
        for word in sorted(telling):
            if word in content:
                return Check("no build paths", False, f"{name} holds {word.decode()!r}")
    return Check("no build paths", True)


# -- files whose arithmetic is float


def _torch_parity(opened: _Opened) -> tuple[Parity, list[Check]]:
    """The file against torch. Weights may lie on a grid, in which case both sides multiply the same numbers."""
    samples = opened.samples[:PARITY_SAMPLES]
    exact = opened.torch_outputs("reference", samples, "float64")
    limit, why = _float_limit(exact, opened.torch_outputs("reference", samples))
    outputs = opened.outputs[: len(samples)]
    reference, checks = "the torch model", []
    if opened.quantized:
        reference = "the torch model with the same quantized weights"
        outputs = opened.run(OnnxSession(_float_activations(opened.proto), settings=FLOAT_INPUTS), samples)
        if not np.array_equal(outputs, opened.outputs[: len(samples)]):
            checks = [Check("activations of matrix products", True, _ROUNDED_ACTIVATIONS)]
    found = differences(outputs, exact)
    error = found["max_abs_error"]
    return Parity(reference, error is not None and error <= limit, why, tolerance=limit, **found), checks  # type: ignore[arg-type]


_ROUNDED_ACTIVATIONS = (
    "parity is taken with activations in float; the runtime rounds them to 8 bits per block, which fidelity measures"
)


def _float_limit(exact: np.ndarray, single: np.ndarray) -> tuple[float, str]:
    """What float32 arithmetic may move: torch's own rounding error on these samples, times a factor."""
    own = float(np.abs(single - exact).max())
    last = float(np.finfo(np.float32).eps * np.abs(exact).max())
    limit = ROUNDINGS * max(own, last)
    return limit, f"at most {limit:.3g}: {ROUNDINGS} times torch's own float32 rounding error on these samples"


def _rewritten_parity(opened: _Opened) -> tuple[Parity, list[Check]]:
    """A file that a quantizer made from a float file: against that file with the recorded numbers, which is held
    against torch in its turn."""
    samples = opened.samples[:PARITY_SAMPLES]
    exact = opened.torch_outputs("model", samples, "float64")
    limit, why = _float_limit(exact, opened.torch_outputs("model", samples))
    rewritten = Quantized(opened.inputs["unquantized"].path, opened.folder, samples, opened.batch)
    if (unknown := rewritten.unknown()) is not None:
        return Parity(rewritten.reference, None, unknown), [Check("float file equals torch", None, unknown)]
    apart = float(np.abs(rewritten.clean - exact).max())
    equal = Check("float file equals torch", apart <= limit, f"they differ by {apart:.3g}; {why}")
    # Exact products: what a processor without VNNI saturates is its own affair, measured when the file is evaluated.
    session = OnnxSession(opened.folder / onnx_graph.MODEL, settings=EXACT_PRODUCTS)
    return rewritten.parity(opened.run(session, samples), floor=limit), [equal, *rewritten.checks()]


def _float_activations(proto: onnx.ModelProto) -> bytes:
    """The file with 4-bit products that take their inputs as they are."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in copy.graph.node:
        for item in node.attribute:
            if node.op_type == "MatMulNBits" and item.name == "accuracy_level":
                item.i = 1
    content: bytes = copy.SerializeToString()
    return content
