"""Whether NVIDIA's driver finds a GPU here, asked of its own program: nothing heavy is imported, no GPU is taken.

The CUDA side of all runtimes follows the libraries' documented interfaces and is untested on hardware.
"""

from __future__ import annotations

import shutil
import subprocess

PROGRAM = "nvidia-smi"
UNTESTED = "no one has run this runtime on a GPU yet; its CUDA side is tested against stand-ins for the libraries"
_QUERY = ("--query-gpu=name", "--format=csv,noheader")
_TIMEOUT_S = 30


def names() -> list[str]:
    """The GPUs' names, in the driver's order; empty where there is none, or no driver."""
    return _asked()[0]


def missing() -> str | None:
    """None where there is a GPU, else why there is none, as a sentence."""
    return _asked()[1]


def _asked() -> tuple[list[str], str | None]:
    """Names, and the reason where there are none."""
    program = shutil.which(PROGRAM)
    if program is None:
        return [], f"no CUDA GPU is here ({PROGRAM}, which comes with NVIDIA's driver, is not installed)"
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"no CUDA GPU can be asked for ({PROGRAM}: {type(error).__name__})"
    found = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode == 0 and found:
        return found, None
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return [], f"NVIDIA's driver finds no GPU here ({said[0] if said else 'it does not say why'})"
