"""A web page and TypeScript modules: the ONNX file on onnxruntime-web's WebAssembly, a self-test and a demo."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar, Literal

from edgeforge import onnx_graph
from edgeforge.bundles import Bundle
from edgeforge.bundles._contract import NAME, Contract, Licence, ModelFile, TextInput
from edgeforge.bundles._golden import FILE, write_golden
from edgeforge.bundles._interface import of_onnx
from edgeforge.bundles._source import Source
from edgeforge.bundles._tokenizer import write_vocabulary
from edgeforge.bundles._writing import render, with_history
from edgeforge.core.artifact import hash_file
from edgeforge.models import tokenizer

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
MODEL_FOLDER = "model"


class Web(Bundle):
    """``npm install && npm start`` shows the page. The JavaScript beside the TypeScript is what its compiler makes of
    it, so that no build step is needed.
    """

    kind: Literal["web"] = "web"

    formats: ClassVar[tuple[str, ...]] = ("onnx",)

    def write(self, source: Source, folder: Path, *, earlier: Path | None = None) -> Contract:
        """See Bundle. Raises ModelError for what is no classifier."""
        taken, given = of_onnx(source.folder)
        place = folder / MODEL_FOLDER
        place.mkdir()
        model = place / onnx_graph.MODEL
        shutil.copyfile(source.folder / onnx_graph.MODEL, model)
        name = model.relative_to(folder).as_posix()
        runtime = Licence(what="ONNX Runtime Web", licence="MIT", source=f"npm:{RUNTIME}@{RUNTIME_VERSION}")
        contract = source.contract(
            "web",
            models=(ModelFile(file=name, format="onnx", sha256=hash_file(model), bytes=model.stat().st_size),),
            input=taken,
            output=given,
            golden=write_golden(source, taken, given, place / FILE),
            licences=(runtime,),
        )
        if isinstance(taken, TextInput):
            for file in (tokenizer.MAIN, tokenizer.SETTINGS):
                shutil.copyfile(source.folder / file, place / file)
            if taken.tokenizer:
                write_vocabulary(source.folder, place / taken.tokenizer.vocabulary)
        contract = with_history(contract, source, folder)
        (place / NAME).write_text(contract.to_json(), encoding="utf-8", newline="\n")
        render("web", folder, contract, {"runtime": RUNTIME, "version": RUNTIME_VERSION})
        return contract
