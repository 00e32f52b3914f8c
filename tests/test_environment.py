from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

from edgeforge import environment

MIXED_ARM = """processor	: 0
Features	: fp asimd asimddp i8mm bf16
processor	: 1
Features	: fp asimd asimddp
"""
X86 = """processor	: 0
model name	: AMD EPYC 9R14
flags		: fpu avx2 avx512_vnni avx512_bf16
processor	: 1
model name	: AMD EPYC 9R14
flags		: fpu avx2 avx512_vnni avx512_bf16
"""


def test_features_are_those_that_every_core_has() -> None:
    assert environment.features_of_cpuinfo(X86) == {"fpu", "avx2", "avx512_vnni", "avx512_bf16"}
    assert environment.features_of_cpuinfo(MIXED_ARM) == {"fp", "asimd", "asimddp"}
    assert environment.features_of_cpuinfo("no such lines") == frozenset()


def test_features_of_a_mac_carry_the_names_that_linux_uses() -> None:
    apple = {"hw.optional.arm.FEAT_BF16": "1", "hw.optional.arm.FEAT_DotProd": "1", "hw.optional.arm.FEAT_I8MM": "0"}
    assert environment.features_of_sysctl(apple) == {"bf16", "asimddp"}
    intel = {"machdep.cpu.features": "FMA SSE4.2", "machdep.cpu.leaf7_features": "AVX2 AVX512F"}
    assert environment.features_of_sysctl(intel) == {"fma", "sse4.2", "avx2", "avx512f"}


def test_describe_is_plain_json_and_agrees_with_the_machine() -> None:
    facts = environment.describe()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert 1 <= facts["cores"] <= psutil.cpu_count()
    assert 0 < facts["ram_gb"] <= round(psutil.virtual_memory().total / 1e9, 1)
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["packages"]["torch"] == __import__("importlib.metadata").metadata.version("torch")
    assert "pytest" not in facts["packages"], "tools of the tests are no part of the environment"


def test_memory_is_the_containers_where_that_is_less(tmp_path, monkeypatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(environment, "CGROUP_MEMORY", limit)
    limit.write_text("1500000000\n")
    assert environment.describe()["ram_gb"] == 1.5
    limit.write_text("max\n")
    assert environment.describe()["ram_gb"] == round(psutil.virtual_memory().total / 1e9, 1)


def test_fingerprint_differs_between_hosts_and_does_not_name_them(monkeypatch) -> None:
    here = environment.fingerprint()
    assert environment.fingerprint() == here
    monkeypatch.setattr(environment.platform, "node", lambda: "build-host-17")
    elsewhere = environment.fingerprint()
    assert elsewhere != here
    assert "build-host-17" not in json.dumps(elsewhere)


@pytest.mark.parametrize(
    "module", ["edgeforge.environment", "edgeforge.links._worker", "edgeforge.runtimes.onnxruntime"]
)
def test_no_torch_is_imported(module: str) -> None:
    heavy = "{'torch', 'transformers', 'accelerate', 'sklearn', 'matplotlib', 'coremltools'}"
    code = f"import {module}, sys; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)
