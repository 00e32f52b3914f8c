"""Opening a Hugging Face dataset: its splits and its columns, with errors that say what to set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeforge.core.errors import DataError, EnvironmentProblem
from edgeforge.core.extras import require
from edgeforge.core.spec import perhaps

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

SAVED_SPLITS, SAVED_SPLIT = "dataset_dict.json", "state.json"

Feature = Literal["Image", "ClassLabel", "string"]


def load(path: str, config: str | None, revision: str | None, *, folder: Path | None) -> DatasetDict:
    """Every split of the dataset in `folder`, or on the hub.

    Raises DataError, EnvironmentProblem, MissingExtraError.
    """
    datasets = require("datasets", "hub")
    if folder is not None and (folder / SAVED_SPLIT).is_file():
        raise DataError("the folder holds one split", where=str(folder), remedy="save a DatasetDict of train and test")
    try:
        if folder is not None and (folder / SAVED_SPLITS).is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder or path), config, revision=revision)
    except ConnectionError as error:
        raise EnvironmentProblem(
            f"there is no folder {Path(path).absolute()}, and the hub cannot be reached: {_line(error)}",
            where=path,
            remedy="download the dataset where there is a network, and give its folder as `path`",
        ) from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            f"there is no folder {Path(path).absolute()}, and no such dataset on the hub: {_line(error)}",
            where=path,
            remedy="check the id and the revision; for a private dataset, log in with `hf auth login`",
        ) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError, KeyError, TypeError) as error:
        raise DataError(
            f"`datasets` cannot read it: {_line(error)}",
            where=str(folder or path),
            remedy="give a dataset of Parquet, Arrow, CSV, JSON, text or image files (a loading script is never run)",
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def split_named(splits: DatasetDict, name: str, *, where: str) -> Dataset:
    """One split. Raises DataError."""
    if name not in splits:
        raise DataError(
            perhaps("no split is named", name, list(splits)), where=where, remedy="set train, test, unlabelled"
        )
    return splits[name]


def columns_of(dataset: Dataset, feature: Feature) -> list[str]:
    """The names of all columns of a type."""
    from datasets import ClassLabel, Image

    if feature == "string":
        return [
            name for name, one in dataset.features.items() if getattr(one, "dtype", "") in ("string", "large_string")
        ]
    wanted = Image if feature == "Image" else ClassLabel
    return [name for name, one in dataset.features.items() if isinstance(one, wanted)]


def column(dataset: Dataset, role: Literal["image", "text", "label"], chosen: str | None, *, where: str) -> str:
    """The column that the user chose for a role, or the only one of the role's type. Raises DataError."""
    if chosen is not None:
        if chosen in dataset.features:
            return chosen
        what = perhaps("no column is named", chosen, list(dataset.features))
    else:
        types: dict[str, Feature] = {"image": "Image", "text": "string", "label": "ClassLabel"}
        found = columns_of(dataset, types[role])
        if len(found) == 1:
            return found[0]
        what = f"{len(found)} columns are of type {types[role]} ({', '.join(found) or 'none'}), not one"
    raise DataError(what, where=where, remedy=f"set `{role}` to one of the columns: {', '.join(dataset.features)}")


def class_names(dataset: Dataset, label: str, *, where: str) -> list[str] | None:
    """The names that a column of class labels brings; None for one of plain values. Raises DataError."""
    if label not in dataset.features:
        raise DataError(f"there is no column '{label}'", where=where, remedy="set `label`")
    names = getattr(dataset.features[label], "names", None)
    return None if names is None else list(names)
