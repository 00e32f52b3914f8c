"""What lies at a path that can be verified: files of a run, of a store, or alone, and what is recorded of each."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeforge import gguf_file, onnx_graph, openvino_graph
from edgeforge.core.artifact import MANIFEST
from edgeforge.core.errors import ConfigurationError
from edgeforge.runtimes.coreml import PACKAGE
from edgeforge.runtimes.coreml_reference import open_model
from edgeforge.verification._archive import unpack

REPORT = "report.json"
NAMES = {"onnx": onnx_graph.MODEL, "openvino": openvino_graph.MODEL, "coreml": PACKAGE, "gguf": gguf_file.MODEL}
"""What a runtime opens in an artifact's folder, by format."""

SUFFIXES = {".onnx": "onnx", ".mlpackage": "coreml", ".mlmodel": "coreml", ".mlmodelc": "coreml", ".gguf": "gguf"}

_QUANTIZED_OPERATORS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits"}
    | {"DynamicQuantizeMatMul", "GatherBlockQuantized"}
)
_FLOATS = frozenset({"F32", "F16", "BF16", "F64"})


@dataclass(frozen=True)
class Subject:
    """One file. `folder` holds it under the name that runtimes expect, and `recorded` the sha256 of what is in it.

    `recorded` is None where nothing is recorded; `quantized` where that is not known without opening it. `golden` is a
    file of recorded answers, with its sha256. `said` is why there is nothing to look at.
    """

    name: str
    format: str
    folder: Path
    shown: Path
    recorded: Mapping[str, str] | None = None
    quantized: bool | None = None
    golden: tuple[Path, str | None] | None = None
    tolerance: float | None = None
    said: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """What a runtime opens, under its own name where the user named it."""
        alone = self.shown.suffix in SUFFIXES
        return self.shown if alone else self.folder / NAMES.get(self.format, self.format)


def is_quantized(subject: Subject) -> bool:
    """Whether the file holds quantized numbers: as is recorded, or as it is found to."""
    if subject.quantized is not None:
        return subject.quantized
    if subject.format == "onnx":
        types = {node.op_type for node in onnx_graph.load(subject.folder).graph.node}
        return bool(types & _QUANTIZED_OPERATORS)
    if subject.format == "openvino":
        layers = openvino_graph.layers(openvino_graph.load(subject.folder))
        return any(openvino_graph.is_quantized(layer) for layer in layers.values())
    if subject.format == "gguf":
        found = gguf_file.read(subject.folder / gguf_file.MODEL)
        return any(tensor.type not in _FLOATS for tensor in found.tensors.values())
    return subject.format == "coreml" and open_model(subject.file).compressed


@contextlib.contextmanager
def subjects(path: Path) -> Iterator[list[Subject]]:
    """The files at a path. What is unpacked or given another name for it lies in a temporary folder meanwhile.

    Raises ConfigurationError where there is nothing to verify, and as `unpack`.
    """
    if not path.exists():
        raise ConfigurationError(
            "there is nothing there", where=str(path), remedy="name a run's folder or a model file"
        )
    with TemporaryDirectory(prefix="edgeforge-") as scratch:
        found = list(_found(path, Path(scratch)))
        if not found:
            raise ConfigurationError(
                "there is nothing to verify",
                where=str(path),
                remedy="name a run's folder, an artifact's, or an .onnx, .mlpackage, .mlmodel, .xml or .gguf file",
            )
        yield found


def _found(path: Path, scratch: Path) -> Iterator[Subject]:
    if path.suffix == ".zip":
        (scratch / "unpacked").mkdir()
        package = unpack(path, scratch / "unpacked")
        yield _alone(package, "coreml", scratch, shown=path)
    elif path.suffix in SUFFIXES:
        yield _alone(path, SUFFIXES[path.suffix], scratch, shown=path)
    elif path.is_dir() and (path / REPORT).is_file():
        yield from _of_run(path)
    elif path.is_dir() and (path / MANIFEST).is_file():
        yield _sealed(path)
    elif path.is_dir() and (path / "sealed").is_dir():
        yield from (_sealed(item) for item in sorted((path / "sealed").iterdir()) if (item / MANIFEST).is_file())
    elif path.is_dir() and (format := format_in(path)) is not None:
        run = path.parent.parent
        rows = _of_run(run) if path.parent.name in ("artifacts", "quarantine") and (run / REPORT).is_file() else ()
        mine = [row for row in rows if row.folder.resolve() == path.resolve()]
        yield mine[0] if mine else Subject(path.name, format, path, path)
    elif path.is_file() and path.suffix == ".xml":
        yield _alone(path, "openvino", scratch, shown=path)


def format_in(folder: Path) -> str | None:
    """The format of the file in an artifact's folder."""
    known = next((format for format, name in NAMES.items() if (folder / name).exists()), None)
    return known or ("gguf" if any(folder.glob("*.gguf")) else None)


def _of_run(run: Path) -> Iterator[Subject]:
    for row in _read(run / REPORT).get("artifacts", []):
        name, status = str(row.get("name")), row.get("status")
        folder = run / "artifacts" / name
        golden = row.get("golden")
        yield Subject(
            name,
            str(row.get("format")),
            folder,
            folder,
            recorded=row.get("files") or _only(row),
            quantized=bool(row.get("quantization")),
            golden=(run / golden["path"], golden["sha256"]) if golden else None,
            tolerance=(row.get("parity") or {}).get("tolerance"),
            said=None if status == "shipped" else f"it is {status}: {row.get('reason')}",
            facts=row,
        )


def _only(row: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Reports of earlier versions know the sha256 of a single file."""
    single = row.get("path") and str(row["path"]).endswith(f"/{onnx_graph.MODEL}")
    return {onnx_graph.MODEL: row["sha256"]} if single and row.get("sha256") else None


def _sealed(folder: Path) -> Subject:
    manifest = _read(folder / MANIFEST)
    facts = manifest.get("facts") or {}
    files = manifest.get("files") or {}
    return Subject(
        f"{manifest.get('kind')} {folder.name[:12]}",
        str(manifest.get("format")),
        folder,
        folder,
        recorded=files,
        quantized=bool(facts.get("quantization")),
        facts=facts,
    )


def _alone(path: Path, format: str, scratch: Path, *, shown: Path) -> Subject:
    """A folder in which the file has the name that runtimes expect, with what lies beside it."""
    folder = scratch / "alone"
    folder.mkdir()
    name = NAMES.get(format, path.name)
    _link(path, folder / name)
    beside = path.with_suffix(".bin") if format == "openvino" else None
    for other in [beside] if beside else []:
        if other.is_file():
            _link(other, folder / openvino_graph.WEIGHTS)
    for other in path.parent.glob("*.json") if shown == path else ():
        if other.name not in (REPORT, MANIFEST):
            _link(other, folder / other.name)
    return Subject(shown.name, format, folder, shown)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.absolute(), target_is_directory=source.is_dir())
    except OSError:  # Windows asks for a privilege
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise ConfigurationError("holds no record", where=str(path))
    return content
