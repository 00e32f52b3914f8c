"""A Gradle module for Android: classifiers on ONNX Runtime; of language models the GGUF file, for llama.cpp."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

from edgeforge import onnx_graph
from edgeforge.bundles import Bundle
from edgeforge.bundles._contract import (
    NAME,
    Contract,
    ImageInput,
    Licence,
    ModelFile,
    TextInput,
    read_contract,
)
from edgeforge.bundles._golden import FILE, write_golden
from edgeforge.bundles._interface import of_onnx
from edgeforge.bundles._language_model import FORMAT, language_model, templates
from edgeforge.bundles._source import Source
from edgeforge.bundles._tokenizer import write_vocabulary
from edgeforge.bundles._writing import render, with_history
from edgeforge.core.artifact import hash_file
from edgeforge.core.errors import ModelError
from edgeforge.core.extras import require
from edgeforge.models import tokenizer

ORT_FILE = "model.ort"
OPERATORS = "required_operators_and_types.config"
RUNTIME = "com.microsoft.onnxruntime:onnxruntime-android"
RUNTIME_VERSION = "1.27.0"
"""The newest on Maven Central when this was written. It opens .ort files that the converter of 1.31 wrote."""

CONVERTED_BY = "converted_by"
CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"


class Android(Bundle):
    """A library module: assets, Kotlin sources, build.gradle; beside it what a smaller build of ONNX Runtime needs.

    The app carries ``model.ort``, already optimised for ONNX Runtime's CPU kernels; ``model/model.onnx`` is the same
    for accelerators (NNAPI, QNN), which take over graphs that are not optimised yet.
    """

    kind: Literal["android"] = "android"

    formats: ClassVar[tuple[str, ...]] = ("onnx", FORMAT)

    def write(self, source: Source, folder: Path, *, earlier: Path | None = None) -> Contract:
        """See Bundle. Raises ModelError where ONNX Runtime cannot convert the file."""
        if source.row.format == FORMAT:
            return _prompts(source, folder)
        return _classifier(source, folder, earlier)


def _classifier(source: Source, folder: Path, earlier: Path | None) -> Contract:
    taken, given = of_onnx(source.folder)
    assets = folder / "src" / "main" / "assets" / source.identifier
    assets.mkdir(parents=True)
    (folder / "model").mkdir()
    shutil.copyfile(source.folder / onnx_graph.MODEL, folder / "model" / onnx_graph.MODEL)
    if not _taken_over(folder, earlier, source):
        convert(source.folder / onnx_graph.MODEL, assets / ORT_FILE, folder / "model" / OPERATORS)
    contract = source.contract(
        "android",
        models=(
            _file(assets / ORT_FILE, folder, "ort"),
            _file(folder / "model" / onnx_graph.MODEL, folder, "onnx"),
        ),
        input=taken,
        output=given,
        golden=write_golden(source, taken, given, assets / FILE),
        deployment={CONVERTED_BY: _converter()},
    )
    _write_tokenizer(source, taken, folder, assets)
    runtime = Licence(what="ONNX Runtime", licence="MIT", source=f"{RUNTIME}:{RUNTIME_VERSION}")
    contract = with_history(contract.model_copy(update={"licences": (runtime,)}), source, folder)
    (assets / NAME).write_text(contract.to_json(), encoding="utf-8", newline="\n")
    kind = "image" if isinstance(taken, ImageInput) else "text"
    for template in ("android/module", "android/classifier", f"android/{kind}"):
        _render(template, folder, contract)
    return contract


def _prompts(source: Source, folder: Path) -> Contract:
    contract = language_model(source, "android", folder)
    assets = folder / "src" / "main" / "assets" / source.identifier
    assets.mkdir(parents=True)
    (assets / NAME).write_text(contract.to_json(), encoding="utf-8", newline="\n")
    for template in ("android/module", *templates("android", contract)):
        _render(template, folder, contract)
    return contract


def _render(template: str, folder: Path, contract: Contract) -> None:
    dependency = f"{RUNTIME}:{RUNTIME_VERSION}" if contract.output is not None else ""
    package = f"edgeforge.{contract.identifier}"
    names = {"package": package, "place": package.replace(".", "/"), "dependency": dependency}
    render(template, folder, contract, names)


def _file(path: Path, folder: Path, format: Literal["onnx", "ort"]) -> ModelFile:
    name = path.relative_to(folder).as_posix()
    return ModelFile(file=name, format=format, sha256=hash_file(path), bytes=path.stat().st_size)


def _write_tokenizer(source: Source, taken: ImageInput | TextInput, folder: Path, assets: Path) -> None:
    """The vocabulary for the wrapper's own tokenizer; for another one the file that its library reads."""
    if not isinstance(taken, TextInput):
        return
    others = folder / "tokenizer" if taken.tokenizer else assets
    others.mkdir(exist_ok=True)
    for name in (tokenizer.MAIN, tokenizer.SETTINGS):
        shutil.copyfile(source.folder / name, others / name)
    if taken.tokenizer:
        write_vocabulary(source.folder, assets / taken.tokenizer.vocabulary)


def _taken_over(folder: Path, earlier: Path | None, source: Source) -> bool:
    """Keep the .ort file of an earlier bundle of the same model, by the same version of the converter.

    The converter writes one table in the order of a hash map, another at every run: the same model, other bytes.
    """
    name = Path("src") / "main" / "assets" / source.identifier
    contract = read_contract(earlier / name / NAME) if earlier is not None else None
    if earlier is None or contract is None or contract.deployment.get(CONVERTED_BY) != _converter():
        return False
    kept = {name / ORT_FILE: contract.models[0].sha256, Path("model", onnx_graph.MODEL): contract.models[-1].sha256}
    same = hash_file(folder / "model" / onnx_graph.MODEL) == contract.models[-1].sha256
    wanted = [*kept, Path("model", OPERATORS)]
    if not same or not all((earlier / path).is_file() for path in wanted):
        return False
    if any(hash_file(earlier / path) != digest for path, digest in kept.items()):
        return False
    for path in (name / ORT_FILE, Path("model", OPERATORS)):
        shutil.copyfile(earlier / path, folder / path)
    return True


def _converter() -> str:
    return f"onnxruntime {require('onnxruntime', 'onnx').__version__}"


def convert(model: Path, target: Path, operators: Path) -> None:
    """Write an ONNX file as .ort, optimised as far as holds on every CPU, and the operators and types it needs.

    Raises ModelError where ONNX Runtime's own tool refuses, MissingExtraError without it.
    """
    require("onnxruntime", "onnx")
    require("onnx", "onnx")
    with TemporaryDirectory(prefix="edgeforge-") as scratch:
        shutil.copyfile(model, Path(scratch) / onnx_graph.MODEL)
        command = [sys.executable, "-m", CONVERTER, scratch, "--optimization_style", "Fixed"]
        command += ["--target_platform", "arm", "--enable_type_reduction"]
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", env={**os.environ}, check=False
        )
        made = Path(scratch) / ORT_FILE
        if done.returncode or not made.is_file():
            said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise ModelError(f"ONNX Runtime cannot convert it to .ort: {said}", where=str(model))
        shutil.copyfile(made, target)
        (found,) = Path(scratch).glob("*required_operators_and_types.config")
        operators.write_text(_without_paths(found.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


def _without_paths(config: str) -> str:
    """The tool's first lines name the folder it worked in."""
    lines = [line for line in config.splitlines() if not line.startswith("#")]
    return "# Written by onnxruntime.tools.convert_onnx_models_to_ort\n" + "\n".join(lines) + "\n"
