"""Finds and checks the files of a Core ML package, or of a single .mlmodel; nothing in them is trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgeforge.core.errors import ModelError

MANIFEST = "Manifest.json"
DATA = "Data"
LARGEST_MANIFEST = 1 << 20
LARGEST_SPECIFICATION = (1 << 31) - 1
"""Protobuf's own limit, in bytes; weights lie in a file beside it and may be larger."""

MODEL_PATH = "@model_path/"
_REMEDY = "export it again, or copy it again from where it came"

Spec = Any  # coremltools has no types: this is its protobuf message Model


@dataclass(frozen=True)
class Package:
    """`folder` holds the specification; files of weights are named from there."""

    path: Path
    folder: Path
    spec: Spec

    def file(self, name: str) -> Path:
        """Where a file lies that the program names ``@model_path/...``. Raises ModelError outside the package."""
        if self.path.is_file():
            reason = f"it keeps weights in '{name}', beside which it does not lie"
            raise ModelError(reason, where=str(self.path), remedy="give the .mlpackage it was taken from")
        if not name.startswith(MODEL_PATH):
            raise ModelError(f"'{name}' is not a file of the package", where=str(self.path), remedy=_REMEDY)
        return _inside(self.folder, name[len(MODEL_PATH) :], self.path)


def open_package(path: Path) -> Package:
    """Read a package's manifest and specification, changing nothing.

    Raises ModelError for what is no Core ML package, is compiled, encrypted, damaged or no ML Program, and for a
    manifest that leads out of the package.
    """
    if not path.exists():
        raise ModelError("it does not exist", where=str(path))
    if path.suffix == ".mlmodelc":
        raise ModelError("it is compiled for a device", where=str(path), remedy="give the .mlpackage it was made of")
    model = _model_file(path) if path.is_dir() else path
    if path.is_dir() and any(path.rglob("encryptionInfo")):
        raise ModelError("it is encrypted", where=str(path), remedy="give the package it was encrypted from")
    spec = _specification(model, path)
    if spec.WhichOneof("Type") != "mlProgram":
        raise ModelError(_not_a_program(spec), where=str(path), remedy="convert it to an ML Program (iOS 15 or later)")
    return Package(path, model.parent, spec)


def _model_file(path: Path) -> Path:
    """The specification's file, which the manifest names; every item's path must stay inside the package."""
    manifest = path / MANIFEST
    try:
        if manifest.stat().st_size > LARGEST_MANIFEST:
            raise ModelError(f"{MANIFEST} is too large to be one", where=str(path), remedy=_REMEDY)
        content = json.loads(manifest.read_text(encoding="utf-8"))
        items = content["itemInfoEntries"]
        paths = {key: _inside(path / DATA, str(item["path"]), path) for key, item in items.items()}
        return paths[content["rootModelIdentifier"]]
    except FileNotFoundError as error:
        raise ModelError(f"it is no Core ML package: it has no {MANIFEST}", where=str(path)) from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"{MANIFEST} cannot be read: {type(error).__name__}: {error}"
        raise ModelError(reason, where=str(path), remedy=_REMEDY) from error


def _inside(folder: Path, name: str, package: Path) -> Path:
    """`folder`/`name`. Raises ModelError where that, links resolved, is not inside the package or does not exist."""
    parts = PurePosixPath(name)
    found = folder / parts
    outside = parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name or "\0" in name
    if outside or not found.resolve().is_relative_to(package.resolve()):
        raise ModelError(
            f"it names the path {name!r}, which leaves the package",
            where=str(package),
            remedy="do not use this package: no program writes such a path by mistake",
        )
    if not found.exists():
        raise ModelError(f"it names {name}, which is missing", where=str(package), remedy=_REMEDY)
    return found


def _specification(model: Path, package: Path) -> Spec:
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    size = model.stat().st_size
    if size > LARGEST_SPECIFICATION:
        raise ModelError(f"{model.name} has {size} bytes, more than the format allows", where=str(package))
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(model.read_bytes())
    except (DecodeError, OSError, RuntimeError) as error:
        reason = f"{model.name} is truncated, damaged or encrypted: {error}"
        raise ModelError(reason, where=str(package), remedy=_REMEDY) from error
    if spec.WhichOneof("Type") is None:
        raise ModelError(f"{model.name} is truncated: it holds no model", where=str(package), remedy=_REMEDY)
    return spec


def _not_a_program(spec: Spec) -> str:
    kind = str(spec.WhichOneof("Type"))
    if kind.startswith("neuralNetwork"):
        return f"it is a model of the old kind ({kind}), and only ML Programs can be evaluated here"
    return f"it is a model of the kind {kind}, and only ML Programs can be evaluated here"
