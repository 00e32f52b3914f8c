"""The fault suite's table: every injected fault, what caught it, and the smallest size of it that is still caught.

    python -m benchmarks.faults.run

runs tests/faults (minutes on two cores), writes ``results.json`` and ``table.md`` beside this file, and ends with
pytest's exit code.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from edgeforge.renderers.markdown import escape, table

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results.json", HERE / "table.md"
SUITE = HERE.parent.parent / "tests" / "faults"


def main() -> int:
    import pytest

    os.environ["EDGEFORGE_FAULT_TABLE"] = str(RESULTS)
    code = int(pytest.main([str(SUITE), "-q", "-m", "slow or not slow"]))
    write()
    return code


def write() -> None:
    """Draw ``table.md`` from ``results.json``."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    TABLE.write_text(drawn(rows), encoding="utf-8")


def drawn(rows: list[dict[str, Any]]) -> str:
    """The page. A row of `rows` is a clean case (``passed``) or one size of one fault in one case (``caught_by``)."""
    clean = [row for row in rows if "passed" in row]
    injected = [row for row in rows if "fault" in row]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in injected:
        groups.setdefault((row["fault"], row["case"]), []).append(row)
    caught = [group for group in groups.values() if all(row["caught_by"] for row in group)]
    faults = {fault for fault, _ in groups}
    escaped = sorted({group[0]["fault"] for group in groups.values()} - {group[0]["fault"] for group in caught})
    kinds = Counter({row["fault"]: row["kind"] for row in injected}.values())
    lines = [
        "# Injected faults",
        "",
        f"{len(faults)} faults of {len(kinds)} kinds in {len(groups)} combinations with a clean case; in "
        f"{len(caught)} of these every size was caught. {len(clean)} clean cases, of which "
        f"{sum(not row['passed'] for row in clean)} failed (false alarms). Injected before sealing: digests find only "
        f"the {kinds['store']} of kind `store`. Written by `python -m benchmarks.faults.run`.",
        "",
        *([f"Escaped: {', '.join(escaped)}.", ""] if escaped else []),
        *table(("kind", "fault", "format", "case", "smallest size caught", "caught by"), map(_row, _ordered(groups))),
        "",
        "## What the faults are",
        "",
        *(f"- `{fault}`: {escape(says)}" for fault, says in sorted({(row["fault"], row["says"]) for row in injected})),
        "",
        "## Clean cases",
        "",
        *table(("case", "passed"), ((row["case"], "yes" if row["passed"] else escape(row["reason"])) for row in clean)),
    ]
    return "\n".join(lines) + "\n"


def _ordered(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    return sorted(groups.values(), key=lambda group: (group[0]["kind"], group[0]["fault"], group[0]["case"]))


def _row(group: list[dict[str, Any]]) -> tuple[str, ...]:
    """Sizes are tried from large to small."""
    smallest = None
    for row in group:
        if not row["caught_by"]:
            break
        smallest = row
    first = group[0]
    size = "-" if smallest is None else " ".join(filter(None, (smallest["size"], smallest["unit"]))) or "any"
    by = "; ".join((smallest or first)["caught_by"]) or "nothing"
    return first["kind"], f"`{first['fault']}`", first["format"], first["case"], escape(size), escape(by)


if __name__ == "__main__":
    sys.exit(main())
