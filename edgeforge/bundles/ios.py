"""A Swift package for iPhone, iPad and Mac: the Core ML package, a typed wrapper, a self-test and a benchmark.

Of language models the GGUF file, for llama.cpp.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar, Literal

from edgeforge.bundles import Bundle
from edgeforge.bundles._contract import NAME, Contract, ImageInput, ModelFile, TextInput
from edgeforge.bundles._golden import FILE, write_golden
from edgeforge.bundles._interface import of_coreml
from edgeforge.bundles._language_model import FORMAT, language_model, templates
from edgeforge.bundles._source import Source
from edgeforge.bundles._tokenizer import write_vocabulary
from edgeforge.bundles._writing import render, with_history
from edgeforge.core.artifact import digest_files, hash_folder
from edgeforge.core.errors import ModelError
from edgeforge.core.kinds import camel_case
from edgeforge.models import tokenizer
from edgeforge.runtimes._coreml import PACKAGE
from edgeforge.runtimes.coreml_reference import open_model

SYSTEMS = {8: ("17.0", "14.0"), 9: ("18.0", "15.0")}
"""By version of the package's specification: the first iOS and macOS that open it."""

LLAMA_CPP_SYSTEMS = {"ios": "16.4", "macos": "13.3"}
"""The first that llama.cpp's own package for Apple's systems is built for."""


class Ios(Bundle):
    """Add the folder to an Xcode project as a local package. On a Mac, ``swift run edgeforge-benchmark`` measures it,
    and ``edgeforge report RUN --merge`` takes the result into the run's report.

    Of a language model it holds the GGUF file, and what checks it before a binding of llama.cpp opens it.
    """

    kind: Literal["ios"] = "ios"

    formats: ClassVar[tuple[str, ...]] = ("coreml", FORMAT)

    def write(self, source: Source, folder: Path, *, earlier: Path | None = None) -> Contract:
        """See Bundle. Raises ModelError for a Core ML package that is no classifier."""
        if source.row.format == FORMAT:
            return _prompts(source, folder)
        package = source.folder / PACKAGE
        model = open_model(package)
        taken, given = of_coreml(source.folder, model.features, model.metadata)
        module = camel_case(source.identifier)
        resources = folder / "Sources" / module / "Resources"
        resources.mkdir(parents=True)
        shutil.copytree(package, resources / PACKAGE)
        contract = source.contract(
            "ios",
            models=(_package(resources / PACKAGE, folder),),
            input=taken,
            output=given,
            golden=write_golden(source, taken, given, resources / FILE),
            deployment=_systems(package),
        )
        _write_tokenizer(source, taken, folder, resources)
        contract = with_history(contract, source, folder)
        (resources / NAME).write_text(contract.to_json(), encoding="utf-8", newline="\n")
        kind = "image" if isinstance(taken, ImageInput) else "text"
        for template in ("ios/package", f"ios/{kind}"):
            render(template, folder, contract, {"module": module})
        return contract


def _prompts(source: Source, folder: Path) -> Contract:
    contract = language_model(source, "ios", folder, deployment=LLAMA_CPP_SYSTEMS)
    module = camel_case(source.identifier)
    resources = folder / "Sources" / module / "Resources"
    resources.mkdir(parents=True)
    (resources / NAME).write_text(contract.to_json(), encoding="utf-8", newline="\n")
    for template in templates("ios", contract):
        render(template, folder, contract, {"module": module})
    return contract


def _package(path: Path, folder: Path) -> ModelFile:
    """The digest is the one in the run's report, which the benchmark computes again."""
    size = sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    name = path.relative_to(folder).as_posix()
    return ModelFile(file=name, format="coreml", sha256=digest_files(hash_folder(path)), bytes=size)


def _systems(package: Path) -> dict[str, str]:
    """The first systems that open the package. Raises ModelError for a newer specification than is known here."""
    from edgeforge.runtimes._mil.package import open_package

    version = int(open_package(package).spec.specificationVersion)
    if version not in SYSTEMS:
        raise ModelError(f"its specification has version {version}, which is not known here", where=str(package))
    ios, macos = SYSTEMS[version]
    return {"ios": ios, "macos": macos}


def _write_tokenizer(source: Source, taken: ImageInput | TextInput, folder: Path, resources: Path) -> None:
    """The vocabulary for the wrapper's own tokenizer; for another one the files that its library reads."""
    if not isinstance(taken, TextInput):
        return
    others = folder / "tokenizer" if taken.tokenizer else resources
    others.mkdir(exist_ok=True)
    for name in (tokenizer.MAIN, tokenizer.SETTINGS):
        shutil.copyfile(source.folder / name, others / name)
    if taken.tokenizer:
        write_vocabulary(source.folder, resources / taken.tokenizer.vocabulary)
