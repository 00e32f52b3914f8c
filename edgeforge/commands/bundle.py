"""`edgeforge bundle`: what an app's developer is handed."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from edgeforge.bundles import bundle_for
from edgeforge.bundles._check import verify_bundle
from edgeforge.bundles._source import Source, open_source
from edgeforge.bundles._writing import write_bundle
from edgeforge.core.errors import VerificationError


def make(run: Path, *, target: str, artifact: str | None, out: Path, console: Console) -> None:
    """Write the bundle, check it as its user will, and say where it is.

    Raises as `open_source` and `write_bundle`, and VerificationError where the bundle does not answer as the file did.
    """
    kind = bundle_for(target)
    source = open_source(run, artifact, kind)
    with console.status(f"bundling {source.row.name} for {target}"):
        folder, archive = write_bundle(source, kind, out)
        failed = [check for check in verify_bundle(folder) if check.passed is False]
    if failed:
        shutil.rmtree(folder)
        archive.unlink()
        raise VerificationError(
            f"{failed[0].name}: {failed[0].detail}", where=str(folder), remedy="do not ship it; run the pipeline again"
        )
    for said in _warnings(source, target):
        console.print(f"[yellow]warning[/yellow] {escape(said)}", highlight=False)
    size = archive.stat().st_size / 1e6
    console.print(f"wrote {folder} and {archive.name} ({size:.2f} MB)", markup=False, highlight=False, soft_wrap=True)
    console.print(f"next: {folder / 'README.md'}", markup=False, highlight=False, soft_wrap=True)


def _warnings(source: Source, target: str) -> list[str]:
    said = []
    if target == "android" and source.row.quantization.get("layout") == "x86":
        said.append(
            f"'{source.row.name}' has the integer layout of x86; phones are faster with Arm's: give the target a phone "
            "as device, such as pixel_8"
        )
    return said
