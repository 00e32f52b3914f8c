"""What this machine is: processor, memory, system, Python, package versions. Imports no heavy library."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

CPUINFO = Path("/proc/cpuinfo")
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")

_ARITHMETIC = ("sse4", "avx", "amx", "fma", "f16c", "asimd", "neon", "sve", "sme", "i8mm", "bf16", "fp16")


def describe() -> dict[str, Any]:
    """The report's ``environment``.

    `cores` are those this process may use, `ram_gb` counts 10^9 bytes, `packages` maps every installed library that
    EdgeForge can use to its version, `cpu_features` are those that do arithmetic.
    """
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "physical_cores": psutil.cpu_count(logical=False),
        "ram_gb": round(_memory_bytes() / 1e9, 1),
        "os": _system(),
        "python": platform.python_version(),
        "packages": packages(),
        "cpu_features": sorted(name for name in cpu_features() if name.startswith(_ARITHMETIC)),
    }


def fingerprint() -> dict[str, Any]:
    """What makes two hosts' timings incomparable. The host's name is hashed, since reports are shared."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "cpu_features": sorted(cpu_features()),
        "os": _system(),
        "host": hashlib.sha256(platform.node().encode()).hexdigest()[:16],
    }


def usable_cores() -> int:
    """Logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def cpu_model() -> str:
    """The processor's name, or its architecture where the system does not say."""
    if platform.system() == "Linux":
        text = _cpuinfo()
        for field in ("model name", "Model", "Hardware"):
            if match := re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE):
                return match.group(1).strip()
    if platform.system() == "Darwin":
        return _sysctl().get("machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


@cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of the processor, in the Linux kernel's words: ``avx2``, ``avx512_vnni``, ``avx512_bf16``,
    ``amx_bf16``, ``asimddp``, ``i8mm``, ``bf16``, ...

    Empty where the system does not say (Windows).
    """
    if platform.system() == "Linux":
        return features_of_cpuinfo(_cpuinfo())
    if platform.system() == "Darwin":
        return features_of_sysctl(_sysctl())
    return frozenset()


def features_of_cpuinfo(text: str) -> frozenset[str]:
    """Features that every core in a ``/proc/cpuinfo`` has (Arm systems mix cores)."""
    cores = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset.intersection(*(frozenset(line.split()) for line in cores)) if cores else frozenset()


def features_of_sysctl(values: dict[str, str]) -> frozenset[str]:
    """The same from macOS's ``sysctl -a``; Arm's FEAT_X names become the Linux kernel's."""
    words = " ".join(values.get(f"machdep.cpu.{name}", "") for name in ("features", "leaf7_features"))
    found = {word.lower() for word in words.split()}
    renamed = {"dotprod": "asimddp"}
    for name, value in values.items():
        if name.startswith("hw.optional.arm.FEAT_") and value == "1":
            feature = name.removeprefix("hw.optional.arm.FEAT_").lower()
            found.add(renamed.get(feature, feature))
    return frozenset(found)


@cache
def packages() -> dict[str, str]:
    """Version of EdgeForge and of every library it declares (extras but `test`) that is installed."""
    declared = (Requirement(line) for line in requires("edgeforge") or ())
    names = {item.name for item in declared if 'extra == "test"' not in str(item.marker)}
    found = {}
    for name in sorted({*names, "edgeforge"}, key=str.lower):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed
    return found


def _system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _memory_bytes() -> int:
    total = int(psutil.virtual_memory().total)
    try:
        limit = CGROUP_MEMORY.read_text(encoding="ascii").strip()
    except OSError:
        return total  # no container limit to read
    return min(total, int(limit)) if limit.isdigit() else total


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # some sandboxes hide it; the architecture's name is then all there is to say


@cache
def _sysctl() -> dict[str, str]:
    try:
        text = subprocess.run(["sysctl", "-a"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in text.splitlines()) if colon}
