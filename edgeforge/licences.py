"""What files say of their licence. Nobody's word but theirs: where they say nothing, it is unknown."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Any

import yaml

from edgeforge import gguf_file
from edgeforge.core.errors import EdgeForgeError

UNKNOWN = "unknown"
CARD, CONFIG = "README.md", "config.json"
TEXTS = "LICEN[CS]E*"
_HEADER = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_GGUF = ("general.license", "general.license.name")


def named(path: Path) -> tuple[str, str] | None:
    """The licence that a model or data set names, and the file it stands in; None where none does.

    `path`: a file or folder. Looked at are a GGUF file's metadata, a card's header (README.md, as the hub has it) and a
    config.json. Raises nothing: what cannot be read says nothing.
    """
    if path.suffix == ".gguf" and path.is_file():
        said = _of_gguf(path)
        if said is not None:
            return said, path.name
    folder = path if path.is_dir() else path.parent
    for name, read in ((CARD, _of_card), (CONFIG, _of_config)):
        if (folder / name).is_file():
            said = _text((read(folder / name) or {}).get("license"))
            if said is not None:
                return said, name
    return None


def texts(folder: Path) -> list[Path]:
    """The files beside a model or data set that hold a licence's text."""
    return [path for path in sorted(folder.glob(TEXTS)) if path.is_file()]


def of(path: Path) -> tuple[str, str | None]:
    """The licence's name, or where its text is, or `UNKNOWN`; and the file that says so."""
    found = named(path)
    if found is not None:
        return found
    beside = texts(path if path.is_dir() else path.parent)
    return (f"see {beside[0].name}", beside[0].name) if beside else (UNKNOWN, None)


def shown_place(value: str) -> str:
    """A place without this machine's folders: the last name of a path; an id of the hub as it is.

    Ids have one slash and no dot in front; everything else with a slash is a path here.
    """
    local = PurePath(value).is_absolute() or value.startswith((".", "~")) or value.count("/") > 1
    return PurePath(value).name if local or Path(value).exists() else value


def _of_gguf(path: Path) -> str | None:
    try:
        metadata = gguf_file.read(path).metadata
    except EdgeForgeError:
        return None
    return next((said for key in _GGUF if (said := _text(metadata.get(key)))), None)


def _of_card(path: Path) -> dict[str, Any] | None:
    header = _HEADER.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        said = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        return None
    return said if isinstance(said, dict) else None


def _of_config(path: Path) -> dict[str, Any] | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _text(value: Any) -> str | None:
    """One name, or several."""
    names = value if isinstance(value, list) else [value]
    said = ", ".join(str(name) for name in names if isinstance(name, str) and name.strip())
    return said or None
