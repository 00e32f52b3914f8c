"""Which model a file's teaching goes back to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from edgeforge import teaching
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.pipeline import parse
from edgeforge.plan import Plan, build

if TYPE_CHECKING:
    from tests.conftest import Tales

RESNET = {
    "kind": "config", "architecture": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    "layer_type": "basic",
}  # fmt: skip
TRAIN = {"kind": "train", "epochs": 1}
SOFT = {"steps": 2, "losses": [{"kind": "soft_targets", "temperature": 3}]}
DISTILL = {"kind": "distill", "steps": 2, "student": {"kind": "width", "multiple": 0.5}}


def plan(*stages: dict[str, Any], **changes: Any) -> Plan:
    source = {"name": "t", "task": "image_classification", "model": RESNET, "stages": list(stages), **changes}
    return build(parse(yaml.safe_dump(source).encode(), "t.yaml"))


def names(found: Plan) -> list[str]:
    return [step.name for step in found.steps]


def test_labels_alone_have_no_teacher() -> None:
    found = plan(TRAIN, {"kind": "finetune", "steps": 2})
    assert found.lesson is None
    assert teaching.lessons(found) == []


def test_a_student_of_labels_was_not_taught() -> None:
    assert plan(TRAIN, {**DISTILL, "losses": ["hard_labels"]}).lesson is None


def test_the_chains_model_teaches() -> None:
    lesson = plan(TRAIN, DISTILL).lesson
    assert lesson is not None
    assert (lesson.pupil, lesson.teachers, lesson.shares, lesson.temperature) == ("distill", ("train",), (1.0,), 4.0)


def test_an_assistants_pupil_goes_back_to_the_first_teacher() -> None:
    found = plan(TRAIN, {**DISTILL, "name": "assistant"}, {**DISTILL, "name": "small"})
    assert [(one.pupil, one.teachers) for one in teaching.lessons(found)] == [
        ("assistant", ("train",)),
        ("small", ("assistant",)),
    ]
    assert found.lesson is not None and found.lesson.teachers == ("train",)


def test_a_pruned_model_that_its_former_self_brought_back_has_the_teacher_of_that() -> None:
    prune = {"kind": "prune", "structure": {"kind": "channels", "ratio": 0.25}, "recover": SOFT}
    found = plan(TRAIN, prune).lesson
    assert found is not None
    assert (found.pupil, found.teachers, found.temperature) == ("prune.recover", ("train",), 3.0)
    chained = plan(TRAIN, DISTILL, prune).lesson
    assert chained is not None and (chained.pupil, chained.teachers) == ("distill", ("train",))


def test_a_student_that_goes_on_by_itself_still_has_its_teacher() -> None:
    found = plan(TRAIN, DISTILL, {"kind": "finetune", "steps": 2}).lesson
    assert found is not None and found.teachers == ("train",)


def test_a_teacher_beside_the_chain_is_evaluated() -> None:
    other = {**RESNET, "hidden_sizes": [16, 32]}
    found = plan({**DISTILL, "teacher": {"kind": "model", "model": other}})
    assert found.lesson is not None and found.lesson.teachers == ("teacher",)
    assert "teacher.evaluate" in names(found) and "teacher" not in found.chain


def test_an_ensemble_is_not_followed_further() -> None:
    teacher = {
        "kind": "ensemble",
        "members": [{"kind": "model", "stage": "train"}, {"kind": "model", "stage": "first"}],
        "weights": [1, 3],
    }
    found = plan(TRAIN, {**DISTILL, "name": "first"}, {**DISTILL, "name": "second", "teacher": teacher}).lesson
    assert found is not None
    assert (found.teachers, found.shares, found.title) == (("train", "first"), (0.25, 0.75), "train + first")


def test_what_a_file_was_made_from() -> None:
    found = plan(TRAIN, DISTILL)
    assert teaching.behind(found, "distill") == {"model", "train", "distill"}
    assert teaching.behind(found, "train", "model") == {"model", "train"}


# -- slices and probe in a plan


def test_slices_come_first_and_train_nothing_anew() -> None:
    plain = plan(TRAIN, DISTILL)
    cut = plan(TRAIN, DISTILL, slices=[{"brightness": [0.3]}])
    assert names(cut)[0] == "data.slices"
    assert {step.name: step.key for step in plain.steps} == {
        step.name: step.key for step in cut.steps if step.name != "data.slices"
    }


def test_every_file_and_the_teacher_are_probed(tmp_path: Any) -> None:
    import numpy as np

    path = tmp_path / "probe.npz"
    np.savez(path, x=np.zeros((2, 8, 8), dtype=np.uint8))
    target = {"name": "phone", "export": "onnx", "devices": []}
    probed = plan(TRAIN, DISTILL, probe=str(path), targets=[target])
    assert {"train.probe", "baseline.probe", "phone.probe"} == {name for name in names(probed) if "probe" in name}
    assert not [name for name in names(plan(TRAIN, probe=str(path))) if "probe" in name]


def test_without_a_teacher_slices_are_warned_of() -> None:
    assert any("no model teaches" in line for line in plan(TRAIN, slices=[{"brightness": [0.5]}]).warnings)


def test_rules_for_texts_are_refused_for_images() -> None:
    with pytest.raises(IncompatiblePlanError, match="`pattern` is a rule for texts") as refused:
        plan(TRAIN, DISTILL, slices=[{"brightness": [0.5]}, {"pattern": "x"}])
    assert refused.value.where == "slices[1]"
    assert "column, brightness" in str(refused.value.remedy)


# -- vocabularies

SOFT_TOKENS = {"kind": "finetune", "steps": 2, "losses": [{"kind": "soft_targets", "temperature": 1}]}


def stranger(tales: Tales, folder: Path) -> dict[str, Any]:
    """A teacher whose tokenizer makes every letter small, unlike the chain's."""
    from tokenizers import Tokenizer, normalizers

    from edgeforge.models import loading

    own = tales.torch("llama").path
    loading.save(loading.load(own), folder, tokenizer_from=own)
    reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
    reader.normalizer = normalizers.Lowercase()
    reader.save(str(folder / "tokenizer.json"))
    return {"kind": "pretrained", "path": str(folder)}


def written(tales: Tales, *stages: dict[str, Any]) -> Plan:
    model = {"kind": "pretrained", "path": str(tales.torch("llama").path)}
    return plan(*stages, task=tales.task.model_dump(mode="json"), model=model)


@pytest.mark.parametrize("place", ["teacher", "cached", "member", "recover"])
def test_losses_across_vocabularies_are_refused_by_the_plan_which_names_another_way(
    tales: Tales, tmp_path: Path, place: str
) -> None:
    other = {"kind": "model", "model": stranger(tales, tmp_path / "other")}
    teacher: Any = {
        "cached": {**other, "kind": "cached", "top_k": 4},
        "member": {"kind": "ensemble", "members": [{"kind": "model"}, other]},
    }.get(place, other)
    stage: dict[str, Any] = {**SOFT_TOKENS, "teacher": teacher}
    if place == "recover":
        del stage["kind"]
        stage = {"kind": "prune", "structure": {"kind": "layers", "count": 1}, "recover": stage}
    where = {"member": r"stages\[0\].teacher.members\[1\]", "recover": r"stages\[0\].recover.teacher"}
    with pytest.raises(IncompatiblePlanError, match="different tokenizers") as caught:
        written(tales, stage)
    assert re.fullmatch(where.get(place, r"stages\[0\].teacher"), str(caught.value.where))
    assert "`generate`" in str(caught.value.remedy) and "`mix`" in str(caught.value.remedy)


def test_a_student_made_of_a_stranger_reads_as_it_does(tales: Tales, tmp_path: Path) -> None:
    teacher = {"kind": "model", "model": stranger(tales, tmp_path / "other")}
    distill = {**DISTILL, "student": {"kind": "layers", "every": 2}, "teacher": teacher}
    written(tales, distill, {**SOFT_TOKENS, "teacher": teacher})
    with pytest.raises(IncompatiblePlanError, match="different tokenizers"):
        written(tales, distill, {**SOFT_TOKENS, "teacher": {"kind": "model", "stage": "model"}})


def test_a_vocabulary_that_is_cut_first_is_judged_when_it_is_there(tales: Tales, tmp_path: Path) -> None:
    teacher = {"kind": "model", "model": stranger(tales, tmp_path / "other")}
    written(tales, {"kind": "prune", "structure": "vocabulary"}, {**SOFT_TOKENS, "teacher": teacher})
    written(tales, {**SOFT_TOKENS, "teacher": {"kind": "model", "stage": "model"}})


@pytest.mark.parametrize(
    ("stage", "where"),
    [
        ({**DISTILL, "teacher": {"kind": "cached"}, "losses": ["soft_targets", "hidden_states"]}, "stages[1].teacher"),
        ({"kind": "finetune", "losses": [{"kind": "soft_targets", "weight": 0}]}, "stages[1]"),
        (
            {
                "kind": "prune",
                "structure": {"kind": "channels", "ratio": 0.25},
                "recover": {**SOFT, "teacher": "snapshots"},
            },
            "stages[1].recover.cycles",
        ),
    ],
)
def test_a_refusal_says_which_stage_it_is_about(stage: dict[str, Any], where: str) -> None:
    with pytest.raises(IncompatiblePlanError) as refused:
        plan(TRAIN, stage)
    assert refused.value.where == where
