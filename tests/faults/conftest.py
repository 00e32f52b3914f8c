"""The fault suite's session: cases built once, and the table of what caught what.

With EDGEFORGE_FAULT_TABLE set to a path (as `python -m benchmarks.faults.run` does), the table is written there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

RESULTS: list[dict[str, Any]] = []


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory, digits: Any, mails: Any, tales: Any) -> Any:
    """Clean cases by name, each built at first use."""
    pytest.importorskip("coremltools")
    pytest.importorskip("openvino")
    from injected.cases import Cases

    return Cases(tmp_path_factory.mktemp("faults"), digits, mails, tales)


@pytest.fixture
def record() -> Any:
    """Appends a row to the table."""
    return RESULTS.append


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("EDGEFORGE_FAULT_TABLE")
    if path:
        Path(path).write_text(json.dumps(RESULTS, indent=1), encoding="utf-8")
