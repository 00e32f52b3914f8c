"""How a report is shown: one file per format. Renderers draw what a `Report` says and add nothing to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from edgeforge.core.kinds import discover
from edgeforge.core.report import Report
from edgeforge.core.spec import Spec


class Renderer(Spec):
    """Base of every renderer. `file_name` is the name of its file in a run's folder."""

    kind: str
    file_name: ClassVar[str]

    def render(self, report: Report) -> str:
        """The whole file as text."""
        raise NotImplementedError


def write_all(report: Report, out: Path) -> list[Path]:
    """Write the report in every format into `out`, each file whole or not at all. Raises OSError."""
    written = []
    for kind, cls in discover("edgeforge.renderers", Renderer).items():
        renderer: Renderer = cls.model_validate({"kind": kind})  # type: ignore[assignment]
        path = out / renderer.file_name
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(renderer.render(report), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        written.append(path)
    return written
