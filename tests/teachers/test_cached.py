"""A cached teacher: what is kept, who shares it, that students are the live teacher's to the bit, what is refused."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator

from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.stage import Job
from edgeforge.core.task import Task, model_inputs
from edgeforge.models import loading
from edgeforge.pipeline import Pipeline
from edgeforge.plan import Plan, build
from edgeforge.run import _Runner
from edgeforge.stages import cache as cache_module
from edgeforge.stages.cache import Cache
from edgeforge.stages.evaluate import Evaluate
from edgeforge.store import CHECKPOINT, Store
from edgeforge.teachers._regular import regular
from edgeforge.teachers.cached import Cached, read_answers, write_answers
from edgeforge.teachers.model import Model
from edgeforge.training import checkpoint

if TYPE_CHECKING:
    from conftest import Digits, Mails

    from edgeforge.core.report import StepResult
    from edgeforge.plan import Step

CPU = torch.device("cpu")
RESNET = {"kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
BERT = {
    "kind": "config",
    "architecture": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
STEPS = {"steps": 12, "batch_size": 32, "learning_rate": 3e-3}


class Watcher:
    def __init__(self) -> None:
        self.results: dict[str, StepResult] = {}

    def started(self, step: Step, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def finished(self, step: Step, result: StepResult) -> None:
        self.results[step.name] = result

    def warn(self, message: str) -> None:
        pass


def pipeline(task: Any, model: dict[str, Any], *stages: dict[str, Any]) -> Pipeline:
    given = task.model_dump(mode="json") if isinstance(task, Task) else task
    return Pipeline.model_validate(
        {"name": "test", "task": given, "model": model, "stages": [{"kind": "train", **STEPS}, *stages]}
    )


def distill(teacher: Any, **fields: Any) -> dict[str, Any]:
    student = {"kind": "width", "multiple": 0.5}
    return {"kind": "distill", "student": student, "teacher": teacher, **STEPS, "precision": "float32", **fields}


def chain(plan: Plan, store: Store) -> dict[str, StepResult]:
    """Do the chain's steps, without the baseline's files."""
    watcher = Watcher()
    runner = _Runner(plan, store, watcher, frozenset())
    for number, step in enumerate(plan.steps, 1):
        if step.row == "chain" and not isinstance(step.stage, Evaluate):
            runner.perform(step, number)
    return watcher.results


def weights(result: StepResult) -> dict[str, torch.Tensor]:
    assert result.artifact is not None
    return dict(loading.load(result.artifact.path).state_dict())


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- the plan


def test_one_step_asks_for_all_students_of_a_teacher(tmp_path: Path) -> None:
    second = {"stage": "train", "kind": "cached"}
    plan = build(pipeline("image_classification", RESNET, distill("cached"), distill(second, name="again")))
    (asked,) = [step for step in plan.steps if isinstance(step.stage, Cache)]
    assert (asked.name, asked.inputs) == ("train.cache", {"model": "train"})
    assert plan.step("distill").inputs == {"model": "train", "teacher": "train", "logits": "train.cache"}
    assert plan.step("again").inputs == {"model": "distill", "teacher": "train", "logits": "train.cache"}
    names = [step.name for step in plan.steps]
    assert names.index("train.cache") < names.index("distill")
    assert "train.cache" not in plan.chain, "what it makes is no model"
    other = build(pipeline("image_classification", RESNET, distill("cached", epochs=3, steps=None, ema=0.9)))
    assert other.step("train.cache").key == asked.key, "another pipeline finds it in the store"
    assert other.step("distill").key != plan.step("distill").key


@pytest.mark.parametrize(
    "change",
    [
        {"stages": {"precision": "bfloat16"}},
        {"task": {"kind": "image_classification", "validation": 0.2}},
        {"model": {**RESNET, "hidden_sizes": [8, 24]}},
    ],
)
def test_what_could_change_an_answer_changes_its_key(change: dict[str, Any]) -> None:
    def key(task: Any = "image_classification", model: Any = RESNET, stages: Any = None) -> str:
        return build(pipeline(task, model, distill("cached", **(stages or {})))).step("train.cache").key

    assert key() != key(**change)
    assert key() == key()


def test_a_live_teacher_and_losses_without_one_bring_no_step_along() -> None:
    for stage in (distill("model"), distill("cached", losses=["hard_labels"])):
        plan = build(pipeline("image_classification", RESNET, stage))
        assert not any(isinstance(step.stage, Cache) for step in plan.steps)
        assert "logits" not in plan.step("distill").inputs


def test_finetuning_and_recovery_take_a_cached_teacher_too() -> None:
    recover = {**STEPS, "losses": ["soft_targets"], "teacher": "cached"}
    prune = {"kind": "prune", "structure": {"kind": "channels", "ratio": 0.25}, "recover": recover}
    plan = build(pipeline("image_classification", RESNET, prune, {"kind": "finetune", **recover}))
    assert plan.step("prune.recover").inputs == {"model": "prune", "teacher": "train", "logits": "train.cache"}
    assert plan.step("finetune").inputs["logits"] == "prune.recover.cache"


def test_losses_on_layers_are_refused_before_any_work() -> None:
    stage = distill("cached", losses=["soft_targets", "hidden_states"])
    with pytest.raises(IncompatiblePlanError, match=r"`hidden_states` reads the teacher's layers(.|\n)*teacher: model"):
        build(pipeline("image_classification", RESNET, stage))
    build(pipeline("image_classification", RESNET, distill("model", losses=["soft_targets", "hidden_states"])))


@pytest.mark.parametrize("augment", [{"crop": 1}, {"flip": True}])
def test_augmented_images_are_refused_before_any_work(augment: dict[str, Any]) -> None:
    task = {"kind": "image_classification", "augment": augment}
    with pytest.raises(IncompatiblePlanError, match=r"stages\[1\].teacher: a cached teacher(.|\n)*teacher: model"):
        build(pipeline(task, RESNET, distill("cached")))
    build(pipeline(task, RESNET, distill("model")))


def test_it_names_its_model_as_a_live_teacher_does() -> None:
    assert Cached().sources() == {"teacher": None}
    assert Cached(stage="train").sources() == {"teacher": "train"}
    with pytest.raises(ValueError, match="either a `stage` or a `model`, not both"):
        Cached.model_validate({"stage": "train", "model": RESNET})


# -- the same student


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_students_are_those_of_the_live_teacher_to_the_bit(
    kind: str, precision: str, mails: Mails, tmp_path: Path
) -> None:
    """Batches of texts are padded to other lengths when they are cached than when a student asks."""
    task, model = ("image_classification", RESNET) if kind == "images" else (mails.task, BERT)
    store = Store(tmp_path / "store")
    live = chain(build(pipeline(task, model, distill("model", precision=precision))), store)
    kept = chain(build(pipeline(task, model, distill("cached", precision=precision))), store)
    assert kept["train"].cached
    assert not kept["distill"].cached
    answers = kept["train.cache"].artifact
    assert answers is not None
    assert answers.facts["max_difference_in_other_batches"] == 0
    assert live["distill"].artifact.key != kept["distill"].artifact.key  # type: ignore[union-attr]
    assert equal(weights(live["distill"]), weights(kept["distill"]))


def test_a_second_student_starts_without_a_teacher_forward(
    mails: Mails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "store")
    chain(build(pipeline(mails.task, BERT, distill("cached"))), store)

    def asked(*_: Any) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(Model, "open", asked)
    other = distill("cached", student={"kind": "layers", "keep": [1]}, learning_rate=1e-3)
    results = chain(build(pipeline(mails.task, BERT, other)), store)
    assert results["train.cache"].cached
    assert not results["distill"].cached
    labels = distill("cached", losses=["hard_labels"], student={"kind": "layers", "keep": [1]}, learning_rate=1e-3)
    untaught = chain(build(pipeline(mails.task, BERT, labels)), store)
    assert not equal(weights(results["distill"]), weights(untaught["distill"])), "the answers must matter"


# -- what is kept


@pytest.fixture
def job(mails: Mails, tmp_path: Path) -> Job:
    folder = tmp_path / "draft"
    folder.mkdir()
    return Job(mails.task, folder, 0, functools.cache(Accelerator), Quiet(), mails.torch("bert").path)


class Quiet:
    """Progress that stops the work after so many updates, as a kill would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after

    def update(self, done: int, total: int, note: str = "") -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def test_every_sample_has_the_teachers_answer_labelled_or_not(mails: Mails, job: Job) -> None:
    facts = Cache().run({"model": mails.torch("bert")}, job)
    kept, model = read_answers(job.folder), loading.load(mails.torch("bert").path)
    batch = mails.data.batch("transfer", range(mails.data.size("transfer")))
    assert (batch["labels"] == -100).any(), "the unlabelled ones are there"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=False):
        torch.testing.assert_close(kept, model(**model_inputs(batch)).logits, rtol=0.02, atol=0.02)
    size = (job.folder / "logits.safetensors").stat().st_size
    assert facts["samples"] == len(kept) == mails.data.size("transfer")
    assert (facts["labels"], facts["bytes_per_sample"], facts["size_bytes"]) == (2, 8, 8 * len(kept))
    assert 0 <= size - facts["size_bytes"] < 256, "nothing else is stored"


def test_answers_in_float32_are_the_models(mails: Mails, job: Job) -> None:
    Cache(precision="float32").run({"model": mails.torch("roberta")}, job)
    model, kept = loading.load(mails.torch("roberta").path), read_answers(job.folder)
    for row in (0, 7, 100):
        with torch.no_grad():  # alone and without padding, which positions counted from the padding must not notice
            alone = model(**model_inputs(mails.data.batch("transfer", [row]))).logits[0]
        torch.testing.assert_close(kept[row], alone)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_step_goes_on(
    stop_after: int, mails: Mails, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": mails.torch("bert")}
    Cache().run(inputs, job)
    undisturbed = read_answers(job.folder)
    monkeypatch.setattr(cache_module, "CHECKPOINT_SECONDS", 0)
    folder = tmp_path / "killed"
    folder.mkdir()
    stopped = Job(job.task, folder, 0, job.make_accelerator, Quiet(stop_after + 1), job.model)
    with pytest.raises(KeyboardInterrupt):
        Cache().run(inputs, stopped)
    found = checkpoint.latest(folder / CHECKPOINT)
    assert found is not None
    assert checkpoint.read_state(found) == {"done": stop_after * cache_module.BATCH}
    assert not (folder / "logits.safetensors").exists()
    asked: list[int] = []
    teacher = Model.open

    def counting(self: Model, *arguments: Any) -> Any:
        answer = teacher(self, *arguments)
        return lambda batch, outputs: asked.extend(batch["rows"].tolist()) or answer(batch, outputs)

    monkeypatch.setattr(Model, "open", counting)
    Cache().run(inputs, Job(job.task, folder, 0, job.make_accelerator, Quiet(), job.model))
    assert torch.equal(read_answers(folder), undisturbed)
    compared = min(cache_module.COMPARED, len(undisturbed))
    assert len(asked) == len(undisturbed) - stop_after * cache_module.BATCH + compared


def test_a_teacher_that_answers_no_numbers_is_refused(mails: Mails, job: Job, tmp_path: Path) -> None:
    model = loading.load(mails.torch("bert").path)
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    loading.save(model, tmp_path / "broken", tokenizer_from=mails.torch("bert").path)
    with pytest.raises(ModelError, match="not all numbers"):
        Cache().run({"model": artifact(tmp_path / "broken", "torch")}, job)


def artifact(folder: Path, format: str) -> Artifact:
    files = hash_folder(folder)
    return Artifact(folder.name, "", format, folder, digest_files(files), files, {}, {})


# -- reading it


def test_answers_are_looked_up_by_row(digits: Digits, tmp_path: Path) -> None:
    table = torch.randn(digits.data.size("transfer"), 10, generator=torch.Generator().manual_seed(0))
    write_answers(table, tmp_path)
    teacher = Cached().open({"logits": artifact(tmp_path, "logits")}, CPU, digits.data)
    batch = digits.data.batch("transfer", [5, 900, 5, 0])
    assert torch.equal(teacher(batch, frozenset()).logits, table[[5, 900, 5, 0]])
    with pytest.raises(ModelError, match="keeps no hidden_states"):
        teacher(batch, frozenset({"hidden_states"}))


def test_answers_about_other_data_are_refused(digits: Digits, tmp_path: Path) -> None:
    write_answers(torch.zeros(digits.data.size("transfer") - 1, 10), tmp_path)
    with pytest.raises(ModelError, match="the data changed"):
        Cached().open({"logits": artifact(tmp_path, "logits")}, CPU, digits.data)


# -- a sample's answer does not hang on its company


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta"])
def test_a_texts_answer_is_the_same_in_every_batch(family: str, precision: str, mails: Mails) -> None:
    teacher = Model().open({"teacher": mails.torch(family)}, CPU, mails.data)
    assert same_in_every_batch(teacher, mails.data, precision)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_images_answer_is_the_same_in_every_batch(family: str, precision: str, digits: Digits) -> None:
    teacher = Model().open({"teacher": digits.torch(family)}, CPU, digits.data)
    assert same_in_every_batch(teacher, digits.data, precision)


def same_in_every_batch(teacher: Any, data: Any, precision: str) -> bool:
    def ask(rows: Sequence[int]) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            return teacher(data.batch("transfer", rows), frozenset()).logits.float()  # type: ignore[no-any-return]

    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    reference = torch.empty(96, len(data.interface.labels))
    for rows in order.split(32):
        reference[rows] = ask(rows.tolist())
    parts = [order.sort().values.split(size) for size in (96, 24, 7)] + [torch.arange(9).split(1)]
    return all(torch.equal(ask(rows.tolist()), reference[rows]) for part in parts for rows in part)


def test_regular_batches(mails: Mails, digits: Digits) -> None:
    batch = mails.data.batch("transfer", [0, 1, 2])
    length = batch["input_ids"].shape[1]
    wide = regular(batch, mails.data.interface)
    assert wide["input_ids"].shape == wide["attention_mask"].shape == (16, 16)
    assert wide["input_ids"][:3, :length].equal(batch["input_ids"])
    assert (wide["input_ids"][:, length:] == mails.data.interface.text.pad_id).all()
    assert not wide["attention_mask"][:, length:].any()
    assert wide["input_ids"][3:].eq(wide["input_ids"][2]).all()
    images = digits.data.batch("transfer", range(20))
    assert regular(images, digits.data.interface)["pixel_values"].equal(images["pixel_values"])


def test_texts_are_never_padded_beyond_what_a_model_takes(mails: Mails) -> None:
    task = mails.task.model_copy(update={"max_length": 10})
    data = task.open(mails.torch("bert").path)
    assert regular(data.batch("transfer", range(40)), data.interface)["input_ids"].shape == (40, 10)


def test_reading_the_spec_imports_nothing_heavy() -> None:
    script = (
        "import sys, json; from edgeforge.stages.cache import Cache; Cache(); print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "accelerate"} & set(json.loads(done.stdout))
