"""Torch artifacts on disk: safetensors and JSON, never pickled. The only way a model is written or read back.

A folder holds ``config.json`` and ``model.safetensors`` as Hugging Face writes them. Where the config cannot say the
model's shape (pruned to widths it has no words for), ``shapes.json`` says what differs, and `load` narrows the layers
before the weights go in. Loading runs no code from the folder (see `folder`), and the config's numbers are held
against the tensors before memory is spent on them.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import EnvironmentProblem, ModelError
from edgeforge.core.spec import Spec
from edgeforge.models import tokenizer
from edgeforge.models.folder import (
    CONFIG,
    GENERATION,
    SHAPES,
    WEIGHTS,
    WRITE_AGAIN,
    read_config_data,
    read_json,
    tensor_shapes,
    weight_files,
)
from edgeforge.models.surgery import LayerShape, difference, resize

TIMM = "timm_wrapper"

Shapes = Mapping[str, tuple[int, ...]]


class Sidecar(Spec):
    """``shapes.json``: what the config does not say, by module path."""

    format: int = Field(default=1, ge=1, le=1, description="Version of this file's meaning.")
    modules: dict[str, LayerShape]


def save(model: PreTrainedModel, folder: Path, *, tokenizer_from: Path | None = None) -> None:
    """Write `model` so that `load` gives it back exactly, with the tokenizer of another folder, if one is there.

    Plain ``from_pretrained`` reads the folder too, unless ``shapes.json`` is in it; of transformers 4 also where that
    says nothing but that whole heads are gone. Raises ModelError where the model is not its config's model in other
    widths, EnvironmentProblem where the disk refuses.
    """
    config, changes = _describe(model)
    config.architectures = [type(model).__name__]
    if changes and (heads := _heads_gone(model, config, changes)):
        config.pruned_heads = heads
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SHAPES).unlink(missing_ok=True)  # from another model saved here before
        config.save_pretrained(folder)
        if changes:
            text = Sidecar(modules=changes).model_dump_json(indent=1)
            (folder / SHAPES).write_text(text, encoding="utf-8")
            save_file(_stored(model, config), folder / WEIGHTS, metadata={"format": "pt"})
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
        else:
            _save_plain(model, config, folder)
        if tokenizer_from is not None:
            tokenizer.carry(tokenizer_from, folder)
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(
            f"the model cannot be written: {error}", where=str(folder), remedy="is there room on the disk?"
        ) from error


def load(folder: Path) -> PreTrainedModel:
    """The model in a folder, float32, on the CPU, in eval mode. Raises ModelError."""
    config = read_config(folder)
    if getattr(config, "pruned_heads", None):
        _check_shapes_say_it(folder)
        config.pruned_heads = {}
    present = tensor_shapes(folder)
    cls = _class_of(config, folder)
    blueprint = _blueprint(cls, config, folder, present)
    if (folder / SHAPES).is_file():
        tied = tied_names(blueprint)
        _resize_as_told(blueprint, folder)
        model = _read_into(blueprint, folder, present, tied)
        if (folder / GENERATION).is_file():
            model.generation_config = _generation_config(folder)
    elif config.model_type == TIMM:
        model = _read_into(blueprint, folder, present, frozenset())
    else:
        model = _load_plain(cls, config, folder)
    return made_ready(model)


def made_ready(model: PreTrainedModel) -> PreTrainedModel:
    """A model as every loaded one is left: in memory of its own, corrected by its family, in eval mode."""
    # What safetensors returns may be mapped from the file: badly aligned (other kernels, other rounding), and gone
    # when the file is.
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    if family := architecture_of(model.config):
        family.prepare(model)
    return model.eval()


def on_meta(cls: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """A model of this class and config without memory: shapes only. Torch's global seed is left as it is."""
    # timm keeps tensors it once computed for later models, so it must not compute them on the meta device.
    device = "cpu" if config.model_type == TIMM else "meta"
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return cls(copy.deepcopy(config))


# -- saving


def _describe(model: PreTrainedModel) -> tuple[PretrainedConfig, dict[str, LayerShape]]:
    """The config that comes nearest to the model, and what it leaves unsaid."""
    candidates = [copy.deepcopy(model.config)]
    family = architecture_of(model.config)
    if family is not None:
        candidates.append(family.measured(model))
    described, reason = [], None
    for config in candidates:
        try:
            changes = difference(model, on_meta(type(model), config))
        except ValueError:  # no model has these sizes (a width its heads do not divide)
            continue
        except ModelError as error:
            reason = error
            continue
        if not changes:
            return config, {}
        described.append((config, changes))
    if not described:
        raise ModelError(f"this {type(model).__name__} cannot be written: {reason or 'no config describes it'}")
    return described[0]


def _heads_gone(
    model: PreTrainedModel, config: PretrainedConfig, changes: Mapping[str, LayerShape]
) -> dict[int, list[int]]:
    """Block -> heads, as transformers 4 prunes a model that it builds from a config; empty where that is not `model`.

    Which heads went is no longer known and does not matter: the weights of those that stay are all that is stored.
    """
    if getattr(config, "pruned_heads", None) != {}:  # transformers 5 has no such word
        return {}
    gone: dict[int, list[int]] = {}
    for path, layer in changes.items():
        left = layer.attributes.get("num_attention_heads", layer.attributes.get("n_heads"))
        if left is not None and (block := re.search(r"\.(\d+)\.", path)):
            gone[int(block[1])] = list(range(int(left), config.num_attention_heads))
    if not gone or not hasattr(model.base_model, "_prune_heads"):
        return {}
    told = copy.deepcopy(config)
    told.pruned_heads = copy.deepcopy(gone)
    try:
        with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
            blueprint = type(model)(told)
        return {} if difference(model, blueprint) else gone
    except ModelError:  # more than heads is gone
        return {}


def _save_plain(model: PreTrainedModel, config: PretrainedConfig, folder: Path) -> None:
    kept = model.config
    model.config = config  # save_pretrained writes the model's own config
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=_stored(model, config))
    finally:
        model.config = kept


def tied_names(model: PreTrainedModel) -> frozenset[str]:
    """The names under which a parameter appears again (an output layer that is the embedding table)."""
    every = (name for name, _ in model.named_parameters(remove_duplicate=False))
    return frozenset(every) - {name for name, _ in model.named_parameters()}


def _stored(model: PreTrainedModel, config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """What is written: parameters that the config's model ties once, each tensor in memory of its own, as safetensors
    wants them.
    """
    seen: set[int] = set()
    result = {}
    tied = tied_names(model)
    if tied:
        tied &= tied_names(on_meta(type(model), config))
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        shared = tensor.data_ptr() in seen and tensor.numel() > 0
        seen.add(tensor.data_ptr())
        result[name] = tensor.clone() if shared else tensor.contiguous()
    return result


# -- loading


def read_config(folder: Path) -> PretrainedConfig:
    """The config in a folder, without what could fetch or run anything. Raises ModelError."""
    data = read_config_data(folder)
    model_type, known = data.get("model_type"), transformers.CONFIG_MAPPING
    if not isinstance(model_type, str) or model_type not in known:
        raise ModelError(
            f"model_type {model_type!r} is not one of transformers {transformers.__version__}; "
            "code that a model brings itself is never run",
            where=str(folder / CONFIG),
            remedy="use a model that transformers supports itself",
        )
    try:
        return known[model_type].from_dict(data)
    except Exception as error:  # an untrusted file meets a library that validates as it goes: anything may come
        raise ModelError(
            f"not a {model_type} config: {type(error).__name__}: {error}",
            where=str(folder / CONFIG),
            remedy=WRITE_AGAIN,
        ) from error


def _class_of(config: PretrainedConfig, folder: Path) -> type[PreTrainedModel]:
    names = config.architectures
    name = names[0] if isinstance(names, list) and names else None
    cls: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    fits = isinstance(cls, type) and issubclass(cls, PreTrainedModel)
    if not fits or getattr(cls, "config_class", None) is not type(config):
        raise ModelError(
            f"architectures names {name!r}, which is no {config.model_type} class of transformers",
            where=str(folder / CONFIG),
            remedy='write the class there, as in "architectures": ["ResNetForImageClassification"]',
        )
    return cls  # type: ignore[no-any-return]


def _check_shapes_say_it(folder: Path) -> None:
    """Raise ModelError where only the config says that heads are gone, in transformers 4's way, which 5 gave up."""
    if not (folder / SHAPES).is_file():
        raise ModelError(
            "transformers 4 pruned heads of this model, which only its own `from_pretrained` reads",
            where=str(folder / CONFIG),
            remedy="take the model with all its heads, and prune them here: {kind: prune, structure: attention_heads}",
        )


def _blueprint(cls: type[PreTrainedModel], config: PretrainedConfig, folder: Path, present: Shapes) -> PreTrainedModel:
    """The config's model on the meta device, once its size is known to be that of the weights."""
    depths = getattr(config, "depths", None) or [getattr(config, "num_hidden_layers", 0)]
    blocks = sum(depth for depth in depths if isinstance(depth, int)) if isinstance(depths, list | tuple) else 0
    held = sum(math.prod(shape) for shape in present.values())
    try:
        wanted = 0
        if blocks <= len(present):
            blueprint = on_meta(cls, config)
            wanted = sum(parameter.numel() for parameter in blueprint.parameters())
    except Exception as error:  # see read_config
        raise ModelError(
            f"no {cls.__name__} can be built from it: {type(error).__name__}: {error}",
            where=str(folder / CONFIG),
            remedy=WRITE_AGAIN,
        ) from error
    # Pruned weights are fewer than the config says, but not by this much; a config is cheap to inflate.
    if blocks > len(present) or wanted > max(1000 * held, 10_000_000):
        raise ModelError(
            f"the config describes a far larger model than the weights hold ({len(present)} tensors, {held} numbers)",
            where=str(folder),
            remedy=WRITE_AGAIN,
        )
    return blueprint


def _load_plain(cls: type[PreTrainedModel], config: PretrainedConfig, folder: Path) -> PreTrainedModel:
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model, info = cls.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # they are reported below, with their shapes
                output_loading_info=True,
            )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot be loaded: {error}", where=str(folder), remedy=WRITE_AGAIN) from error
    for what, names in (
        ("missing from the weights", info["missing_keys"]),
        ("in the weights, but not in the model", info["unexpected_keys"]),
        ("of another shape than the config says", [item[0] for item in info["mismatched_keys"]]),
    ):
        _refuse(what, sorted(names), folder)
    return model


def _resize_as_told(model: PreTrainedModel, folder: Path) -> None:
    """Narrow the layers of a model as ``shapes.json`` says."""
    where = str(folder / SHAPES)
    try:
        sidecar = Sidecar.model_validate(read_json(folder / SHAPES))
        resize(model, sidecar.modules)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise ModelError(f"{place}: {problem['msg']}", where=where, remedy=WRITE_AGAIN) from error
    except ModelError as error:
        # Its major versions may name a family's modules differently.
        written = f"it was written with transformers {model.config.transformers_version}; load it with that, or "
        raise ModelError(error.what, where=where, remedy=written + WRITE_AGAIN) from error


def _read_into(model: PreTrainedModel, folder: Path, present: Shapes, tied: frozenset[str]) -> PreTrainedModel:
    """Put the folder's weights into `model`, which may be on the meta device: no other memory is spent then."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    held = {_own_name(model, name): shape for name, shape in present.items()}
    _refuse("missing from the weights", sorted(wanted.keys() - held.keys()), folder)
    _refuse("in the weights, but not in the model", sorted(held.keys() - wanted.keys()), folder)
    other = sorted(name for name in wanted if wanted[name] != held[name])
    _refuse("of another shape than config.json and shapes.json say", other, folder)
    state: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        state.update({_own_name(model, name): tensor for name, tensor in load_file(path).items()})
    fill(model, state)
    if unset := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise ModelError(
            f"{unset[0]} is computed, not stored; a {type(model).__name__} cannot be resized",
            where=str(folder / SHAPES),
            remedy="use the unpruned model",
        )
    return model.float()


def fill(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Make `state`, which has every parameter but for tied ones, the weights of `model`, and compute what is not
    stored. The model may be on the meta device; the tensors become its own.
    """
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    _compute_buffers(model)
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    assert not left, left
    return model


def _generation_config(folder: Path) -> GenerationConfig:
    try:
        return GenerationConfig.from_dict(read_json(folder / GENERATION))
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(
            f"not a generation config: {error}", where=str(folder / GENERATION), remedy=WRITE_AGAIN
        ) from error


def _compute_buffers(model: PreTrainedModel) -> None:
    """Give buffers that are not stored (numbers of positions) the values that the config alone decides."""
    unset = {name: buffer for name, buffer in model.named_buffers() if buffer.is_meta}
    if not unset:
        return
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        built = dict(type(model)(copy.deepcopy(model.config)).named_buffers())
    for name, buffer in unset.items():
        owner, _, own = name.rpartition(".")
        if built[name].shape == buffer.shape:
            model.get_submodule(owner)._buffers[own] = built[name]


def _own_name(model: PreTrainedModel, name: str) -> str:
    # timm checkpoints leave out the name of transformers' wrapper.
    return f"timm_model.{name}" if hasattr(model, "timm_model") and not name.startswith("timm_model.") else name


def _refuse(what: str, names: list[str], folder: Path) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ModelError(f"{names[0]}{more}: {what}", where=str(folder), remedy=WRITE_AGAIN)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's own progress bars and reports: what matters of them is raised."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
