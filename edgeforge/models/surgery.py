"""Shapes of a model's layers: reading them, comparing them, and giving layers other ones.

A pruned model is the model its config describes, with some tensors narrower and a few numbers (groups, heads, the
scaling of attention) changed. `difference` finds what changed; `resize` does it to a model built from the config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import AfterValidator, Field, StrictFloat, StrictInt
from torch import Tensor, empty, nn, no_grad

from edgeforge.core.errors import ModelError
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Numbers that forward() reads and that no tensor's shape tells. Their names differ between transformers 4 and 5.
ATTENTION_COUNTS = frozenset(
    {
        "num_attention_heads",
        "num_heads",
        "n_heads",
        "num_key_value_groups",
        "attention_head_size",
        "head_dim",
        "all_head_size",
        "dim",
    }
)
FEED_FORWARD_COUNTS = frozenset({"intermediate_size"})
ATTENTION_SCALES = frozenset({"scaling", "scale"})

# Numbers without effect on inference.
_IGNORED = frozenset({"training", "gradient_checkpointing", "p", "inplace", "drop_prob", "dropout_prob", "momentum"})

Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]


def _plausible(value: float) -> float:
    if not 0 < value < 2**20:  # false for nan too
        raise ValueError("must be a positive number of plausible size")
    return value


Number = Annotated[StrictInt | StrictFloat, AfterValidator(_plausible)]


class LayerShape(Spec):
    """What one module has that the config does not say."""

    tensors: dict[str, tuple[Size, ...]] = Field(default={}, description="Shapes of its own parameters and buffers.")
    attributes: dict[str, Number] = Field(default={}, description="Groups, head counts, scaling, feed-forward width.")


def difference(model: nn.Module, blueprint: nn.Module) -> dict[str, LayerShape]:
    """Module path -> what `model` has there and `blueprint` has not. Empty: the two have the same shape.

    Raises ModelError where `resize` could not make one of the other: other modules, other tensors, other numbers.
    """
    there = dict(blueprint.named_modules())
    changed: dict[str, LayerShape] = {}
    for path, module in model.named_modules():
        if type(there.pop(path, None)) is not type(module):
            raise ModelError(f"its config does not describe the module {path or 'itself'} ({type(module).__name__})")
    if there:
        raise ModelError(f"the module {next(iter(there))} that its config describes is gone")
    for path, module in model.named_modules():
        layer = _layer_difference(path, module, blueprint.get_submodule(path))
        if layer.tensors or layer.attributes:
            changed[path] = layer
    return changed


def _layer_difference(path: str, module: nn.Module, other: nn.Module) -> LayerShape:
    here, there = dict(_own_tensors(module)), dict(_own_tensors(other))
    if {name: tensor.dim() for name, tensor in here.items()} != {name: tensor.dim() for name, tensor in there.items()}:
        raise ModelError(
            f"{path} has the tensors {', '.join(here) or 'none'}, its config says {', '.join(there) or 'none'}"
        )
    attributes = {}
    for name, value in _numbers(module).items():
        if value == _numbers(other).get(name) or name in _derived(module):
            continue
        if name not in _settable(module):
            raise ModelError(f"{path}.{name} is {value!r}, its config says {_numbers(other).get(name)!r}")
        attributes[name] = value
    tensors = {name: tuple(tensor.shape) for name, tensor in here.items() if tensor.shape != there[name].shape}
    return LayerShape(tensors=tensors, attributes=attributes)


def resize(model: nn.Module, changes: Mapping[str, LayerShape]) -> None:
    """Give layers of `model` other shapes, in place; tensors that change are empty afterwards.

    Raises ModelError for a module, tensor or attribute that the model has not, or that may not be set.
    """
    modules = dict(model.named_modules())
    for path, layer in changes.items():
        if path not in modules:
            raise ModelError(f"there is no module '{path}' in a {type(model).__name__} of this config")
        for name, shape in layer.tensors.items():
            _resize_tensor(path, modules[path], name, shape)
        for name, value in layer.attributes.items():
            _set_number(path, modules[path], name, value)
        for name, value in _derived(modules[path]).items():
            setattr(modules[path], name, value)


def _resize_tensor(path: str, module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    old = dict(_own_tensors(module)).get(name)
    if old is None or old.dim() != len(shape):
        raise ModelError(f"{path} has no tensor '{name}' of {len(shape)} axes")
    new = empty(shape, dtype=old.dtype, device=old.device)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        module._buffers[name] = new


def _set_number(path: str, module: nn.Module, name: str, value: float) -> None:
    old = _numbers(module).get(name)
    if name not in _settable(module) or type(old) is not type(value):
        raise ModelError(f"{path}.{name} may not be set to {value!r}")
    if isinstance(module, CONVOLUTIONS) and module.weight.shape[0] % int(value):
        raise ModelError(f"{path} has {module.weight.shape[0]} channels, which {value} groups do not divide")
    setattr(module, name, value)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _numbers(module: nn.Module) -> dict[str, Any]:
    """The plain public numbers (and tuples of them) a module's own code may read."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _IGNORED and isinstance(value, bool | int | float | tuple)
    }


def _settable(module: nn.Module) -> frozenset[str]:
    if isinstance(module, CONVOLUTIONS):
        return frozenset({"groups"})
    if type(module).__module__.startswith("torch."):
        return frozenset()
    return ATTENTION_COUNTS | ATTENTION_SCALES | FEED_FORWARD_COUNTS


def _derived(module: nn.Module) -> dict[str, Any]:
    """Attributes that only repeat the shape of the module's tensors."""
    if isinstance(module, nn.Linear):
        return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
    if isinstance(module, CONVOLUTIONS):
        return {"out_channels": module.weight.shape[0], "in_channels": module.weight.shape[1] * module.groups}
    if isinstance(module, BATCH_NORMS) and module.weight is not None:
        return {"num_features": module.weight.shape[0]}
    if isinstance(module, nn.LayerNorm) and module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    return {}


def keep_channels(layer: nn.Linear, kept: Sequence[int], *, outputs: bool) -> None:
    """Leave a linear layer only these outputs, or inputs, in place."""
    index = torch.tensor(kept, device=layer.weight.device)
    layer.weight = _part(layer.weight, index, axis=0 if outputs else 1)
    if outputs and layer.bias is not None:
        layer.bias = _part(layer.bias, index, axis=0)
    layer.out_features, layer.in_features = layer.weight.shape


def keep_rows(embedding: nn.Embedding, kept: Sequence[int]) -> None:
    """Leave an embedding only these rows, in this order, in place."""
    embedding.weight = _part(embedding.weight, torch.tensor(kept, device=embedding.weight.device), axis=0)
    embedding.num_embeddings = len(kept)
    if embedding.padding_idx is not None:
        embedding.padding_idx = list(kept).index(embedding.padding_idx)


def keep_blocks(model: PreTrainedModel, blocks: nn.ModuleList, kept: Sequence[int]) -> None:
    """Leave `model` only these of its `blocks`, in place, with all that counts them: it is then its config's model."""
    for index in reversed(range(len(blocks))):
        if index not in kept:
            del blocks[index]
    module: Any
    for position, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = position
    for module in model.modules():
        if isinstance(getattr(module, "n_layers", None), int) and blocks in module.children():
            module.n_layers = len(blocks)
    model.config.num_hidden_layers = len(blocks)
    if getattr(model.config, "layer_types", None) is not None:
        _keep_layer_types(model, kept)


def _keep_layer_types(model: PreTrainedModel, kept: Sequence[int]) -> None:
    """The config's list with one word for each block: attention to the whole text, or to a window of it."""
    types = [model.config.layer_types[index] for index in kept]
    model.config.layer_types = types
    module: Any
    for module in model.modules():
        if hasattr(module, "has_sliding_layers"):
            module.has_sliding_layers = "sliding_attention" in types


def _part(parameter: Tensor, index: Tensor, *, axis: int) -> nn.Parameter:
    part = parameter.detach().index_select(axis, index)
    return nn.Parameter(part, requires_grad=parameter.requires_grad)


def replace_head(model: PreTrainedModel, labels: Sequence[str]) -> None:
    """Give a classifier fresh last layers for `labels`, in place; weights follow torch's global seed.

    Raises ModelError where no linear layer outside the backbone makes the model's logits.
    """
    before = model.config.num_labels
    backbone = {id(module) for module in model.base_model.modules()} if model.base_model is not model else set()
    if hasattr(model, "timm_model"):
        model.timm_model.reset_classifier(len(labels))
    else:
        heads = [
            (path, module)
            for path, module in model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == before and id(module) not in backbone
        ]
        if not heads or not backbone:
            raise ModelError(f"a {type(model).__name__} has no linear classifier to replace")
        for path, old in heads:
            new = nn.Linear(old.in_features, len(labels), bias=old.bias is not None)
            with no_grad():
                model._init_weights(new)
            model.set_submodule(path, new)
    model.num_labels = len(labels)
    name_labels(model.config, labels)


def name_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Write the labels' names and number into a config, in place."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    if hasattr(config, "label_names"):  # timm's published configs say them a second time
        config.label_names = list(labels)
