"""report.json: the report itself, for programs."""

from __future__ import annotations

from typing import ClassVar, Literal

from edgeforge.core.report import Report
from edgeforge.renderers import Renderer


class Json(Renderer):
    """Schema ``edgeforge.report/1``; reading it back gives an equal `Report`."""

    kind: Literal["json"] = "json"
    file_name: ClassVar[str] = "report.json"

    def render(self, report: Report) -> str:
        return report.to_json() + "\n"
