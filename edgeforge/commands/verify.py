"""`edgeforge verify`: files checked again, later and elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgeforge.bundles._check import is_bundle, verify_bundle
from edgeforge.core.errors import ConfigurationError, VerificationError
from edgeforge.verification import Check
from edgeforge.verification._recheck import checks_of
from edgeforge.verification._subjects import subjects

_MARKS = {True: "[green]✓[/green]", False: "[red]✗[/red]", None: "[yellow]-[/yellow]"}


@dataclass(frozen=True)
class Verified:
    """One file and what was looked at. `passed` is None where nothing could be."""

    name: str
    path: str
    format: str
    checks: Sequence[Check]

    @property
    def passed(self) -> bool | None:
        verdicts = {check.passed for check in self.checks}
        return False if False in verdicts else True if True in verdicts else None


def check(path: Path, *, against: Path | None) -> list[Verified]:
    """Every file at `path`. Raises ConfigurationError where there is none; see `checks_of` and `unpack`."""
    if is_bundle(path):
        return [Verified(path.name, str(path), "bundle", tuple(verify_bundle(path)))]
    with subjects(path) as found:
        return [Verified(one.name, str(one.shown), one.format, tuple(checks_of(one, against=against))) for one in found]


def show(found: Sequence[Verified], console: Console) -> None:
    """What was checked, and what could not be checked here and why."""
    for one in found:
        console.print(f"\n{_MARKS[one.passed]} [bold]{escape(one.name)}[/bold]  {one.format}", highlight=False)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for check in sorted(one.checks, key=lambda check: (check.passed is None, check.passed is True)):
            detail = f"not checked here: {check.detail}" if check.passed is None else check.detail
            table.add_row(f"  {_MARKS[check.passed]}", escape(check.name), escape(detail))
        console.print(table)


def as_json(found: Sequence[Verified]) -> str:
    """The same for programs."""
    content = [{**asdict(one), "passed": one.passed, "checks": [asdict(c) for c in one.checks]} for one in found]
    return json.dumps({"schema": "edgeforge.verify/1", "files": content}, indent=1)


def judge(found: Sequence[Verified], path: Path) -> None:
    """Raise VerificationError where a check failed, ConfigurationError where nothing could be checked."""
    failed = [
        f"{one.name}: {check.name}: {check.detail}" for one in found for check in one.checks if check.passed is False
    ]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise VerificationError(failed[0] + more, where=str(path), remedy="do not ship it; run the pipeline again")
    if not any(one.passed for one in found):
        raise ConfigurationError(
            "there is nothing that can be verified", where=str(path), remedy="see what is said of each file above"
        )
