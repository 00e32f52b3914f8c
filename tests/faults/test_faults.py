"""Every injected fault is caught by verification, down to the smallest size that it names; every clean case passes.

Faults are in `injected/`, one function each. They are injected before sealing, so that no digest gives them away.
The clean cases they are injected into are in `injected/cases.py`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from injected import (  # noqa: F401  (they register)
    chain,
    coreml_packages,
    decoder_files,
    gguf_files,
    onnx_float,
    onnx_quantized,
    openvino_files,
)
from injected.cases import CLEAN, TRAINED, Cases, caught_by
from injected.registry import FAULTS, Fault

QUICK_CASES = ("resnet-onnx-float", "resnet-onnx-x86", "bert-onnx-float", "resnet-coreml-int4", "llama-gguf-int4")
"""The clean cases of the default suite; quick faults in other cases are slow too."""


NEEDS = {"llama-gguf": "llama_cpp", "llama-onnx": "optimum"}
"""Beginnings of cases, and the library that they need and that is not installed everywhere."""


def _marks(name: str, *, quick: bool = True) -> list[Any]:
    missing = [library for start, library in NEEDS.items() if name.startswith(start) and find_spec(library) is None]
    absent = [pytest.mark.skip(f"{library} is not installed") for library in missing]
    return absent if quick and name in QUICK_CASES else [pytest.mark.slow, *absent]


def _parameters() -> list[Any]:
    found = []
    for fault in FAULTS.values():
        for name in fault.cases:
            marks = _marks(name, quick=fault.quick)
            found.append(pytest.param(fault, name, marks=marks, id=f"{fault.name}-{name}"))
    return sorted(found, key=lambda one: str(one.values[1]))


def test_there_are_enough_of_them() -> None:
    assert len(FAULTS) >= 60
    assert len(CLEAN) >= 20
    assert sum(fault.kind == "store" for fault in FAULTS.values()) <= 5, "found by digests alone"
    assert {name for fault in FAULTS.values() for name in fault.cases} <= set(CLEAN)


@pytest.mark.parametrize("name", [pytest.param(name, marks=_marks(name)) for name in CLEAN])
def test_a_clean_case_passes(name: str, cases: Cases, tmp_path: Path, record: Any) -> None:
    facts = cases.clean(name).copy(tmp_path).verify()
    record({"case": name, "passed": facts["passed"], "reason": facts["reason"]})
    assert facts["passed"], facts["reason"]
    assert facts["parity"]["passed"] is True
    # Nothing passes because it was not looked at.
    assert [check["name"] for check in facts["checks"] if check["passed"] is None] == []
    assert name.split("-")[0] not in TRAINED or any("recorded" in check["name"] for check in facts["checks"])


@pytest.mark.parametrize(("fault", "name"), _parameters())
def test_a_fault_is_caught(fault: Fault, name: str, cases: Cases, tmp_path: Path, record: Any) -> None:
    clean = cases.clean(name)
    for number, size in enumerate(fault.sizes):
        case = clean.copy(tmp_path / str(number))
        (tmp_path / str(number)).mkdir()
        before = fault.inject(case, size)
        facts = case.verify() if before is None else None
        caught = before if facts is None else caught_by(facts)
        record(
            {
                "fault": fault.name,
                "kind": fault.kind,
                "case": name,
                "format": clean.format,
                "says": fault.says,
                "size": size if size is None else str(size),
                "unit": fault.unit,
                "caught_by": caught,
            }
        )
        assert caught, f"{fault.name} of size {size} escaped"
        assert facts is None or (facts["passed"] is False and facts["reason"])
