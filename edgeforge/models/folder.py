"""A model's folder, read without torch: which files are in it, whether they are whole, and what must be refused.

Nothing here, or in `loading`, runs code from the folder: pickles, remote code and adapters are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeforge.core.errors import ModelError

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHAPES = "shapes.json"

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
TO_SAFETENSORS = (
    "where you trust it, convert it: "
    "transformers.AutoModelForImageClassification.from_pretrained(OLD).save_pretrained(NEW) writes safetensors"
)
WRITE_AGAIN = "write or download the folder again"

DROPPED = ("auto_map", "attn_implementation", "experts_implementation", "torch_dtype", "dtype", "torchscript")
MAX_DEPTH = 20

# create_model's arguments that change shapes only; others fetch files, and one of them is unpickled.
TIMM_ARGUMENTS = ("in_chans", "img_size")
MAX_TIMM_SIZE = 4096


def read_config_data(folder: Path) -> dict[str, Any]:
    """``config.json`` without what could fetch or run anything. Raises ModelError."""
    if folder.is_file():
        raise ModelError("this is a file", where=str(folder), remedy=_remedy_for_file(folder))
    if not folder.is_dir():
        raise ModelError("there is no such folder", where=str(folder), remedy="give the folder that holds config.json")
    if (folder / "adapter_config.json").exists():
        raise ModelError("this is an adapter", where=str(folder), remedy="merge it into its base model first (peft)")
    data = read_json(folder / CONFIG)
    if "model_type" not in data and "architecture" in data and "pretrained_cfg" in data:  # as timm itself writes it
        data |= {"model_type": "timm_wrapper", "architectures": ["TimmWrapperForImageClassification"]}
    for key in ("quantization_config", "use_pretrained_backbone"):
        if data.get(key):
            raise ModelError(f"'{key}' is set", where=str(folder / CONFIG), remedy="use the full float checkpoint")
    if data.get("model_type") == "timm_wrapper":
        _check_timm(data, folder)
    return _harmless(data, depth=0, where=str(folder / CONFIG))  # type: ignore[no-any-return]


def _remedy_for_file(path: Path) -> str:
    return TO_SAFETENSORS if path.suffix.lower() in PICKLES else "give the folder that holds config.json"


def _harmless(data: Any, *, depth: int, where: str) -> Any:
    """Without keys that name code to fetch (`auto_map`, attention kernels) or a dtype: `load` decides those."""
    if depth > MAX_DEPTH:
        raise ModelError("nested too deeply", where=where, remedy=WRITE_AGAIN)
    if isinstance(data, dict):
        return {
            key: _harmless(value, depth=depth + 1, where=where)
            for key, value in data.items()
            if key not in DROPPED and not key.startswith("_")
        }
    return [_harmless(item, depth=depth + 1, where=where) for item in data] if isinstance(data, list) else data


def _check_timm(data: Mapping[str, Any], folder: Path) -> None:
    name, arguments = data.get("architecture"), data.get("model_args") or {}
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.]+", name) is not None  # not "hf-hub:..."
    harmless = isinstance(arguments, dict) and all(
        key in TIMM_ARGUMENTS and isinstance(value, int) and 0 < value <= MAX_TIMM_SIZE
        for key, value in arguments.items()
    )
    if not (plain and harmless):
        raise ModelError(
            f"timm architecture {name!r} with model_args {arguments!r} could load other files",
            where=str(folder / CONFIG),
            remedy=f"use a plain timm architecture name and no model_args but {', '.join(TIMM_ARGUMENTS)}",
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"{path.name} is missing", where=str(path.parent), remedy="give a folder written by save_pretrained"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read as JSON: {error}", where=str(path), remedy=WRITE_AGAIN) from error
    if not isinstance(data, dict):
        raise ModelError("is not a JSON object", where=str(path), remedy=WRITE_AGAIN)
    return data


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, in order. Raises ModelError where there are none, or pickles only."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)
    if pickles:
        raise ModelError(
            f"{pickles[0]} is a pickle, which can run code; it is never loaded",
            where=str(folder),
            remedy=TO_SAFETENSORS,
        )
    raise ModelError(f"{WEIGHTS} is missing", where=str(folder), remedy="give a folder written by save_pretrained")


def _shards(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise ModelError(
            "its weight_map does not name safetensors files beside it", where=str(folder / INDEX), remedy=WRITE_AGAIN
        )
    files = [folder / name for name in sorted(set(names))]
    for path in files:
        if not path.is_file():
            raise ModelError(f"{path.name} is missing", where=str(folder), remedy=WRITE_AGAIN)
    return files


def model_files(folder: Path) -> list[Path]:
    """Every file that `loading.load` reads: the config, the weights, and what describes them."""
    described = [folder / name for name in (CONFIG, GENERATION, INDEX, SHAPES) if (folder / name).is_file()]
    return sorted([*described, *weight_files(folder)])


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the headers of the safetensors files. Raises ModelError."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise ModelError(f"not a whole safetensors file: {error}", where=str(path), remedy=WRITE_AGAIN) from error
    return shapes
