"""Training language models: against a plain loop, in pieces, killed, mixed, with adapters, on own words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.seeds import derive
from edgeforge.core.task import NO_LABEL, model_inputs
from edgeforge.losses import Loss
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.hidden_states import HiddenStates
from edgeforge.losses.jensen_shannon import JensenShannon
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.models import loading
from edgeforge.stages.distill import Distill
from edgeforge.stages.finetune import Finetune
from edgeforge.store import CHECKPOINT
from edgeforge.teachers.model import Model
from edgeforge.training import loop
from edgeforge.training.adapters import Lora
from edgeforge.training.mixture import Mix, Mixture
from edgeforge.training.objective import Trainee
from edgeforge.training.on_policy import OnPolicy
from edgeforge.training.recipe import Recipe, Recovery
from edgeforge.training.sampling import Sampling, write

if TYPE_CHECKING:
    from conftest import Tales
    from transformers import PreTrainedModel

CPU = torch.device("cpu")
BOTH = (HardLabels(weight=0.2), SoftTargets(weight=0.8, temperature=1))


class Stopped(Exception):
    pass


def student(tales: Tales) -> PreTrainedModel:
    return loading.load(tales.torch("llama").path)


def train(
    tales: Tales,
    folder: Path,
    recipe: Recipe,
    *,
    losses: tuple[Loss, ...] = (HardLabels(),),
    data: Any = None,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    model = student(tales)
    teacher = None
    if any(loss.needs_teacher for loss in losses):
        teacher = Model().open({"teacher": tales.torch("mistral")}, CPU, tales.data)
    facts = loop.fit(Trainee(model, losses, teacher), recipe, data=data or tales.data, job=tales.job(folder))
    return {name: value.clone() for name, value in model.state_dict().items()}, facts


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=5e-5, msg=name)


class Uneven:
    """The tales with most labels of some windows taken away, as in chats of which only answers are learnt."""

    def __init__(self, tales: Tales) -> None:
        self.whole, self.interface = tales.data, tales.data.interface

    def size(self, split: Any) -> int:
        return self.whole.size(split)

    def batch(self, split: Any, indices: Any, *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        batch = self.whole.batch(split, indices)
        for row, index in enumerate(indices):
            batch["labels"][row, : 8 * (index % 4)] = NO_LABEL
        return batch


def test_same_weights_as_a_plain_torch_loop(tales: Tales, tmp_path: Path) -> None:
    plain_recipe: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0, "schedule": "constant", "warmup": 0}
    recipe = Recipe(steps=4, batch_size=6, learning_rate=0.01, precision="float32", **plain_recipe)
    trained, _ = train(tales, tmp_path, recipe, losses=BOTH, data=Uneven(tales))
    model, teacher = student(tales).train(), loading.load(tales.torch("mistral").path)
    plain = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(derive(0, "order", 0))
    order = torch.randperm(tales.data.size("train"), generator=generator).tolist()
    for step in range(4):
        batch = Uneven(tales).batch("train", order[6 * step : 6 * step + 6])
        logits = model(**model_inputs(batch)).logits
        with torch.no_grad():
            wanted = teacher(**model_inputs(batch)).logits.softmax(-1)
        kept = batch["labels"] != NO_LABEL
        hard = torch.nn.functional.cross_entropy(logits[kept], batch["labels"][kept])
        soft = (wanted * (wanted.log() - logits.log_softmax(-1))).sum(-1)[kept].mean()
        plain.zero_grad()
        (0.2 * hard + 0.8 * soft).backward()
        plain.step()
    close(dict(model.state_dict()), trained)


def test_every_token_counts_the_same_in_whichever_piece(tales: Tales, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"steps": 3, "batch_size": 12, "precision": "float32", "optimizer": "sgd"}
    data = Uneven(tales)
    whole, facts = train(tales, tmp_path / "a", Recipe(**fields), losses=BOTH, data=data)
    pieces, facts_too = train(tales, tmp_path / "b", Recipe(**fields, accumulate=4), losses=BOTH, data=data)
    close(whole, pieces)
    assert facts["history"]["loss"] == pytest.approx(facts_too["history"]["loss"], rel=1e-4)


def test_projections_and_validation_work_on_windows(tales: Tales, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=3e-3, keep="best")
    trained, facts = train(tales, tmp_path, recipe, losses=(HardLabels(), HiddenStates(layers="evenly_spaced")))
    assert trained.keys() == student(tales).state_dict().keys()
    assert len(facts["history"]["validation"]) == 2
    assert facts["history"]["loss"][1] < facts["history"]["loss"][0]


@pytest.mark.parametrize(
    "fields",
    [
        {"on_policy": OnPolicy(share=0.5, prompt_tokens=8, max_new_tokens=6, top_p=0.9)},
        {"lora": Lora(rank=2, alpha=4, dropout=0.1), "ema": 0.8},
        {"lora": Lora(rank=2), "keep": "best"},
    ],
    ids=["on_policy", "lora", "lora-best"],
)
def test_interrupted_it_ends_in_the_same_bits(
    fields: dict[str, Any], tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recovery(steps=14, batch_size=4, learning_rate=1e-2, checkpoint_seconds=0, **fields)
    whole, facts = train(tales, tmp_path / "whole", recipe, losses=BOTH)
    step_of = loop._Training._step

    def stops(self: Any, step: int) -> torch.Tensor:
        if step == 12:
            raise Stopped
        return step_of(self, step)

    monkeypatch.setattr(loop._Training, "_step", stops)
    with pytest.raises(Stopped):
        train(tales, tmp_path / "cut", recipe, losses=BOTH)
    assert [path.name for path in (tmp_path / "cut" / CHECKPOINT).iterdir()] == ["step-000000010"]
    monkeypatch.setattr(loop._Training, "_step", step_of)
    went_on, facts_too = train(tales, tmp_path / "cut", recipe, losses=BOTH)
    assert equal(whole, went_on)
    assert facts == facts_too
    assert not equal(whole, dict(student(tales).state_dict()))


# -- adapters


def test_merged_the_model_is_the_adapted_one(tales: Tales) -> None:
    model, batch = student(tales), model_inputs(tales.data.batch("test", range(4)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        plain = model(**batch).logits
    adapters = Lora(rank=3, alpha=6).attach(model)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, plain), "they begin without effect"
        for name, value in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.1)
        adapted = model(**batch).logits
        adapters.merge()
        merged = model(**batch).logits
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert model.state_dict().keys() == before.keys()
    assert all(value.requires_grad for value in model.parameters())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_adapters_without_effect_leave_every_bit(tales: Tales) -> None:
    model = student(tales)
    Lora(rank=3).attach(model).merge()
    assert equal(dict(model.state_dict()), dict(student(tales).state_dict()))


def test_only_adapters_train_and_only_they_are_in_checkpoints(
    tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(
        steps=11, batch_size=4, lora=Lora(rank=2, targets=("q_proj", "1.mlp.up_proj")), checkpoint_seconds=0
    )
    trained, _ = train(tales, tmp_path / "whole", recipe)
    before = student(tales).state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    queries = {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)}
    assert changed == {*queries, "model.layers.1.mlp.up_proj.weight"}
    step_of = loop._Training._step
    monkeypatch.setattr(loop._Training, "_step", lambda self, step: stop() if step == 10 else step_of(self, step))
    with pytest.raises(Stopped):
        train(tales, tmp_path / "cut", recipe)
    (kept,) = (tmp_path / "cut" / CHECKPOINT).iterdir()
    names = set(load_file(kept / "trainee.safetensors"))
    assert len(names) == 8
    assert all(".lora_" in name for name in names)


def stop() -> torch.Tensor:
    raise Stopped


def test_the_change_has_the_rank_that_was_asked_for(tales: Tales, tmp_path: Path) -> None:
    recipe = Recipe(steps=6, batch_size=8, learning_rate=0.03, lora=Lora(rank=2, targets=("o_proj",)))
    trained, _ = train(tales, tmp_path, recipe)
    name = "model.layers.0.self_attn.o_proj.weight"
    change = (trained[name] - student(tales).state_dict()[name]).double()
    values = torch.linalg.svdvals(change)
    assert values[1] > 1e-3
    assert values[2] < 1e-5


def test_targets_that_are_none_or_shared_are_refused_at_the_rehearsal(tales: Tales) -> None:
    with pytest.raises(ModelError, match=r"ends in 'qproj'(.|\n)*q_proj"):
        Finetune(lora=Lora(targets=("qproj",))).rehearse(student(tales), tales.task)
    with pytest.raises(ModelError, match="shares its weights"):
        Finetune(lora=Lora(targets=("lm_head",))).rehearse(student(tales), tales.task)
    Finetune(lora=Lora(targets=("q_proj",))).rehearse(student(tales), tales.task)


def test_a_stage_with_adapters_writes_a_plain_model(tales: Tales, tmp_path: Path) -> None:
    stage = Finetune(steps=3, batch_size=4, lora=Lora(rank=2))
    job = tales.job(tmp_path)
    facts = stage.run({"model": tales.torch("llama")}, job)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(load_file(tales.torch("llama").path / "model.safetensors"))
    assert not (tmp_path / "adapter_config.json").exists()
    assert facts["params"] == sum(value.numel() for value in student(tales).parameters())


# -- the student's own words


def test_own_words_follow_the_beginning_of_each_window(tales: Tales) -> None:
    batch, spec = tales.data.batch("train", range(3)), OnPolicy(prompt_tokens=5, max_new_tokens=4)
    found = spec.rewritten(batch, student(tales), seed=1)
    assert torch.equal(found["input_ids"][:, :5], batch["input_ids"][:, :5])
    assert found["input_ids"].shape == found["labels"].shape == (3, 9)
    assert (found["labels"][:, :4] == NO_LABEL).all() and (found["labels"][:, 8] == NO_LABEL).all()
    assert torch.equal(found["labels"][:, 4:8], found["input_ids"][:, 5:])
    again, other = (spec.rewritten(batch, student(tales), seed=seed) for seed in (1, 2))
    assert torch.equal(found["input_ids"], again["input_ids"])
    assert not torch.equal(found["input_ids"], other["input_ids"])
    whole = OnPolicy(prompt_tokens=500).rewritten(batch, student(tales), seed=1)
    assert whole["input_ids"].shape == (3, 32)


def test_so_many_steps_are_the_students_and_the_teacher_alone_judges_them(
    tales: Tales, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = OnPolicy(share=0.3)
    assert sum(spec.applies(0, step) for step in range(4000)) == pytest.approx(1200, abs=100)
    asked: list[tuple[str, int]] = []
    for loss in (HardLabels, JensenShannon):
        compute = loss.compute

        def counting(self: Any, student: Any, *rest: Any, compute: Any = compute) -> Any:
            asked.append((self.kind, student.logits.shape[1]))
            return compute(self, student, *rest)

        monkeypatch.setattr(loss, "compute", counting)
    recipe = Recovery(steps=6, batch_size=4, on_policy=OnPolicy(share=0.5, prompt_tokens=8, max_new_tokens=4))
    train(tales, tmp_path, recipe, losses=(HardLabels(), JensenShannon()))
    own = sum(recipe.on_policy.applies(0, step) for step in range(6))  # type: ignore[union-attr]
    assert 0 < own < 6
    assert asked.count(("jensen_shannon", 12)) == own
    assert asked.count(("jensen_shannon", 32)) == asked.count(("hard_labels", 32)) == 6 - own
    assert ("hard_labels", 12) not in asked


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"losses": ["hard_labels"]}, "nobody judges"),
        ({"losses": ["reverse_kl"], "teacher": {"kind": "cached", "top_k": 8}}, "before the student wrote"),
    ],
)
def test_own_words_that_nobody_can_judge_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(IncompatiblePlanError, match=said):
        Distill.model_validate({"kind": "distill", "on_policy": {"share": 0.5}, **fields}).check()


def test_what_only_language_models_do_is_refused_for_others(digits: Any) -> None:
    model = loading.load(digits.torch("resnet").path)
    stages = [Finetune(on_policy=OnPolicy()), Finetune(mix=Mix(stage="generate"))]
    for stage, where in zip(stages, ("on_policy", "mix"), strict=True):
        with pytest.raises(IncompatiblePlanError, match="only a language model") as caught:
            stage.rehearse(model, digits.task)
        assert caught.value.where == where


# -- sampling


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_at_temperature_zero_it_writes_what_the_library_does(family: str, tales: Tales) -> None:
    """Prompts of different lengths at once, so that one is padded, against each alone."""
    model = loading.load(tales.torch(family).path)
    ids = tales.data.batch("test", range(3))["input_ids"]
    prompts = [ids[0, :9].tolist(), ids[1, :3].tolist(), ids[2, :6].tolist()]
    with torch.no_grad():
        found = write(model, prompts, Sampling(temperature=0), tokens=8, generator=torch.Generator())
    for prompt, written in zip(prompts, found, strict=True):
        asked = torch.tensor([prompt])
        mask = torch.ones_like(asked)
        model.generation_config.eos_token_id = None
        wanted = model.generate(input_ids=asked, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert written == wanted[0, len(prompt) :].tolist()


def test_a_text_ends_with_the_token_that_ends_it(tales: Tales) -> None:
    model, prompt = student(tales), tales.data.batch("test", [0])["input_ids"][0, :5].tolist()
    with torch.no_grad():
        long = write(model, [prompt, prompt[:3]], Sampling(temperature=0), tokens=6, generator=torch.Generator())
        ends = frozenset({long[0][2]})
        found = write(
            model, [prompt, prompt[:3]], Sampling(temperature=0), tokens=6, ends=ends, generator=torch.Generator()
        )
    assert found[0] == long[0][: long[0].index(long[0][2]) + 1]
    assert found[1] == long[1] or found[1][-1] in ends


def test_draws_follow_the_distribution_and_its_nucleus() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)
    for sampling, kept in (
        (Sampling(temperature=2), 4),
        (Sampling(temperature=0.7, top_p=0.85), 2),
        (Sampling(top_p=0.01), 1),
    ):
        p = (logits[0] / sampling.temperature).softmax(0)
        p = torch.where(torch.arange(4) < kept, p, 0) / p[:kept].sum()
        drawn = torch.bincount(sampling.draw(logits, generator), minlength=4) / len(logits)
        torch.testing.assert_close(drawn, p, atol=0.012, rtol=0)


# -- mixing


class Part:
    def __init__(self, size: int, name: int) -> None:
        self.count, self.name = size, name

    interface = None

    def size(self, split: str) -> int:
        return self.count

    def batch(self, split: str, indices: Any, *, augment_seed: int | None = None) -> dict[str, torch.Tensor]:
        rows = torch.tensor(list(indices))
        return {"rows": rows, "input_ids": torch.stack([torch.full_like(rows, self.name), rows], dim=1)}


@pytest.mark.parametrize(
    ("own", "written", "share"), [(100, 7, 0.25), (10, 90, 0.5), (30, 30, 0.5), (50, 9, 1.0), (3, 1, 0.9)]
)
def test_both_parts_have_their_share_and_all_is_used(own: int, written: int, share: float) -> None:
    mixture = Mixture(Part(own, 0), Part(written, 1), share)  # type: ignore[arg-type]
    epoch = mixture.one_pass("train")
    others = [index for index in epoch if index >= own]
    assert len(others) / len(epoch) == pytest.approx(share, abs=1 / len(epoch))
    assert set(others) == set(range(own, own + written))
    if share < 1:
        assert set(epoch) - set(others) == set(range(own))
    assert min(own, written) > 0 and (len(set(epoch)) == len(epoch)) == (own == written == 30 or share == 1.0)


def test_a_batch_of_both_is_in_order() -> None:
    mixture = Mixture(Part(4, 0), Part(3, 1), 0.5)  # type: ignore[arg-type]
    batch = mixture.batch("train", [5, 0, 4, 3, 0])
    assert batch["rows"].tolist() == [5, 0, 4, 3, 0]
    assert batch["input_ids"].tolist() == [[1, 1], [0, 0], [1, 0], [0, 3], [0, 0]]
    assert (mixture.size("train"), mixture.size("transfer"), mixture.size("test")) == (7, 7, 4)
