"""Unpacks a zip archive, such as that of a Core ML package, without trusting it."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from edgeforge.core.errors import EnvironmentProblem, ModelError

BLOCK = 1 << 20
MOST_FILES = 10_000


def unpack(archive: Path, target: Path) -> Path:
    """Unpack into the empty folder `target`; returns the package in it.

    Raises as `extract`, and ModelError where it holds no package or several.
    """
    extract(archive, target)
    return _package(target, str(archive))


def extract(archive: Path, target: Path) -> None:
    """Unpack everything into the empty folder `target`.

    Raises ModelError for what is no zip, is encrypted or damaged, or has a member that leads out of the folder (nothing
    is written then); EnvironmentProblem where the disk has too little room.
    """
    where = str(archive)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check(members, where)
            free = shutil.disk_usage(target).free
            needed = sum(member.file_size for member in members)
            if needed > free:
                raise EnvironmentProblem(
                    f"it unpacks to {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
                    where=where,
                    remedy="make room, or set TMPDIR to another disk",
                )
            for member in members:
                _write(opened, member, target)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        raise ModelError(f"not a whole zip archive: {error}", where=where, remedy="copy it again") from error


def _check(members: list[zipfile.ZipInfo], where: str) -> None:
    if len(members) > MOST_FILES:
        raise ModelError(f"it holds {len(members)} files, which no package does", where=where)
    for member in members:
        parts = PurePosixPath(member.filename)
        leaves = parts.is_absolute() or ".." in parts.parts or any(one in member.filename for one in "\\:\0")
        if leaves or stat.S_ISLNK(member.external_attr >> 16):
            raise ModelError(
                f"its member {member.filename!r} leads out of the folder it would be unpacked to",
                where=where,
                remedy="do not use this archive: no program writes such a path by mistake",
            )
        if member.flag_bits & 1:
            raise ModelError("it is encrypted", where=where, remedy="unpack it yourself, then give the package")


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """One member, in blocks, and never more of it than its entry says."""
    path = target / PurePosixPath(member.filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with opened.open(member) as source, path.open("wb") as sink:
        while block := source.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise zipfile.BadZipFile(f"{member.filename} is larger than the archive says")
            sink.write(block)


def _package(folder: Path, where: str) -> Path:
    found = [path for path in folder.rglob("*.mlpackage") if path.is_dir() and "__MACOSX" not in path.parts]
    if not found and (folder / "Manifest.json").is_file():
        return folder
    if len(found) != 1:
        raise ModelError(f"it holds {len(found)} Core ML packages", where=where, remedy="put one .mlpackage into it")
    return found[0]
