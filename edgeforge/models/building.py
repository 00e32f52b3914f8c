"""New models from configs, loaded models made ready for a task, and whether a model fits one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgeforge.architectures import architecture_of
from edgeforge.core.errors import ModelError
from edgeforge.models.gguf_sizes import attention_window

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from edgeforge.core.task import Interface, Task

SHORT = 8
"""Tokens on which a language model is tried; it has no table of positions that could end before a text."""

NEW_HEAD = "set `new_head: true` for a fresh classifier, and train it"


def build_new(config: PretrainedConfig, task: Task, interface: Interface) -> PreTrainedModel:
    """A model with fresh weights (torch's global seed), float32, on the CPU, in eval mode.

    Its shape is tried on the meta device first. Raises ModelError where the config or the input cannot work.
    """
    import transformers

    from edgeforge.models.loading import on_meta

    try:
        draft = on_meta(_class_for(task, config, "model"), config)
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"no {config.model_type} has this shape: {error}", where="model") from error
    if interface.pixels is not None:
        check_fits(draft, interface)
    model = getattr(transformers, task.auto_class).from_config(config).float()
    if interface.pixels is None:
        check_fits(model, interface)
    if family := architecture_of(config):
        family.prepare(model)
    return model.eval()


def adapt(model: PreTrainedModel, task: Task, interface: Interface, *, new_head: bool, where: str) -> PreTrainedModel:
    """A loaded model made ready for a task: its own classifier, or a fresh one (torch's global seed).

    Raises ModelError where its class, labels, channels or image size do not fit, or a weight is not a number.
    """
    from edgeforge.models.surgery import name_labels, replace_head

    _check_finite(model, where)
    wanted = _class_for(task, model.config, where)
    if interface.per_token:
        return _adapt_writer(model, wanted, interface, new_head=new_head, where=where)
    if not isinstance(model, wanted) and not new_head:
        raise ModelError(
            f"it is a {type(model).__name__}, the task needs a {wanted.__name__}", where=where, remedy=NEW_HEAD
        )
    if not isinstance(model, wanted):
        model = _with_backbone(wanted, model, interface.labels, where)
    elif new_head:
        replace_head(model, interface.labels)
    else:
        _check_labels(model.config, interface.labels, where)
        name_labels(model.config, interface.labels)
    check_fits(model, interface, where=where)
    return model.eval()


def _adapt_writer(
    model: PreTrainedModel, wanted: type[PreTrainedModel], interface: Interface, *, new_head: bool, where: str
) -> PreTrainedModel:
    """A language model has no labels to adapt to; what its checkpoint says about sampling is left behind."""
    from transformers import GenerationConfig

    if not isinstance(model, wanted):
        raise ModelError(
            f"it is a {type(model).__name__}, the task needs a {wanted.__name__}",
            where=where,
            remedy="use a checkpoint with its output layer",
        )
    if new_head:
        raise ModelError("a language model has no classifier to replace", where=where, remedy="remove `new_head`")
    said = model.generation_config
    ids = {name: getattr(said, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    check_fits(model, interface, where=where)
    return model.eval()


def _check_finite(model: PreTrainedModel, where: str) -> None:
    import torch

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds values that are not numbers", where=where, remedy="use a sound checkpoint")


def _class_for(task: Task, config: PretrainedConfig, where: str) -> type[PreTrainedModel]:
    import transformers

    mapping = getattr(transformers, task.auto_class)._model_mapping
    if type(config) not in mapping:
        raise ModelError(
            f"transformers has no {task.auto_class.removeprefix('AutoModelFor')} class for {config.model_type}",
            where=where,
            remedy="use a model of another family",
        )
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


def _with_backbone(
    cls: type[PreTrainedModel], model: PreTrainedModel, labels: Sequence[str], where: str
) -> PreTrainedModel:
    """A new `cls` with the backbone of `model`; what the task's class does not use (a pooler) is left behind."""
    from edgeforge.models.surgery import name_labels

    config = copy.deepcopy(model.config)
    name_labels(config, labels)
    new = cls(config)
    try:
        missing, _ = new.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    except RuntimeError as error:
        raise ModelError(f"its backbone is not that of its config: {error}", where=where) from error
    if missing:
        raise ModelError(f"{missing[0]} is missing from its backbone", where=where, remedy="use a whole checkpoint")
    return new


def _check_labels(config: PretrainedConfig, labels: Sequence[str], where: str) -> None:
    if config.num_labels != len(labels):
        raise ModelError(f"it has {config.num_labels} labels, the task has {len(labels)}", where=where, remedy=NEW_HEAD)
    own = [str(config.id2label[index]) for index in range(len(labels))]
    if sorted(own) == sorted(labels) and own != list(labels):
        raise ModelError(
            f"it has the task's labels in another order ({', '.join(own[:3])}, ... for {', '.join(labels[:3])}, ...)",
            where=where,
            remedy=f"put the data's labels in the model's order, or {NEW_HEAD}",
        )


def check_fits(model: PreTrainedModel, interface: Interface, *, where: str = "model") -> None:
    """Raise ModelError unless `model` takes the task's inputs and gives one logit for each of its labels, or tokens.

    A model of images may lie on the meta device.
    """
    from edgeforge.models.example import example_logits

    channels = getattr(model.config, "num_channels", None)
    if channels is not None and channels != interface.image_shape[0]:
        raise ModelError(
            f"it takes {channels} input channels, the data has {interface.image_shape[0]}",
            where=where,
            remedy="use a model of that many channels, or convert the images",
        )
    known = getattr(model.config, "vocab_size", None)
    if known is not None and interface.text.vocabulary_size > known:
        raise ModelError(
            f"its tokenizer has {interface.text.vocabulary_size} tokens, the model embeddings for {known}",
            where=where,
            remedy="use the tokenizer that belongs to the model",
        )
    if interface.per_token:
        _check_positions(model.config, interface, where)
    try:
        logits = example_logits(model, interface, length=SHORT if interface.per_token else None)
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        _check_length(model, interface, where, error)
        size = " and ".join("x".join(map(str, value.shape)) for value in interface.inputs)
        image = "`image_size` to what the model takes, or use fewer stages or smaller patches"
        setting = image if interface.pixels else "`max_length` to what the model takes"
        raise ModelError(
            f"it cannot take inputs of {size}: {str(error).splitlines()[0]}",
            where=where,
            remedy=f"set the task's {setting}",
        ) from error
    if not interface.per_token and logits.shape[-1] != len(interface.labels):
        raise ModelError(
            f"it gives {logits.shape[-1]} logits, the task has {len(interface.labels)} labels",
            where=where,
            remedy=NEW_HEAD,
        )


def _check_length(model: PreTrainedModel, interface: Interface, where: str, cause: Exception) -> None:
    """Raise ModelError where a model that could not read the longest text has a table of fewer positions."""
    from torch import nn

    rows = getattr(model.config, "max_position_embeddings", None)
    if interface.tokens is None or not isinstance(rows, int):
        return
    words = model.get_input_embeddings()
    for module in model.modules():
        # RoBERTa counts positions from behind the padding's id.
        if isinstance(module, nn.Embedding) and module is not words and module.padding_idx is not None:
            rows -= module.padding_idx + 1
    if rows < interface.text.max_length:
        raise ModelError(
            f"it reads up to {rows} tokens, and the task's texts have up to {interface.text.max_length}",
            where=where,
            remedy=f"set the task's `max_length` to {rows} or less: what follows is cut off",
        ) from cause


def _check_positions(config: PretrainedConfig, interface: Interface, where: str) -> None:
    seen = attention_window(config)
    if seen is not None and seen < interface.text.max_length:
        raise ModelError(
            f"each of its tokens sees {seen} tokens, the task's windows have {interface.text.max_length}, and in files "
            "that are written every token sees all of them",
            where=where,
            remedy=f"set the task's `max_length` to {seen} or less",
        )
    known, wanted = getattr(config, "max_position_embeddings", None), interface.text.max_length
    if known is not None and wanted > known:
        raise ModelError(
            f"it reads up to {known} tokens, the task's windows have {wanted}",
            where=where,
            remedy=f"set the task's `max_length` to {known} or less",
        )
