"""How a Core ML package is written: the same program gives the same bytes."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

from edgeforge.core.artifact import digest_files, hash_folder
from edgeforge.runtimes import _coreml as runtime


def renumber(spec: Any) -> None:
    """Number ``transpose_0``, ``transpose_1``, ... and ``const_0``, ... in the order in which they stand.

    coremltools' passes number what they make in the order of a set, which is another at every run.
    """
    main = spec.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]
    numbered = re.compile(r"(transpose|const)_(\d+)(?!\d)")
    order: dict[str, dict[str, str]] = {}

    def renamed(name: str) -> str:
        found = numbered.match(name)
        if found is None:
            return name
        known = order.setdefault(found[1], {})
        return f"{found[1]}_{known.setdefault(found[2], str(len(known)))}{name[found.end() :]}"

    for operation in block.operations:
        for output in operation.outputs:
            output.name = renamed(output.name)
        if "name" in operation.attributes:
            texts = operation.attributes["name"].immediateValue.tensor.strings.values
            texts[:] = [renamed(text) for text in texts]
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.name:
                    binding.name = renamed(binding.name)
    block.outputs[:] = [renamed(name) for name in block.outputs]


def write_package(package: Path, spec: Any, weights: Path) -> None:
    """Write a package that is the same to the byte for the same program; coremltools' own holds random identifiers."""
    (package / runtime.WEIGHTS_FOLDER).mkdir(parents=True)
    (package / runtime.MODEL_FILE).write_bytes(spec.SerializeToString(deterministic=True))
    (package / runtime.WEIGHTS_FILE).write_bytes((weights / Path(runtime.WEIGHTS_FILE).name).read_bytes())
    content = digest_files(hash_folder(package))
    items = {
        "model.mlmodel": "CoreML Model Specification",
        "weights": "CoreML Model Weights",
    }
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_OID, f"{content}/{name}")) for name in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[name]: {
                "author": "com.apple.CoreML",
                "description": description,
                "name": name,
                "path": f"com.apple.CoreML/{name}",
            }
            for name, description in items.items()
        },
        "rootModelIdentifier": identifiers["model.mlmodel"],
    }
    # coremltools writes this file anew whenever it opens a package; in its own layout it stays the same.
    (package / runtime.MANIFEST).write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")
