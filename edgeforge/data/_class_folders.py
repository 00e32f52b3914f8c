"""`train/CLASS/*` and `test/CLASS/*`: what the kinds with a folder per class share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgeforge.core.errors import DataError


def part_folder(root: Path, part: str) -> Path:
    """``root/part``. Raises DataError where it is not there."""
    folder = root / part
    if not folder.is_dir():
        raise DataError(
            f"there is no folder '{part}'", where=str(root), remedy="put the samples in train/CLASS and test/CLASS"
        )
    return folder


def class_names(root: Path) -> list[str]:
    """The class folders, sorted. Raises DataError where the two parts have different ones."""
    train, test = (
        {item.name for item in part_folder(root, part).iterdir() if item.is_dir() and not item.name.startswith(".")}
        for part in ("train", "test")
    )
    if train != test:
        odd = min(train ^ test)
        here, there = ("train", "test") if odd in train else ("test", "train")
        raise DataError(
            f"class '{odd}' has a folder in {here} but none in {there}",
            where=str(root),
            remedy="use the same class folders in both",
        )
    return sorted(train)


def files_below(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The files with one of these suffixes (small letters), at any depth, sorted; hidden ones are left out."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )


def files_by_class(root: Path, part: str, suffixes: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Each file of a part with its class, class by class. Raises DataError."""
    for name in class_names(root):
        for file in files_below(root / part / name, suffixes):
            yield name, file
