"""A file checked again, later and elsewhere: without the store, the data, or the models it came from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgeforge import onnx_graph, openvino_graph
from edgeforge.core.artifact import hash_file, hash_folder
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.runtimes import Session, runtime_for
from edgeforge.runtimes._coreml import CoremlSession, session_of
from edgeforge.runtimes.coreml_reference import open_model
from edgeforge.verification import Check, _golden, differences
from edgeforge.verification._against import against_checks
from edgeforge.verification._foreign_package import numbers, samples_of
from edgeforge.verification._on_a_mac import beside_the_evaluator
from edgeforge.verification._probes import Inputs, arbitrary, noise, texts
from edgeforge.verification._subjects import SUFFIXES, Subject

MEMORY = {"onnx": 3, "openvino": 2}
"""Times its size that a file takes while it is opened: read, parsed, and prepared by the runtime."""

FLOAT_MOVES = 1e-3
"""Of the largest answer: what another processor's float32 may move it, after many layers."""

QUANTIZED_MOVES = 1.0
"""Times what quantization itself moves answers: processors without exact 8-bit products saturate some."""

AGREEMENT = 0.75
"""Least share of recorded answers on which a quantized file still says the same."""


def checks_of(subject: Subject, *, against: Path | None = None) -> list[Check]:
    """All that can be looked at. Raises EnvironmentProblem where the file is too large for this machine."""
    if subject.said is not None:
        return [Check("shipped", None, subject.said)]
    checks = [_whole(subject)]
    if subject.format in ("measurements", "logits", "dataset"):
        return checks
    if subject.format == "torch":
        return [*checks, *_torch(subject)]
    _check_memory(subject)
    try:
        session, probes, more = _opened(subject)
    except ModelError as error:
        place = f" ({error.where})" if error.where else ""
        return [*checks, Check("opens", False, f"{error.what}{place}")]
    checks += [Check("opens", True), *more]
    answers = _answers(subject, session, probes)
    checks += answers
    if all(check.passed is not False for check in answers) and against is not None:
        checks += against_checks(subject, against, session, _inputs(subject, probes))
    return [*checks, *_not_here(subject, session, probes)]


def _whole(subject: Subject) -> Check:
    name = "sha256"
    if subject.recorded is None:
        return Check(name, None, "no record of what it should be lies beside it")
    if not subject.folder.is_dir():
        return Check(name, False, "its files are gone")
    found = hash_folder(subject.folder)
    for file, digest in sorted(subject.recorded.items()):
        if found.get(file) != digest:
            return Check(name, False, f"{file} is {'gone' if file not in found else 'not what was recorded'}")
    return Check(name, True, f"{len(subject.recorded)} files are what was recorded")


def _check_memory(subject: Subject) -> None:
    """Refuse what would not fit while it is opened; Core ML's evaluator reads weights from disk and asks itself."""
    factor = MEMORY.get(subject.format)
    if factor is None or not subject.file.is_file():
        return
    weights = subject.folder / openvino_graph.WEIGHTS
    other = weights.stat().st_size if subject.format == "openvino" and weights.is_file() else 0
    needed, free = factor * (subject.file.stat().st_size + other), psutil.virtual_memory().available
    if needed > free:
        raise EnvironmentProblem(
            f"opening it takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free",
            where=str(subject.shown),
            remedy="verify it on a machine with more memory; its sha256 alone: shasum -a 256",
        )


Probe = Callable[[], np.ndarray]
"""Asks the file about inputs made up for it; its answers."""


def _opened(subject: Subject) -> tuple[Session | None, Inputs | Probe, list[Check]]:
    """A session, inputs to ask it with where none are recorded, and what the file says of itself.

    The session is None for a file whose inputs are not those of EdgeForge's; it is then asked by a `Probe`.
    """
    if subject.format == "coreml":
        return _opened_coreml(subject)
    runtime = runtime_for(subject.format, timed=False)
    if runtime is None:
        raise ModelError(f"no runtime opens {subject.format} files")
    if (reason := runtime.available()) is not None:
        raise EnvironmentProblem(reason, where=str(subject.shown), remedy="install it, or verify elsewhere")
    session = runtime.open(subject.folder)
    if subject.format == "onnx":
        return session, _onnx_probes(subject.folder), [_onnx_valid(subject.folder), _onnx_says(subject.folder)]
    if subject.format == "openvino":
        graph = openvino_graph.load(subject.folder)
        says = _agrees(openvino_graph.metadata(graph), subject.folder)
        kinds = {"f32": "float32", "i64": "int64", "i32": "int32"}
        values = [
            (
                value.any_name,
                kinds.get(value.element_type.get_type_name(), value.element_type.get_type_name()),
                tuple(None if size.is_dynamic else size.get_length() for size in value.partial_shape),
            )
            for value in graph.inputs
        ]
        return session, arbitrary(values, subject.folder), [says]
    return session, texts(session.model.trained_length, subject.folder, session.model.vocabulary_size), []  # type: ignore[attr-defined]  # GGUF


def _onnx_probes(folder: Path) -> Inputs:
    import onnx

    model = onnx_graph.load(folder)
    constants = {tensor.name for tensor in model.graph.initializer}
    values = []
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim)
        if value.name not in constants:
            values.append((value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape))
    return arbitrary(values, folder)


def _onnx_valid(folder: Path) -> Check:
    import onnx

    try:
        onnx.checker.check_model(onnx_graph.load(folder), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check("valid ONNX", False, str(error).splitlines()[0])
    return Check("valid ONNX", True)


def _onnx_says(folder: Path) -> Check:
    return _agrees({item.key: item.value for item in onnx_graph.load(folder).metadata_props}, folder)


def _agrees(said: Any, folder: Path) -> Check:
    """The file's own labels and preprocessing against the JSON files beside it."""
    name = "labels and preprocessing"
    if "labels" not in said:
        return Check(name, None, "the file does not say: EdgeForge did not write it")
    try:
        labels = json.loads(said["labels"])
        config = _json(folder / "config.json") if labels else None  # a language model has none
        if config is not None and config.get("id2label") != {str(i): label for i, label in enumerate(labels)}:
            return Check(name, False, "config.json names other labels than the file")
        if config is not None and config.get("label2id") != {label: i for i, label in enumerate(labels)}:
            return Check(name, False, "config.json numbers the labels in another way than the file")
        images = _json(folder / onnx_graph.PREPROCESSOR)
        wanted = json.loads(said.get("preprocessing", "{}"))
        pairs = (("image_mean", "mean"), ("image_std", "std"), ("rescale_factor", "rescale"))
        if images is not None and any(images.get(theirs) != wanted.get(ours) for theirs, ours in pairs):
            return Check(name, False, f"{onnx_graph.PREPROCESSOR} says another normalisation than the file")
    except (ValueError, TypeError, AttributeError) as error:
        return Check(name, False, f"they cannot be read: {error}")
    return Check(name, True)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _opened_coreml(subject: Subject) -> tuple[Session | None, Inputs | Probe, list[Check]]:
    model = open_model(subject.file)
    try:
        session = session_of(model, model.metadata, model.features)
    except (KeyError, TypeError, ValueError):
        stateful = bool(model.make_state())

        def probe() -> np.ndarray:
            return numbers(model, samples_of(model), stateful=stateful)

        says = Check("labels and preprocessing", None, "the package does not say: EdgeForge did not write it")
        return None, probe, [says]
    if not isinstance(session, CoremlSession):
        return session, texts(session.context, subject.folder), []
    says = Check("labels and preprocessing", True)
    config = _json(subject.folder / "config.json")
    if config is not None and list(config.get("id2label", {}).values()) != list(session.labels):
        says = Check("labels and preprocessing", False, "config.json names other labels than the package")
    return session, _coreml_inputs(model, session, subject.folder), [says]


def _coreml_inputs(model: Any, session: CoremlSession, folder: Path) -> Inputs:
    """As the other formats take them: normalised images, or tokens."""
    values: list[tuple[str, str, tuple[int | None, ...]]] = []
    for feature in model.features:
        if feature.type.WhichOneof("Type") == "imageType":
            image = feature.type.imageType
            pixels = noise((len(session.mean), image.height, image.width))
            return {"pixel_values": ((pixels / 255 - session.mean) / session.std).astype(np.float32)}
        values.append((feature.name, "int64", (None, int(feature.type.multiArrayType.shape[-1]))))
    return arbitrary(values, folder)


# -- its answers


def _inputs(subject: Subject, probes: Inputs | Probe) -> Inputs:
    """Recorded ones where there are any."""
    if subject.golden is not None and subject.golden[0].is_file():
        return dict(_golden.read(subject.golden[0]).inputs)
    return {} if callable(probes) else probes


def _answers(subject: Subject, session: Session | None, probes: Inputs | Probe) -> list[Check]:
    try:
        if subject.golden is not None:
            return _golden_checks(subject, session)
        if session is None or callable(probes):
            outputs = probes() if callable(probes) else np.zeros((0, 0))
        elif not probes:
            return [Check("runs", None, "no inputs are recorded, and none can be made up for this kind of model")]
        else:
            outputs = session.run(probes)
    except ModelError as error:
        return [Check("runs", False, error.what)]
    finite = bool(np.isfinite(outputs).all())
    made_up = "no recorded inputs lie beside it, so made-up ones were used"
    return [
        Check("runs", True, made_up),
        Check("finite outputs", finite, "" if finite else "some are NaN or Infinity"),
        Check("recorded answers", None, "none are recorded: only a run's folder has them"),
    ]


def _golden_checks(subject: Subject, session: Session | None) -> list[Check]:
    assert subject.golden is not None
    path, digest = subject.golden
    if not path.is_file():
        return [Check("recorded answers", None, f"{path.name} is gone")]
    if digest is not None and hash_file(path) != digest:
        return [Check("recorded answers", False, f"{path.name} is not what was recorded")]
    golden = _golden.read(path)
    assert session is not None  # only what EdgeForge wrote has recorded answers
    outputs = session.run(dict(golden.inputs))
    if outputs.shape != golden.outputs.shape:
        return [Check("runs", False, f"its output has shape {outputs.shape}, and {golden.outputs.shape} was recorded")]
    if not np.isfinite(outputs).all():
        return [Check("runs", True), Check("finite outputs", False, "some are NaN or Infinity")]
    return [Check("runs", True), Check("finite outputs", True), _as_recorded(subject, golden, outputs)]


def _as_recorded(subject: Subject, golden: _golden.Golden, outputs: np.ndarray) -> Check:
    flat, wanted, floats = (one.reshape(-1, one.shape[-1]) for one in (outputs, golden.outputs, golden.float_outputs))
    found = differences(flat, wanted)
    apart = float(found["max_abs_error"] or 0.0)
    limit = max(subject.tolerance or 0.0, FLOAT_MOVES * float(np.abs(wanted).max()))
    agreement = float(found["agreement"] or 0.0)
    if subject.quantized:
        if floats.shape == wanted.shape:
            limit += QUANTIZED_MOVES * float(np.abs(wanted - floats).max())
        detail = f"answers move by {apart:.3g}, at most {limit:.3g}; {agreement:.0%} say the same"
        return Check("recorded answers", apart <= limit and agreement >= AGREEMENT, detail)
    return Check("recorded answers", apart <= limit, f"answers move by {apart:.3g}, at most {limit:.3g}")


# -- what is not a file's


def _torch(subject: Subject) -> Iterator[Check]:
    import torch

    from edgeforge.models import loading

    try:
        network = loading.load(subject.folder)
    except ModelError as error:
        yield Check("opens", False, error.what)
        return
    yield Check("opens", True)
    broken = [name for name, value in network.state_dict().items() if not bool(torch.isfinite(value.float()).all())]
    yield Check("finite weights", not broken, f"{broken[0]} holds NaN or Infinity" if broken else "")


def _not_here(subject: Subject, session: Session | None, probes: Inputs | Probe) -> Iterator[Check]:
    """What this machine cannot say; on a Mac, Core ML's own answers."""
    if subject.format == "coreml":
        yield from beside_the_evaluator(subject.file, {} if session is None else _inputs(subject, probes))
    if subject.format in SUFFIXES.values() or subject.format == "openvino":
        yield Check("speed", None, "it is measured by `edgeforge bench`")
