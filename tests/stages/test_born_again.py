"""Born-again generations: who teaches whom, what is kept, what their ensemble is worth, killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.task import model_inputs
from edgeforge.models import loading
from edgeforge.models.surgery import LayerShape, resize
from edgeforge.stages import born_again
from edgeforge.stages._new_weights import with_new_weights
from edgeforge.stages.born_again import BornAgain
from edgeforge.store import CHECKPOINT
from edgeforge.training import loop

if TYPE_CHECKING:
    from conftest import Digits, Tales
    from transformers import PreTrainedModel

RECIPE: dict[str, Any] = {"steps": 12, "batch_size": 32, "learning_rate": 5e-3, "checkpoint_seconds": 0}
FAMILY = "resnet"


class Stopped(Exception):
    pass


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(loading.load(folder).state_dict())


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Seen:
    """What the stage did, as it does it: each generation's start and end, its teacher, and the steps taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[dict[str, torch.Tensor]] = []
        self.teachers: list[PreTrainedModel] = []
        self.students: list[PreTrainedModel] = []
        self.steps: list[int] = []
        self.stop_in: tuple[int, int] | None = None
        taught, step_of = born_again._Line._taught, loop._Training._step

        def teaches(line: Any, student: Any, teacher: Any, job: Any) -> Any:
            self.began.append({name: value.clone() for name, value in student.state_dict().items()})
            self.teachers.append(teacher)
            self.students.append(student)
            return taught(line, student, teacher, job)

        def steps(training: Any, step: int) -> torch.Tensor:
            if self.stop_in == (len(self.students), step):
                raise Stopped
            self.steps.append(step)
            return step_of(training, step)

        monkeypatch.setattr(born_again._Line, "_taught", teaches)
        monkeypatch.setattr(loop._Training, "_step", steps)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def test_each_is_taught_by_the_one_before_and_begins_anew(digits: Digits, tmp_path: Path, seen: Seen) -> None:
    stage, chain = BornAgain(generations=3, goes_on="last", **RECIPE), digits.torch(FAMILY)
    facts = stage.run({"model": chain, "teacher": chain}, digits.job(tmp_path))
    assert equal(dict(seen.teachers[0].state_dict()), weights(chain.path))
    assert seen.teachers[1:] == seen.students[:-1]
    first, second, third = seen.began
    name = "resnet.embedder.embedder.convolution.weight"
    fresh = [one[name] for one in (weights(chain.path), first, second, third)]
    assert not any(torch.equal(fresh[a], fresh[b]) for a in range(4) for b in range(a))
    assert all(int(one["resnet.embedder.embedder.normalization.num_batches_tracked"]) == 0 for one in seen.began)
    assert equal(weights(tmp_path), dict(seen.students[-1].state_dict()))
    assert facts["kept_generation"] == 3
    assert [one["steps"] for one in facts["generations"]] == [12, 12, 12]
    assert facts["history"] == facts["generations"][2]["history"]
    assert facts["params"] == sum(value.numel() for value in seen.students[0].parameters())

    # On the validation split, by hand.
    size = digits.data.size("validation")
    batch = digits.data.batch("validation", range(size))
    with torch.no_grad():
        found = [model.eval()(**model_inputs(batch)).logits.double().softmax(dim=1) for model in seen.students]
    right = [float((one.argmax(dim=1) == batch["labels"]).double().mean()) for one in (*found, sum(found) / 3)]
    assert [one["accuracy"] for one in facts["generations"]] == pytest.approx(right[:3])
    assert facts["ensemble"] == pytest.approx({"accuracy": right[3]})
    assert facts["teacher"].keys() == {"accuracy"}


def test_stopped_in_a_generation_it_goes_on_to_the_same_bits(digits: Digits, tmp_path: Path, seen: Seen) -> None:
    stage, inputs = BornAgain(**RECIPE), {"model": digits.torch(FAMILY), "teacher": digits.torch(FAMILY)}
    whole = stage.run(inputs, digits.job(tmp_path / "whole"))
    seen.students.clear()
    for stop_in in ((1, 5), (2, 11)):  # in the first generation, and in the second attempt's second
        seen.stop_in = stop_in
        with pytest.raises(Stopped):
            stage.run(inputs, digits.job(tmp_path / "cut"))
        seen.students.clear()
    kept = tmp_path / "cut" / CHECKPOINT
    assert sorted(path.name for path in kept.iterdir()) == ["generation-1", "generation-2"]
    assert [path.name for path in (kept / "generation-1").iterdir()] == ["finished"], "its own checkpoint is gone"
    seen.steps.clear()
    seen.stop_in = None
    facts = stage.run(inputs, digits.job(tmp_path / "cut"))
    assert seen.steps == [10, 11], "what was finished is not trained again, and the rest from its checkpoint"
    assert facts == whole
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


@pytest.mark.parametrize(("metric", "values", "best"), [("accuracy", (0.5, 0.7, 0.6), 1), ("perplexity", (9, 4, 4), 2)])
def test_which_goes_on(metric: str, values: tuple[float, ...], best: int) -> None:
    found = [born_again._Generation(None, {}, {metric: value}) for value in values]
    for goes_on, expected in (("best", best), ("last", 2)):
        line = born_again._Line(BornAgain(goes_on=goes_on), None, None, None)  # type: ignore[arg-type]
        assert line.chosen(found) == expected


def test_students_of_another_shape_have_fresh_weights_too(digits: Digits, tmp_path: Path, seen: Seen) -> None:
    chain = digits.torch("vit")
    stage = BornAgain.model_validate(
        {"generations": 1, "student": {"kind": "layers", "keep": [1]}, **RECIPE, "steps": 2}
    )
    stage.run({"model": chain, "teacher": chain}, digits.job(tmp_path))
    assert loading.load(tmp_path).config.num_hidden_layers == 1
    copied, began = weights(chain.path), seen.began[0]
    name = "vit.embeddings.patch_embeddings.projection.weight"
    assert began[name].shape == copied[name].shape
    assert not torch.equal(began[name], copied[name])


def test_language_models_are_judged_by_perplexity(tales: Tales, tmp_path: Path) -> None:
    chain = tales.torch("llama")
    facts = BornAgain(**{**RECIPE, "steps": 3, "batch_size": 8}).run(
        {"model": chain, "teacher": chain}, tales.job(tmp_path)
    )
    (name,) = facts["ensemble"]
    found = [one[name] for one in facts["generations"]]
    assert name == "perplexity"
    assert facts["kept_generation"] == 1 + found.index(min(found))
    assert (tmp_path / "tokenizer.json").is_file()


# -- fresh weights


def test_fresh_weights_follow_the_seed_in_the_models_own_shape(digits: Digits) -> None:
    model = loading.load(digits.torch(FAMILY).path)
    path = "resnet.encoder.stages.0.layers.0.layer.0"  # as pruning leaves it: widths that no config has words for
    convolution, norm = (model.get_submodule(f"{path}.{part}") for part in ("convolution", "normalization"))
    shapes = {name: (5, *value.shape[1:]) for name, value in convolution.named_parameters()}
    narrow = {name: (5,) for name, value in norm.state_dict().items() if value.dim()}
    resize(
        model, {f"{path}.convolution": LayerShape(tensors=shapes), f"{path}.normalization": LayerShape(tensors=narrow)}
    )
    torch.manual_seed(1)
    new = with_new_weights(model)
    torch.manual_seed(1)
    again = with_new_weights(model)
    assert {name: value.shape for name, value in new.state_dict().items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert equal(dict(new.state_dict()), dict(again.state_dict()))
    assert all(bool(value.isfinite().all()) for value in new.state_dict().values())
    drawn = new.get_submodule(f"{path}.convolution").weight
    assert 0 < float(drawn.std()) < 1
    fresh = new.get_submodule(f"{path}.normalization").state_dict()
    assert [float(fresh[name].unique()) for name in ("weight", "bias", "running_mean", "running_var")] == [1, 0, 0, 1]


def test_what_cannot_be_drawn_anew_is_refused(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loading.load(digits.torch("vit").path)
    position = model.vit.embeddings.position_embeddings
    resize(model, {"vit.embeddings": LayerShape(tensors={"position_embeddings": (1, 3, position.shape[2])})})
    with monkeypatch.context() as patched:
        patched.setattr(type(model), "_init_weights", lambda self, module: None)
        with pytest.raises(ModelError, match=r"nobody knows how fresh weights of vit\.embeddings"):
            with_new_weights(model)


# -- refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"losses": ["hard_labels"]}, "taught by the one before, but no loss asks\n"),
        ({"losses": [{"kind": "soft_targets", "weight": 0}]}, "every loss has weight 0"),
        ({"lora": {}}, "to which adapters add next to nothing"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(IncompatiblePlanError, match=message.removesuffix("\n")):
        BornAgain.model_validate(fields).check()
