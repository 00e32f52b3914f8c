"""A cached teacher of augmented images: what student and teacher see is the same, in every epoch and after a kill."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator

from edgeforge.core.artifact import Artifact, digest_files, hash_folder
from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.seeds import derive, of_view
from edgeforge.core.stage import Job
from edgeforge.core.task import model_inputs
from edgeforge.models import loading
from edgeforge.pipeline import Pipeline
from edgeforge.plan import Plan, build
from edgeforge.run import _Runner
from edgeforge.stages import cache as cache_module
from edgeforge.stages.cache import Cache
from edgeforge.stages.distill import Distill
from edgeforge.stages.evaluate import Evaluate
from edgeforge.store import Store
from edgeforge.tasks.image_classification import Augment, ImageClassification
from edgeforge.teachers import Request, cached
from edgeforge.teachers.cached import Cached, read_answers, write_answers
from edgeforge.teachers.ensemble import Ensemble
from edgeforge.teachers.model import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conftest import Digits, Mails

    from edgeforge.core.report import StepResult
    from edgeforge.plan import Step

CPU = torch.device("cpu")
AUGMENT = {"crop": 1, "flip": True}
TASK: dict[str, Any] = {"kind": "image_classification", "augment": AUGMENT}
RESNET = {"kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
RECIPE = {"batch_size": 256, "learning_rate": 3e-3}
VIEWS = 2


def pipeline(*stages: dict[str, Any], task: Any = TASK, seed: int = 0) -> Pipeline:
    train = {"kind": "train", "steps": 3, **RECIPE}
    return Pipeline.model_validate(
        {"name": "test", "task": task, "model": RESNET, "seed": seed, "stages": [train, *stages]}
    )


def distill(teacher: Any, **fields: Any) -> dict[str, Any]:
    student = {"kind": "width", "multiple": 0.5}
    return {"kind": "distill", "student": student, "teacher": teacher, "epochs": VIEWS, **RECIPE, **fields}


def kept(views: int = VIEWS) -> dict[str, Any]:
    return {"kind": "cached", "views": views}


class Quiet:
    """Progress that stops the work after so many updates, as a kill would."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after
        self.results: dict[str, StepResult] = {}

    def started(self, step: Step, number: int, of: int) -> None:
        pass

    def update(self, done: int, total: int, note: str = "") -> None:
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    def finished(self, step: Step, result: StepResult) -> None:
        self.results[step.name] = result

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def chain(plan: Plan, store: Store) -> dict[str, StepResult]:
    """Do the chain's steps, without the baseline's files."""
    watcher = Quiet()
    runner = _Runner(plan, store, watcher, frozenset())
    for number, step in enumerate(plan.steps, 1):
        if step.row == "chain" and not isinstance(step.stage, Evaluate):
            runner.perform(step, number)
    return watcher.results


def weights(result: StepResult | Path) -> dict[str, torch.Tensor]:
    if isinstance(result, Path):
        return dict(loading.load(result).state_dict())
    assert result.artifact is not None
    return weights(result.artifact.path)


def equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def artifact(folder: Path, format: str) -> Artifact:
    files = hash_folder(folder)
    return Artifact(folder.name, "", format, folder, digest_files(files), files, {}, {})


@pytest.fixture
def augmented() -> ImageClassification:
    return ImageClassification(augment=Augment(crop=1, flip=True))


def job(task: ImageClassification, folder: Path, stop_after: int | None = None) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    return Job(task, folder, 0, functools.cache(Accelerator), Quiet(stop_after))


# -- the plan


def test_what_could_change_a_view_makes_a_new_cache() -> None:
    def key(teacher: Any = None, augment: Any = None, seed: int = 0) -> str:
        task = {**TASK, "augment": augment or AUGMENT}
        return build(pipeline(distill(teacher or kept()), task=task, seed=seed)).step("train.cache").key

    keys = [key(), key(kept(3)), key(augment={"crop": 2, "flip": True}), key(augment={"crop": 1}), key(seed=1)]
    assert len(set(keys)) == len(keys)
    assert key() == key()


def test_views_are_for_augmented_images() -> None:
    with pytest.raises(IncompatiblePlanError, match=r"changes them(.|\n)*{kind: cached, views: 8}"):
        build(pipeline(distill("cached")))
    with pytest.raises(IncompatiblePlanError, match=r"stages\[1\].teacher.views: `views` are augmented(.|\n)*leave"):
        build(pipeline(distill(kept()), task="image_classification"))


def test_texts_have_no_views(mails: Mails) -> None:
    with pytest.raises(IncompatiblePlanError, match="this task changes none"):
        Cached(views=2).check_views(mails.task, "teacher")


def test_more_than_fits_is_refused_before_any_work(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    one = digits.data.size("transfer") * 10 * 4
    assert Cached(views=5).size_bytes(digits.data) == 5 * one
    monkeypatch.setattr(cached, "MOST_BYTES", 3 * one)
    Cached(views=3).check_data(digits.data)
    with pytest.raises(IncompatiblePlanError, match=r"4 views(.|\n)*keep at most 3"):
        Cached(views=4).check_data(digits.data)
    monkeypatch.setattr(cached, "MOST_BYTES", one - 1)
    with pytest.raises(IncompatiblePlanError, match="teacher: model"):
        Cached(views=4).check_data(digits.data)


# -- the same view for both


def test_for_as_many_epochs_students_are_those_of_the_live_teacher_to_the_bit(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    live = chain(build(pipeline(distill("model"))), store)
    found = chain(build(pipeline(distill(kept()))), store)
    answers = found["train.cache"].artifact
    assert answers is not None
    assert answers.facts["max_difference_in_other_batches"] == 0
    assert equal(weights(live["distill"]), weights(found["distill"]))
    fewer = chain(build(pipeline(distill(kept(1)))), store)
    assert not equal(weights(live["distill"]), weights(fewer["distill"])), "the second view must matter"


def test_the_answers_are_the_live_teachers_about_what_the_student_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmented: ImageClassification
) -> None:
    """In every epoch, also when the views come round again; in batches as training draws them."""
    seen: list[tuple[Any, torch.Tensor]] = []
    opened = Cached.open

    class Overheard:
        views, teaches = VIEWS, True

        def __init__(self, teacher: Any) -> None:
            self.teacher = teacher
            self.begin, self.follow, self.state = teacher.begin, teacher.follow, teacher.state

        def __call__(self, batch: Any, outputs: Any) -> Any:
            answer = self.teacher(batch, outputs)
            if len(batch["rows"]) > 2:  # two samples are shown once, for their shapes
                seen.append((dict(batch), answer.logits))
            return answer

    monkeypatch.setattr(Cached, "open", lambda self, *given: Overheard(opened(self, *given)))
    plan = build(pipeline(distill(kept(), epochs=2 * VIEWS + 1, precision="float32")))
    teacher = loading.load(chain(plan, Store(tmp_path / "store"))["train"].artifact.path)  # type: ignore[union-attr]
    data = augmented.open()
    per_epoch = data.size("transfer") // 256
    assert [batch["views"].unique().tolist() for batch, _ in seen] == [
        [epoch % VIEWS] for epoch in range(2 * VIEWS + 1) for _ in range(per_epoch)
    ]
    for batch, logits in seen:
        view, rows = int(batch["views"][0]), batch["rows"].tolist()
        shown = data.batch("transfer", rows, augment_seed=derive(0, "augment", view))
        assert torch.equal(shown["pixel_values"], batch["pixel_values"])
        plain = data.batch("transfer", rows)["pixel_values"]
        assert (plain != batch["pixel_values"]).flatten(1).any(dim=1).float().mean() > 0.8
        with torch.no_grad():
            torch.testing.assert_close(logits, teacher(**model_inputs(batch)).logits)


def test_models_are_given_no_views() -> None:
    assert model_inputs({"pixel_values": 1, "labels": 2, "rows": 3, "views": 4}) == {"pixel_values": 1}


def test_a_second_student_starts_without_a_teacher_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    chain(build(pipeline(distill(kept()))), store)

    def asked(*_: Any) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(Model, "open", asked)
    results = chain(build(pipeline(distill(kept(), learning_rate=1e-3, epochs=3))), store)
    assert results["train.cache"].cached
    assert not results["distill"].cached


# -- what is kept


def test_every_view_of_every_sample_is_kept_and_its_cost_is_said(
    digits: Digits, tmp_path: Path, augmented: ImageClassification
) -> None:
    facts = Cache(views=3, precision="float32").run({"model": digits.torch("resnet")}, job(augmented, tmp_path / "a"))
    answers, model, data = read_answers(tmp_path / "a"), loading.load(digits.torch("resnet").path), augmented.open()
    samples = data.size("transfer")
    assert answers.shape == (3, samples, 10)
    assert {name: facts[name] for name in ("views", "bytes_per_sample", "size_bytes")} == {
        "views": 3,
        "bytes_per_sample": 3 * 10 * 4,
        "size_bytes": 3 * 10 * 4 * samples,
    }
    assert facts["size_bytes"] == Cached(views=3).size_bytes(data)
    rows = [5, 0, 900]
    for view in range(3):
        with torch.no_grad():
            wanted = model(**model_inputs(data.batch("transfer", rows, augment_seed=of_view(0, view)))).logits
        torch.testing.assert_close(answers[view, rows], wanted)


@pytest.mark.parametrize("stop_after", [3, 30])
def test_an_interrupted_cache_goes_on_to_the_same_bits(
    stop_after: int, digits: Digits, tmp_path: Path, augmented: ImageClassification, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the first view, and within the second."""
    monkeypatch.setattr(cache_module, "CHECKPOINT_SECONDS", 0)
    stage, inputs = Cache(views=2), {"model": digits.torch("resnet")}
    stage.run(inputs, job(augmented, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        stage.run(inputs, job(augmented, tmp_path / "killed", stop_after))
    assert not (tmp_path / "killed" / cached.ANSWERS).exists()
    stage.run(inputs, job(augmented, tmp_path / "killed"))
    assert torch.equal(read_answers(tmp_path / "killed"), read_answers(tmp_path / "whole"))


def test_an_interrupted_student_goes_on_to_the_same_bits(
    digits: Digits, tmp_path: Path, augmented: ImageClassification
) -> None:
    """Killed in the third of four epochs, whose view is the first again."""
    Cache(views=2).run({"model": digits.torch("resnet")}, job(augmented, tmp_path / "cache"))
    inputs = {
        "model": digits.torch("resnet"),
        "teacher": digits.torch("resnet"),
        "logits": artifact(tmp_path / "cache", "logits"),
    }
    stage = Distill.model_validate({**distill(kept(), epochs=4), "checkpoint_seconds": 0})
    stage.run(inputs, job(augmented, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        stage.run(inputs, job(augmented, tmp_path / "killed", 3))
    stage.run(inputs, job(augmented, tmp_path / "killed"))
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_answers_are_looked_up_by_view_and_row(tmp_path: Path, augmented: ImageClassification) -> None:
    data = augmented.open()
    table = torch.randn(2, data.size("transfer"), 10, generator=torch.Generator().manual_seed(0))
    write_answers(table, tmp_path)
    teacher = Cached(views=2).open({"logits": artifact(tmp_path, "logits")}, CPU, data)
    assert teacher.views == 2
    batch = {**data.batch("transfer", [5, 900, 5]), "views": torch.tensor([1, 1, 0])}
    assert torch.equal(teacher(batch, frozenset()).logits, torch.stack([table[1, 5], table[1, 900], table[0, 5]]))
    write_answers(table[:, 1:], tmp_path)
    with pytest.raises(ModelError, match="the data changed"):
        Cached(views=2).open({"logits": artifact(tmp_path, "logits")}, CPU, data)


# -- several teachers


def test_members_of_an_ensemble_keep_the_same_views() -> None:
    request = Request(losses=())
    Ensemble.model_validate({"members": [kept(), kept(), "model"]}).check(request)
    with pytest.raises(IncompatiblePlanError, match=r"different numbers of views(.|\n)*the same `views`"):
        Ensemble.model_validate({"members": [kept(), kept(3)]}).check(request)


def test_a_live_member_sees_the_views_of_a_cached_one(
    digits: Digits, tmp_path: Path, augmented: ImageClassification
) -> None:
    data, resnet = augmented.open(), digits.torch("resnet")
    Cache(views=2, precision="float32").run({"model": resnet}, job(augmented, tmp_path / "a"))
    inputs = {
        "teacher.members[0]": resnet,
        "logits.members[0]": artifact(tmp_path / "a", "logits"),
        "teacher.members[1]": resnet,
    }
    both = Ensemble.model_validate({"members": [kept(), "model"]}).open(inputs, CPU, data)
    assert both.views == 2
    rows = list(range(20))
    batch = {**data.batch("transfer", rows, augment_seed=of_view(0, 1)), "views": torch.ones(20, dtype=torch.int64)}
    alone = Model().open({"teacher": resnet}, CPU, data)(batch, frozenset()).logits
    torch.testing.assert_close(both(batch, frozenset()).logits.softmax(1), alone.softmax(1))
