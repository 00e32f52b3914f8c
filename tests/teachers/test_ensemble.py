"""An ensemble as the teacher: the mean of probabilities by hand, what is read, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from edgeforge.core.errors import EdgeForgeError, IncompatiblePlanError, ModelError
from edgeforge.core.task import model_inputs
from edgeforge.models import loading
from edgeforge.pipeline import Pipeline
from edgeforge.plan import Plan, build
from edgeforge.teachers._mean import mean_as_logits
from edgeforge.teachers.cached import write_answers
from edgeforge.teachers.ensemble import Ensemble
from edgeforge.teachers.model import Model

if TYPE_CHECKING:
    from conftest import Digits, Mails

CPU = torch.device("cpu")
RESNET = {"kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
STEPS = {"steps": 12, "batch_size": 32}
MODEL = {"kind": "model"}
LIVE = {"kind": "model", "stage": "train"}
KEPT = {"kind": "cached", "stage": "train"}


def ensemble(*members: Any, **fields: Any) -> dict[str, Any]:
    return {"kind": "ensemble", "members": list(members or (MODEL, LIVE)), **fields}


def distill(teacher: Any, **fields: Any) -> dict[str, Any]:
    return {"kind": "distill", "student": {"kind": "width", "multiple": 0.5}, "teacher": teacher, **STEPS, **fields}


def plan_of(*stages: dict[str, Any], task: Any = "image_classification") -> Plan:
    said = {"name": "test", "task": task, "model": RESNET, "stages": [{"kind": "train", **STEPS}, *stages]}
    return build(Pipeline.model_validate(said))


# -- the mean


def test_it_is_the_weighted_mean_of_probabilities() -> None:
    """1/4 of (0.5, 0.5) and 3/4 of (0.9, 0.1) is (0.8, 0.2)."""
    even, sure = torch.zeros(1, 2), torch.tensor([[9.0, 1.0]]).log()
    found = mean_as_logits([even + 7, sure], [0.25, 0.75])
    torch.testing.assert_close(found.exp(), torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close((found / 2).softmax(dim=1), torch.tensor([[2 / 3, 1 / 3]]), msg="sqrt(0.8) : sqrt(0.2)")


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 7)])
def test_it_agrees_with_numpy_for_samples_and_tokens(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    logits, shares = generator.normal(size=(3, *shape), scale=5), np.array([0.2, 0.5, 0.3])
    powers = np.exp(logits)
    expected = np.tensordot(shares, powers / powers.sum(axis=-1, keepdims=True), axes=1)
    found = mean_as_logits([torch.from_numpy(one).to(torch.float32) for one in logits], shares.tolist())
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-5)


def test_certainty_beyond_float32_leaves_numbers() -> None:
    found = mean_as_logits([torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 0.0]]).bfloat16()], [0.5, 0.5])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp(), torch.tensor([[0.75, 0.25]]))
    both = mean_as_logits([torch.tensor([[1e4, 0.0]])] * 2, [0.5, 0.5])
    torch.testing.assert_close(both.softmax(dim=1), torch.tensor([[1.0, 0.0]]))


def test_members_for_other_labels_are_refused() -> None:
    with pytest.raises(ModelError, match=r"teacher.members\[1\]: it answers for 3 labels or tokens, and the first.* 4"):
        mean_as_logits([torch.zeros(1, 4), torch.zeros(1, 3)], [0.5, 0.5])


# -- models and what was kept of them


def test_it_asks_every_member_and_weighs_it(digits: Digits, tmp_path: Path) -> None:
    rows = [3, 700, 11]
    batch = digits.data.batch("transfer", rows)
    kept = torch.randn(digits.data.size("transfer"), 10, generator=torch.Generator().manual_seed(0))
    write_answers(kept, tmp_path)
    spec = Ensemble.model_validate(ensemble(MODEL, {"kind": "cached"}, MODEL, weights=[1, 2, 5]))
    inputs = {
        "model": digits.torch("convnext"),
        "teacher.members[0]": digits.torch("vit"),
        "teacher.members[1]": digits.torch("resnet"),
        "logits.members[1]": digits.artifact(tmp_path, "logits"),
        "teacher.members[2]": digits.torch("resnet"),
    }
    found = spec.open(inputs, CPU, digits.data)(batch, frozenset()).logits
    with torch.no_grad():
        vit, resnet = (
            loading.load(digits.torch(family).path)(**model_inputs(batch)).logits.double().softmax(dim=1)
            for family in ("vit", "resnet")
        )
    expected = (vit + 2 * kept[rows].double().softmax(dim=1) + 5 * resnet) / 8
    torch.testing.assert_close(found.double().exp(), expected, rtol=1e-4, atol=1e-6)
    assert not found.requires_grad


def test_only_cached_members_are_asked_beforehand() -> None:
    plan = plan_of(distill("model", name="small"), distill(ensemble(MODEL, KEPT, LIVE)))
    assert plan.step("distill").inputs == {
        "model": "small",
        "teacher.members[0]": "small",
        "teacher.members[1]": "train",
        "teacher.members[2]": "train",
        "logits.members[1]": "train.cache",
    }
    assert [step.name for step in plan.steps if step.stage.kind == "cache"] == ["train.cache"]
    recovered = {**STEPS, "losses": ["soft_targets"], "teacher": ensemble(MODEL, KEPT)}
    prune = {"kind": "prune", "structure": {"kind": "channels", "ratio": 0.25}, "recover": recovered}
    inputs = plan_of({"kind": "train", "name": "more", **STEPS}, prune).step("prune.recover").inputs
    assert (inputs["teacher.members[0]"], inputs["teacher.members[1]"]) == ("more", "train")
    assert inputs["logits.members[1]"] == "train.cache"


def test_weights_and_their_order_are_part_of_the_key() -> None:
    def key(**fields: Any) -> str:
        return plan_of(distill(ensemble(MODEL, KEPT, **fields))).step("distill").key

    assert key() == key(weights=[3, 3])
    assert len({key(), key(weights=[1, 2]), key(weights=[2, 1])}) == 3
    plain = plan_of(distill(MODEL)).step("distill").key
    assert plain == plan_of(distill(LIVE)).step("distill").key, "other teachers are known by what they read"


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"members": [MODEL]}, "at least 2"),
        ({"members": [MODEL, LIVE], "weights": [1, 2, 3]}, "2 members and 3 weights"),
        ({"members": [MODEL, LIVE], "weights": [1, 0]}, "greater than 0"),
        ({"members": [MODEL, ensemble()]}, "unknown kind 'ensemble'"),
    ],
)
def test_what_is_no_ensemble(fields: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Ensemble.model_validate({"kind": "ensemble", **fields})


PROGRAM = {"kind": "program", "function": "lessons:teach"}
TOP = {"kind": "cached", "top_k": 5}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            distill(ensemble(), losses=["soft_targets", "hidden_states"]),
            r"`hidden_states` reads the teacher's layers, and an `ensemble` answers with the mean.*\n.*teacher: model",
        ),
        (distill(ensemble(MODEL, "ema")), r"teacher.members\[1\]: `ema` reads no model(.|\n)*kind: cached"),
        (distill(ensemble(PROGRAM, MODEL)), r"teacher.members\[0\]: `program` reads no model"),
        (distill(ensemble(MODEL, TOP)), r"teacher.members\[1\].top_k: `top_k` keeps other tokens(.|\n)*kind: model"),
        (distill(ensemble(MODEL, {"kind": "model", "stage": "trian"})), r"teacher.members\[1\]: .* named 'trian'"),
        (distill(ensemble(), losses=["hard_labels"]), "a teacher is named, but no loss asks"),
        (distill(ensemble(MODEL, KEPT), on_policy={}), "`ensemble` teacher answered before the student wrote"),
        ({"kind": "generate", "teacher": ensemble()}, "a `ensemble` teacher cannot write"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(IncompatiblePlanError, match=message):
        plan_of(stage)


def test_augmented_images_want_live_members() -> None:
    task = {"kind": "image_classification", "augment": {"flip": True}}
    plan_of(distill(ensemble()), task=task)
    with pytest.raises(IncompatiblePlanError, match=r"stages\[1\].teacher.members\[1\]: a cached teacher"):
        plan_of(distill(ensemble(MODEL, KEPT)), task=task)


def test_a_member_that_reads_texts_otherwise_is_refused_before_any_work(mails: Mails, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, normalizers

    loading.save(loading.load(mails.torch("bert").path), tmp_path, tokenizer_from=mails.torch("bert").path)
    spec = {"kind": "model", "model": {"kind": "pretrained", "path": str(tmp_path)}}
    teacher = Ensemble.model_validate(ensemble(MODEL, spec))
    teacher.check_data(mails.data)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"teacher.members\[1\]: .* different tokenizers: their normalizer differs\n"):
        teacher.check_data(mails.data)
    with pytest.raises(EdgeForgeError, match="different tokenizers"):
        Model.model_validate(spec).open({"teacher": mails.artifact(tmp_path, "torch")}, CPU, mails.data)
