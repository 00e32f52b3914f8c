"""What is measured of a language model's weights, against sums made another way, and against what errors cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeforge import gguf_file, gguf_names
from edgeforge.core.errors import DataError
from edgeforge.core.task import Interface, Tokens
from edgeforge.exporters.gguf import Gguf
from edgeforge.models import loading
from edgeforge.quantizers import _importance
from edgeforge.quantizers._importance import Importance as Measured
from edgeforge.stages.importance import Importance

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from edgeforge.core.artifact import Artifact
    from tests.conftest import Tales

FAMILIES = ["llama", "qwen2", "qwen3"]


def measure(tales: Tales, family: str, folder: Path, tokens: int = 100_000) -> tuple[Measured, dict[str, Any]]:
    model = tales.torch(family)
    job = replace(tales.job(folder), model=model.path)
    facts = Importance(tokens=tokens).run({"model": model}, job)
    return _importance.read(folder), {**facts, "warnings": job.progress.warnings}  # type: ignore[attr-defined]


def windows(tales: Tales) -> torch.Tensor:
    """All of the training split, int64, (windows, length)."""
    return tales.data.batch("train", range(tales.data.size("train")))["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_there_is_something_for_every_weight_of_the_file(tales: Tales, tmp_path: Path, family: str) -> None:
    measured, facts = measure(tales, family, tmp_path / "measured", tokens=64)
    Gguf().export(tales.torch(family), tales.job(tmp_path / "file"))
    tensors = gguf_file.read(tmp_path / "file" / gguf_file.MODEL).tensors
    matrices = {name: tensor.shape for name, tensor in tensors.items() if len(tensor.shape) == 2}
    assert {name: (len(measured.rows[name]), len(measured.columns[name])) for name in measured.rows} == matrices
    assert facts["weights"] == len(matrices)
    tied = "output.weight" not in matrices
    # A table that is looked up in and nothing else has no inputs.
    assert matrices.keys() - measured.inputs.keys() == (set() if tied else {"token_embd.weight"})
    assert all(len(values) == matrices[name][1] for name, values in measured.inputs.items())
    for values in (*measured.inputs.values(), *measured.rows.values(), *measured.columns.values()):
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (values >= 0).all()
        assert values.any()
    assert (facts["tokens"], facts["windows"], facts["gradient_windows"], facts["warnings"]) == (64, 2, 2, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_are_the_mean_squares_of_what_a_layer_reads(tales: Tales, tmp_path: Path, family: str) -> None:
    """Recomputed from the hidden states between blocks, which no hook of the stage sees."""
    import torch

    measured, facts = measure(tales, family, tmp_path)
    model, ids = loading.load(tales.torch(family).path), windows(tales)
    assert facts["tokens"] == ids.numel()
    with torch.no_grad():
        states = model.model(ids, output_hidden_states=True).hidden_states
        for layer, block in enumerate(model.model.layers):
            expected = block.input_layernorm(states[layer]).double().square().mean((0, 1))
            for name in ("attn_q", "attn_k", "attn_v"):
                np.testing.assert_allclose(measured.inputs[f"blk.{layer}.{name}.weight"], expected, rtol=1e-4)
        head = "token_embd.weight" if family != "qwen2" else "output.weight"
        np.testing.assert_allclose(measured.inputs[head], states[-1].double().square().mean((0, 1)), rtol=1e-4)


def test_the_same_seed_gives_the_same_numbers(tales: Tales, tmp_path: Path) -> None:
    one, _ = measure(tales, "llama", tmp_path / "one", tokens=96)
    other, _ = measure(tales, "llama", tmp_path / "other", tokens=96)
    for part in ("inputs", "rows", "columns"):
        for name, values in getattr(one, part).items():
            np.testing.assert_array_equal(values, getattr(other, part)[name])


# -- what an error costs


def divergence_of(model: PreTrainedModel, changed: PreTrainedModel, ids: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence per token of the changed model."""
    import torch

    with torch.no_grad():
        expected, given = (one(ids).logits.double().log_softmax(-1) for one in (model, changed))
        return float((expected.exp() * (expected - given)).sum(-1).mean())


PLACES = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.self_attn.v_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.embed_tokens.weight",
]


@pytest.mark.parametrize("name", PLACES)
def test_predicted_divergence_is_what_random_errors_bring(tales: Tales, tmp_path: Path, name: str) -> None:
    """Over several draws of a small error in one weight. The estimate has 16 windows of 32 tokens to go by."""
    import torch

    measured, _ = measure(tales, "llama", tmp_path)
    model, changed = (loading.load(tales.torch("llama").path) for _ in range(2))
    ids = windows(tales)
    own = gguf_names.to_gguf(name)
    assert own is not None
    weight, exact = changed.get_parameter(name), model.get_parameter(name).detach()
    found, predicted = [], []
    for seed in range(6):
        error = 0.02 * exact.std() * torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed))
        weight.data = exact + error
        found.append(divergence_of(model, changed, ids))
        rows = error.numpy()
        predicted.append(measured.error_cost(own, gguf_names.paired(rows, 16) if gguf_names.is_turned(name) else rows))
    assert 0.5 < sum(predicted) / sum(found) < 2


def test_rows_stand_in_the_files_order(tales: Tales, tmp_path: Path) -> None:
    """An error in one row of the queries at a time: what is predicted goes with what it really costs, row by row."""
    import torch

    measured, _ = measure(tales, "llama", tmp_path)
    model, changed = (loading.load(tales.torch("llama").path) for _ in range(2))
    ids, name = windows(tales), "model.layers.0.self_attn.q_proj.weight"
    weight, exact = changed.get_parameter(name), model.get_parameter(name).detach()
    found, predicted, misplaced = [], [], []
    for row in range(0, 64, 2):
        error = torch.zeros_like(exact)
        error[row] = 0.1 * exact.std() * torch.randn(64, generator=torch.Generator().manual_seed(row))
        weight.data = exact + error
        found.append(divergence_of(model, changed, ids))
        predicted.append(measured.error_cost("blk.0.attn_q.weight", gguf_names.paired(error.numpy(), 16)))
        misplaced.append(measured.error_cost("blk.0.attn_q.weight", error.numpy()))
    right, wrong = (float(np.corrcoef(np.log(found), np.log(one))[0, 1]) for one in (predicted, misplaced))
    assert right > 0.6
    assert right > wrong + 0.2


def test_the_cost_of_rows_adds_up(tales: Tales, tmp_path: Path) -> None:
    measured, _ = measure(tales, "llama", tmp_path, tokens=64)
    error = np.random.RandomState(0).randn(352, 64).astype(np.float32)
    name = "token_embd.weight"
    whole = measured.error_cost(name, error)
    parts = sum(measured.error_cost(name, error[at : at + 100], first_row=at) for at in range(0, 352, 100))
    assert parts == pytest.approx(whole, rel=1e-5)
    rows, columns = measured.rows[name].astype(float), measured.columns[name].astype(float)
    expected = 0.5 * float((np.outer(rows, columns) / rows.sum() * error.astype(float) ** 2).sum())
    assert whole == pytest.approx(expected, rel=1e-4)
    assert measured.error_cost(name, 2 * error) == pytest.approx(4 * whole, rel=1e-5)


# -- too little text


@dataclass
class Shorter:
    """Data of one window that is not full."""

    data: Any
    interface: Interface = field(init=False)

    def __post_init__(self) -> None:
        given = self.data.interface
        self.interface = replace(given, tokens=Tokens(given.text.vocabulary_size, 64, given.text.pad_id))

    def size(self, split: str) -> int:
        return 1

    def batch(self, split: str, indices: Sequence[int]) -> Any:
        return self.data.batch(split, indices)


def test_text_shorter_than_one_window_is_an_error(
    tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Artifact = tales.torch("llama")
    job = replace(tales.job(tmp_path), model=model.path)
    monkeypatch.setattr(type(tales.task), "open", lambda self, folder=None: Shorter(tales.data))
    with pytest.raises(DataError, match="has 32 tokens, less than one window of 64"):
        Importance(tokens=10).run({"model": model}, job)


def test_less_text_than_asked_is_a_warning(tales: Tales, tmp_path: Path) -> None:
    _, facts = measure(tales, "llama", tmp_path, tokens=10**6)
    assert facts["windows"] == tales.data.size("train")
    assert facts["gradient_windows"] == 16
    (warning,) = facts["warnings"]
    assert f"{facts['tokens']:,} tokens, fewer than the 1,000,000 asked" in warning
