"""Writes a bundle's folder and its zip, the same bytes for the same run: templates, sizes, checksums."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeforge.bundles import Bundle
from edgeforge.bundles._contract import Contract
from edgeforge.bundles._lineage import licences, lineage
from edgeforge.bundles._source import Source
from edgeforge.core.artifact import hash_folder
from edgeforge.core.errors import EnvironmentProblem

TEMPLATES = Path(__file__).parent / "templates"
SUMS = "SHA256SUMS"
LICENCES = "licences"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip can say; the true one would make every bundle another file."""


def write_bundle(source: Source, bundle: Bundle, out: Path) -> tuple[Path, Path]:
    """Make the bundle below `out`; returns its folder and its zip, each there whole or not at all.

    Raises EnvironmentProblem where the disk refuses, and as `Bundle.write`.
    """
    name = f"{source.identifier}-{bundle.kind}"
    folder, archive = out / name, out / f"{name}.zip"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{name}.", dir=out) as scratch:
            draft, partial = Path(scratch) / name, Path(scratch) / archive.name
            draft.mkdir()
            contract = bundle.write(source, draft, earlier=folder if folder.is_dir() else None)
            _finish(contract, draft)
            _zip(draft, partial)
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
            partial.replace(archive)
    except OSError as error:
        if error.errno is None:
            raise  # a template that is not there is one too
        raise EnvironmentProblem(
            f"the bundle cannot be written: {error.strerror}", where=str(out), remedy="make room, or name another --out"
        ) from error
    return folder, archive


def with_history(contract: Contract, source: Source, folder: Path) -> Contract:
    """The same with licences, whose texts are copied into `folder`, and lineage."""
    known = [*licences(source, folder / LICENCES), *contract.licences]
    return contract.model_copy(update={"licences": tuple(known), "lineage": lineage(source)})


def render(template: str, folder: Path, contract: Contract, names: Mapping[str, str]) -> None:
    """Copy a tree of templates into `folder`: ``*.j2`` rendered, others as they are.

    `names` are what templates may use beside `contract`; in paths they stand as ``__name__``.
    """
    root = TEMPLATES / template
    for path in sorted(root.rglob("*")):
        if not path.is_file():
            continue
        relative = path.relative_to(root).as_posix().removesuffix(".j2")
        for name, value in names.items():
            relative = relative.replace(f"__{name}__", value)
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".j2":
            text = _rendered(path.relative_to(TEMPLATES).as_posix(), {"contract": contract, **names})
            target.write_text(text, encoding="utf-8", newline="\n")
        else:
            shutil.copyfile(path, target)


def _rendered(template: str, values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("edgeforge.bundles", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown and source code; nothing here is HTML
    )
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:,.2f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    return environment.get_template(template).render(values)


def _finish(contract: Contract, folder: Path) -> None:
    """README, licences and checksums, once all else is there."""
    sizes = {path.relative_to(folder).as_posix(): _size(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    for name, template in (("README.md", f"readme/{contract.target}.md.j2"), ("LICENCES.md", "readme/licences.md.j2")):
        text = _rendered(template, {"contract": contract, "sizes": sizes})
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    lines = [f"{digest}  {name}\n" for name, digest in sorted(hash_folder(folder).items())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def _size(path: Path) -> tuple[int, int]:
    """Bytes as they are, and as stores and servers send them (deflate)."""
    whole = deflated = 0
    packer = zlib.compressobj(6)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            whole += len(block)
            deflated += len(packer.compress(block))
    return whole, deflated + len(packer.flush())


def _zip(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as opened:
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
            if path.is_file():
                name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                entry.file_size = path.stat().st_size
                with path.open("rb") as stream, opened.open(entry, "w") as sink:
                    shutil.copyfileobj(stream, sink)
