"""The gate for float16 GGUF files of every shape that pruning makes: at least 512 tokens, within 1e-4 nats of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge import gguf_file
from edgeforge.criteria.activation import Activation
from edgeforge.criteria.magnitude import Magnitude
from edgeforge.exporters.gguf import Gguf
from edgeforge.models import loading, tokenizer
from edgeforge.structures._blocks import blocks
from edgeforge.structures.attention_heads import AttentionHeads
from edgeforge.structures.ffn_width import FfnWidth
from edgeforge.structures.layers import Layers
from edgeforge.tasks.causal_lm import CausalLm
from edgeforge.verification import gguf as verification

pytest.importorskip("llama_cpp")

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.stage import Job
    from tests.conftest import Tales


def without_blocks(model: PreTrainedModel, job: Job) -> None:
    Layers(count=1).prune(model, Activation(), job)


def narrow(model: PreTrainedModel, job: Job) -> None:
    FfnWidth(width=96).prune(model, Activation(), job)


def fewer_groups(model: PreTrainedModel, job: Job) -> None:
    AttentionHeads(keep=2).prune(model, Magnitude(), job)


def uneven(model: PreTrainedModel, job: Job) -> None:
    _, second, third = blocks(model)
    second.keep_neurons(list(range(64)))
    third.keep_groups([1])


SHAPES: dict[str, tuple[Callable[..., None], str]] = {
    "dense": (lambda model, job: None, "llama"),
    "fewer layers": (without_blocks, "llama"),
    "narrower": (narrow, "llama"),
    "fewer groups of heads": (fewer_groups, "llama"),
    "widths that differ": (uneven, "deci"),
}


def verified(model: PreTrainedModel, tales: Tales, folder: Path) -> dict[str, Any]:
    """What verification says of the model's float16 file, on half of the training text."""
    loading.save(model, folder / "torch")
    tokenizer.carry(tales.root / "tokenizer", folder / "torch")
    source = tales.artifact(folder / "torch", "torch")
    task = CausalLm.model_validate({**dict(tales.task), "validation": 0.5})
    Gguf().export(source, tales.job(folder / "file"))
    inputs = {"file": tales.artifact(folder / "file", "gguf"), "model": source, "reference": source}
    return dict(verification.verify(inputs, replace(tales.job(folder / "job"), task=task, model=source.path)))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_float16_file_of_any_shape_answers_as_torch_does(
    tales: Tales, tiny_lm: Callable[[str], PreTrainedModel], shape: str, tmp_path: Path
) -> None:
    change, architecture = SHAPES[shape]
    model = tiny_lm("llama")
    whole = sum(parameter.numel() for parameter in model.parameters())
    change(model, tales.job(tmp_path / "pruned"))
    assert (sum(parameter.numel() for parameter in model.parameters()) < whole) == (shape != "dense")
    facts = verified(model, tales, tmp_path)
    assert facts["passed"], facts["reason"]
    assert gguf_file.read(tmp_path / "file" / gguf_file.MODEL).architecture == architecture
    parity = facts["parity"]
    assert parity["samples"] >= 512
    assert parity["mean_kld"] < 1e-4
    assert parity["agreement"] > 0.99


def test_where_tokens_see_a_window_only_texts_end_with_it(
    tales: Tales, tiny_lm: Callable[[str], PreTrainedModel], tmp_path: Path
) -> None:
    """Mistral's: 48 of 256 positions, in which every token sees all before it, as in llama.cpp."""
    model = tiny_lm("mistral")
    model.config.sliding_window = 48
    facts = verified(model, tales, tmp_path)
    assert facts["passed"], facts["reason"]
    assert gguf_file.read(tmp_path / "file" / gguf_file.MODEL).said("context_length") == 48
