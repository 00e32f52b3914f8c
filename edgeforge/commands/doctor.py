"""`edgeforge doctor`: what is installed, what this processor can do, whether the store can be used."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeforge import __version__, environment
from edgeforge.store import Store

_SPEED = {
    "int8 dot products": {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"},
    "bfloat16 arithmetic": {"avx512_bf16", "amx_bf16", "bf16"},
}


def show(store: Path, console: Console) -> None:
    """Print all three. Raises EnvironmentProblem where the store cannot be written."""
    console.print(f"[bold]EdgeForge[/bold] {__version__}", highlight=False)
    _machine(console)
    console.print(_libraries())
    Store(store)  # says what is wrong where it cannot be written
    sealed = store / "sealed"
    size = sum(item.stat().st_size for item in sealed.rglob("*") if item.is_file())
    console.print(
        f"\n[bold]store[/bold] {escape(str(store))}: {len(list(sealed.iterdir()))} artifacts, {size / 1e6:,.1f} MB, "
        f"writable, {shutil.disk_usage(store).free / 1e9:,.1f} GB free",
        highlight=False,
    )


def _machine(console: Console) -> None:
    facts: dict[str, Any] = environment.describe()
    memory = f"{facts['cores']} cores, {facts['ram_gb']} GB"
    console.print(f"{escape(facts['cpu'])}, {memory}, {facts['os']}, Python {facts['python']}", highlight=False)
    features = environment.cpu_features()
    for what, names in _SPEED.items():
        found = ", ".join(sorted(names & features))
        console.print(f"  {what}: {found or '[yellow]none known[/yellow]'}", highlight=False)
    console.print()


def _libraries() -> Table:
    table = Table("extra", "", "libraries", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for extra in ["", *sorted(_extras())]:
        parts = [(item, _installed(item.name)) for item in _requirements(extra)]
        bad = [item for item, found in parts if found is None or not item.specifier.contains(found, prereleases=True)]
        said = ", ".join(f"{item.name} {found or 'absent'}" for item, found in parts)
        wanted = f"edgeforge[{extra}]" if extra else "edgeforge"
        verdict = f"[yellow]pip install '{escape(wanted)}'[/yellow]" if bad else "[green]ok[/green]"
        table.add_row(extra or "(base)", verdict, escape(said))
    return table


def _extras() -> list[str]:
    return [extra for extra in metadata("edgeforge").get_all("Provides-Extra") or [] if extra not in ("all", "test")]


def _requirements(extra: str) -> Iterator[Requirement]:
    """What one extra asks for on this system; '' is what every installation has."""
    for line in requires("edgeforge") or ():
        item = Requirement(line)
        base = item.marker is None or item.marker.evaluate({"extra": ""})
        if base if not extra else not base and item.marker is not None and item.marker.evaluate({"extra": extra}):
            yield item


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
