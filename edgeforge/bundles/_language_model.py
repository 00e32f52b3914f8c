"""A language model as a GGUF file: what the bundles of phones have in common."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from edgeforge import gguf_file
from edgeforge.bundles._contract import Contract, Licence, ModelFile, PromptInput
from edgeforge.bundles._golden_prompts import record_prompts
from edgeforge.bundles._source import Source
from edgeforge.bundles._writing import with_history
from edgeforge.core.artifact import hash_file

FORMAT = "gguf"
LLAMA_CPP = Licence(what="llama.cpp", licence="MIT", source="https://github.com/ggml-org/llama.cpp")


def language_model(source: Source, target: str, folder: Path, **fields: Any) -> Contract:
    """Copy the file into ``model/`` of the empty bundle and describe it; `fields` are the contract's own.

    It is no part of what is built into an app: it is too large for most stores' limits, so the app fetches or packs it
    as it likes, and runs it by a binding of llama.cpp. Raises MissingExtraError without llama-cpp-python, which is
    asked what the app is to hear.
    """
    model = folder / "model" / gguf_file.MODEL
    model.parent.mkdir()
    shutil.copyfile(source.folder / gguf_file.MODEL, model)
    metadata = gguf_file.read(model).metadata
    architecture = metadata.get("general.architecture")
    file = ModelFile(
        file=model.relative_to(folder).as_posix(), format="gguf", sha256=hash_file(model), bytes=model.stat().st_size
    )
    contract = source.contract(
        target,
        models=(file,),
        input=PromptInput(
            context=metadata.get(f"{architecture}.context_length"),
            chat_template="tokenizer.chat_template" in metadata,
        ),
        output=None,
        golden=record_prompts(model),
        licences=(LLAMA_CPP,),
        **fields,
    )
    return with_history(contract, source, folder)


def templates(target: str, contract: Contract) -> tuple[str, ...]:
    """Those of the sources that check the file, and of the self-test where answers are recorded."""
    return (f"{target}/prompt", *((f"{target}/prompt_test",) if contract.golden is not None else ()))
