"""Samples without a label that belong to no task: what models are probed with."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from edgeforge.core.artifact import digest_files
from edgeforge.core.errors import DataError
from edgeforge.data._class_folders import files_below
from edgeforge.data._decode import Channels, decode
from edgeforge.data._files import existing, file_digest
from edgeforge.data._parts import ArrayImages, images_from_array
from edgeforge.data._row_files import lines, objects
from edgeforge.data._texts import Row, checked_text
from edgeforge.data.image_folder import SUFFIXES

REMEDY = 'every line is one object with a text, such as {"text": "..."}'
ARRAY = "x"


def digest(path: str) -> str:
    """sha256 of the content. Raises DataError where there is nothing."""
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        files = {file.relative_to(place).as_posix(): file_digest(file) for file in files_below(place, SUFFIXES)}
        return digest_files(files)
    return file_digest(existing(path))


def texts(path: str) -> tuple[str, ...]:
    """The texts of a file: of each line, or under `text` in a file of JSON lines (.jsonl). Raises DataError."""
    file = existing(path)
    if file.suffix.lower() == ".jsonl":
        rows = [Row(value.get("text"), None, where) for value, where in objects(file, REMEDY)]
    else:
        rows = [Row(line.rstrip("\r\n"), None, f"{file}:{number}") for number, line in lines(file) if line.strip()]
    if not rows:
        raise DataError("the file has no text", where=str(file), remedy="one text per line, or JSON lines")
    return tuple(map(checked_text, rows))


def images(path: str, shape: tuple[int, int, int]) -> ArrayImages:
    """The images of a folder, at any depth, or of the array `x` in an .npz file, as (H, W, C) = `shape`.

    Raises DataError for what is no image, or of another shape where it is no square to be resized.
    """
    height, width, channels = shape
    size = height if height == width else None
    place = Path(path).expanduser().absolute()
    if place.is_dir():
        wanted: Channels = "gray" if channels == 1 else "rgb"
        files = files_below(place, SUFFIXES)
        if not files:
            raise DataError("the folder has no image", where=str(place), remedy="put image files into it")
        decoded = [decode(file, str(file), channels=wanted, image_size=size) for file in files]
        for file, image in zip(files, decoded, strict=True):
            _check_shape(image, shape, str(file))
        return ArrayImages(np.stack(decoded))
    found = images_from_array(_array(existing(path)), where=f"{place} {ARRAY}", image_size=size)
    _check_shape(found.array[0], shape, str(place))
    return found


def _array(file: Path) -> np.ndarray:
    try:
        opened = np.load(file, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise ValueError("a single array, not an .npz archive")
        with opened as archive:
            found: np.ndarray = archive[ARRAY]
            return found
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"no sound .npz file with an array '{ARRAY}': {error}",
            where=str(file),
            remedy="give a folder of images, or write one with numpy.savez(file, x=images)",
        ) from error


def _check_shape(image: np.ndarray, shape: tuple[int, int, int], where: str) -> None:
    if image.shape != shape:
        raise DataError(
            f"the image is {' x '.join(map(str, image.shape))}, the task's are {' x '.join(map(str, shape))}",
            where=where,
            remedy="resize it, and give it the task's channels",
        )
