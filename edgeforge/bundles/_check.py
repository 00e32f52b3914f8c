"""A bundle checked again, anywhere: that it is whole, says what its model is, and that the model still answers."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np

from edgeforge import gguf_file
from edgeforge.bundles._contract import (
    NAME,
    Contract,
    Golden,
    GoldenPrompts,
    ImageInput,
    ModelFile,
    TextInput,
    read_contract,
)
from edgeforge.bundles._golden import PIXELS, normalised, read_array
from edgeforge.bundles._golden_prompts import share_repeated
from edgeforge.bundles._writing import SUMS
from edgeforge.core.artifact import digest_files, hash_file, hash_folder
from edgeforge.core.errors import ModelError
from edgeforge.models import tokenizer
from edgeforge.runtimes import Session
from edgeforge.runtimes.coreml_reference import CoremlReference
from edgeforge.runtimes.llama_cpp import LlamaCpp
from edgeforge.runtimes.onnxruntime import OnnxSession
from edgeforge.verification import Check, differences
from edgeforge.verification._archive import extract

BUILT = frozenset({"node_modules", "package-lock.json", ".build", ".swiftpm", "build"})
"""What npm, Swift and Gradle put beside a bundle's own files."""


def is_bundle(path: Path) -> bool:
    """Whether `verify_bundle` is for this folder or zip."""
    if path.is_dir():
        return (path / SUMS).is_file()
    if path.suffix != ".zip" or not zipfile.is_zipfile(path):
        return False
    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).name == SUMS for name in archive.namelist())
    return False


def verify_bundle(path: Path) -> list[Check]:
    """Everything that can be looked at without the run. A zip is unpacked into a temporary folder first.

    Raises ModelError for a zip that is damaged or has a member that leads out of its folder.
    """
    with _opened(path) as folder:
        checks = [_whole(folder)]
        contract, place = _contract(folder)
        if contract is None or place is None:
            return [*checks, Check(NAME, False, "there is none that this version reads")]
        checks.append(Check(NAME, True, f"'{contract.artifact}' of '{contract.pipeline}', for {contract.target}"))
        for model in contract.models:
            checks += _model(model, contract, folder, place)
        return [*checks, *_tokenizer(contract, folder, place)]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield path
        return
    with TemporaryDirectory(prefix="edgeforge-") as scratch:
        extract(path, Path(scratch))
        yield next((found.parent for found in Path(scratch).rglob(SUMS)), Path(scratch))


def _whole(folder: Path) -> Check:
    name = "sha256"
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        wanted = {file: digest for digest, _, file in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        return Check(name, False, f"{SUMS} cannot be read: {error}")
    found = {file: digest for file, digest in hash_folder(folder).items() if not BUILT & set(PurePosixPath(file).parts)}
    found.pop(SUMS, None)
    for file in sorted(wanted.keys() | found.keys()):
        if found.get(file) != wanted.get(file):
            state = "gone" if file not in found else "not listed" if file not in wanted else "not what was listed"
            return Check(name, False, f"{file} is {state}")
    return Check(name, True, f"{len(wanted)} files are those listed in {SUMS}")


def _contract(folder: Path) -> tuple[Contract | None, Path | None]:
    """The contract and the folder it lies in."""
    found = [path for path in sorted(folder.rglob(NAME)) if not BUILT & set(path.relative_to(folder).parts)]
    return (read_contract(found[0]), found[0].parent) if len(found) == 1 else (None, None)


def _model(model: ModelFile, contract: Contract, folder: Path, place: Path) -> Iterator[Check]:
    """That the model is the one of the contract, and answers as recorded."""
    path = folder / model.file
    if ".." in PurePosixPath(model.file).parts or not path.resolve().is_relative_to(folder.resolve()):
        yield Check(f"{model.format}: sha256", False, f"{model.file} is outside of the bundle")
        return
    if not path.exists():
        yield Check(f"{model.format}: sha256", False, f"{model.file} is gone")
        return
    digest = digest_files(hash_folder(path)) if path.is_dir() else hash_file(path)
    whole = digest == model.sha256
    yield Check(f"{model.format}: sha256", whole, model.file)
    if model.format == "gguf":
        yield _opens_gguf(path)
    if isinstance(contract.golden, Golden):
        yield _answers(model, contract, contract.golden, path, place)
    elif contract.golden is not None and whole:  # llama.cpp ends the process where a file is not what it expects
        yield _continuations(contract.golden, path)


def _opens_gguf(path: Path) -> Check:
    try:
        return Check("gguf: opens", True, f"{len(gguf_file.read(path).tensors)} tensors")
    except ModelError as error:
        return Check("gguf: opens", False, error.what)


def _continuations(golden: GoldenPrompts, path: Path) -> Check:
    name = "gguf: recorded answers"
    if (reason := LlamaCpp().available()) is not None:
        return Check(name, None, reason)
    try:
        share = share_repeated(path, golden)
    except ModelError as error:
        return Check(name, False, error.what)
    return Check(name, share >= golden.agreement, f"{share:.0%} of {len(golden.prompts)} prompts go on as recorded")


def _answers(model: ModelFile, contract: Contract, golden: Golden, path: Path, place: Path) -> Check:
    name = f"{model.format}: recorded answers"
    try:
        content = (place / PurePosixPath(golden.file).name).read_bytes()
        wanted = read_array(content, golden.outputs)
        found = _session(model, path).run(_inputs(contract, golden, content))
    except (OSError, ValueError, KeyError) as error:
        return Check(name, False, f"{golden.file} cannot be read: {error}")
    except ModelError as error:
        return Check(name, False, error.what)
    if contract.output is not None and contract.output.meaning == "probabilities":
        found = np.exp(found)
    if found.shape != wanted.shape or contract.output is None or found.shape[1] != len(contract.output.labels):
        return Check(name, False, f"answers of shape {found.shape}, and {wanted.shape} are recorded")
    apart = differences(found, wanted)
    error_, agreement = apart["max_abs_error"], float(apart["agreement"] or 0)
    close = error_ is not None and error_ <= golden.max_abs_error and agreement >= golden.agreement
    said = "are not finite" if error_ is None else f"move by {error_:.3g}, at most {golden.max_abs_error:.3g}"
    return Check(name, close, f"answers {said}; {agreement:.0%} say the same")


def _session(model: ModelFile, path: Path) -> Session:
    return CoremlReference().open(path.parent) if model.format == "coreml" else OnnxSession(path.read_bytes())


def _inputs(contract: Contract, golden: Golden, content: bytes) -> dict[str, np.ndarray]:
    """As the file's runtime takes them. Raises KeyError, ValueError where the contract or the arrays are damaged."""
    taken = contract.input
    if isinstance(taken, ImageInput):
        return {taken.name: normalised(read_array(content, golden.inputs[PIXELS]), taken)}
    return {name: read_array(content, array).astype(np.int64) for name, array in golden.inputs.items()}


def _tokenizer(contract: Contract, folder: Path, place: Path) -> Iterator[Check]:
    """That the tokenizer's file still makes the ids that the wrappers must make."""
    golden = contract.golden
    if not isinstance(contract.input, TextInput) or not isinstance(golden, Golden) or not golden.texts:
        return
    home = next((one for one in (place, folder / "tokenizer") if tokenizer.present(one)), None)
    if home is None:
        yield Check("tokenizer", False, f"{tokenizer.MAIN} is gone")
        return
    texts = [one.text for one in golden.texts]
    try:
        reader = tokenizer.read(home)
    except ModelError as error:
        yield Check("tokenizer", False, error.what)
        return
    length, side = contract.input.max_length, contract.input.truncate
    reader.truncation_side = side
    found = reader(texts, truncation=True, max_length=length, padding=False)["input_ids"]
    wrong = [one.text for one, ids in zip(golden.texts, found, strict=True) if list(one.ids) != list(ids)]
    yield Check("tokenizer", not wrong, f"reads {wrong[0][:40]!r} differently" if wrong else f"{len(texts)} texts")
