"""How many bits a weight really has, where blocks and fallbacks make it another number than a type's name says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeforge.commands import summary
from edgeforge.core.report import Report
from edgeforge.renderers import markdown


def test_the_terminal_and_the_report_say_it(report_data: dict[str, Any], tmp_path: Path) -> None:
    row = report_data["artifacts"][1]
    row["format"], row["quantization"] = "gguf", {"kind": "gguf_k", "bits_per_weight": 6.1749, "types": {"q5_0": 2}}
    report = Report.model_validate(report_data)
    told = io.StringIO()
    summary.show(report, tmp_path, Console(file=told, width=200))
    assert f"{row['name']}: 6.17 bits per weight" in told.getvalue().splitlines()
    assert told.getvalue().count("bits per weight") == 1, "of other files nothing is known"
    assert "gguf, gguf_k, 6.17 bits per weight" in markdown.Markdown().render(report)
