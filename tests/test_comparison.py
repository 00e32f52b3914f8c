"""A student beside its teacher: every number against another library, or worked by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import recall_score

from edgeforge.comparison import (
    Reference,
    compare,
    dark_knowledge,
    group,
    groups,
    likeness,
    paired_interval,
    rank_correlation,
    share_interval,
    softmax,
)
from edgeforge.core.artifact import Artifact
from edgeforge.core.report_teacher import TeacherComparison
from edgeforge.teaching import Lesson

NAMES = ("cat", "dog", "lynx", "wolf")
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 200)
TEACHER = (2.5 * np.eye(4)[LABELS] + RNG.normal(size=(200, 4))).astype(np.float32)
STUDENT = (0.6 * TEACHER + RNG.normal(size=(200, 4))).astype(np.float32)


@pytest.fixture(scope="module")
def found() -> TeacherComparison:
    return compare(TEACHER, STUDENT, LABELS, NAMES, temperature=4.0)


# -- the whole split, and its classes


def test_agreement_is_the_share_of_equal_predictions(found: TeacherComparison) -> None:
    same = int((TEACHER.argmax(1) == STUDENT.argmax(1)).sum())
    wilson = stats.binomtest(same, 200).proportion_ci(0.95, method="wilson")
    assert found.n == 200
    assert found.agreement == same / 200
    assert found.agreement_ci95 == pytest.approx((wilson.low, wilson.high), abs=1e-12)


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (1, 1), (37, 90)])
def test_the_interval_of_a_share_is_wilsons(hits: int, n: int) -> None:
    wilson = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert share_interval(hits, n) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_accuracy_per_class_is_its_recall(found: TeacherComparison) -> None:
    before, after = (
        recall_score(LABELS, logits.argmax(1), average=None, labels=range(4)) for logits in (TEACHER, STUDENT)
    )
    assert [one.name for one in found.classes] == list(NAMES)
    assert [one.n for one in found.classes] == np.bincount(LABELS).tolist()
    assert [one.teacher for one in found.classes] == pytest.approx(before)
    assert [one.student for one in found.classes] == pytest.approx(after)
    assert [one.change for one in found.classes] == pytest.approx(after - before)


def test_a_group_by_hand() -> None:
    """Five samples of class 0: both right, gained, lost, lost, both wrong in different ways."""
    teacher = np.eye(3)[[0, 1, 0, 0, 1]]
    student = np.eye(3)[[0, 0, 1, 2, 2]]
    one = group("g", teacher, student, np.zeros(5, dtype=np.int64))
    assert (one.n, one.teacher, one.student) == (5, 3 / 5, 2 / 5)
    assert one.change == pytest.approx(-1 / 5)
    assert one.ci95 == pytest.approx(paired_interval(1, 2, 5))
    assert one.agreement == 1 / 5


def test_a_class_that_is_not_tested_has_no_numbers() -> None:
    labels = np.where(LABELS == 2, 1, LABELS)
    found = compare(TEACHER, STUDENT, labels, NAMES, temperature=1.0)
    lynx = found.classes[2]
    assert (lynx.name, lynx.n, lynx.teacher, lynx.change, lynx.ci95) == ("lynx", 0, None, None, None)
    assert found.dark_knowledge is not None
    assert found.dark_knowledge.pairs == 6, "every pair with it has samples of the other class"
    assert TeacherComparison.model_validate_json(found.model_dump_json()) == found


def test_slices_are_groups_like_classes() -> None:
    members = np.arange(200) % 3
    cut = groups(TEACHER, STUDENT, LABELS, ("a", "b", "c", "none"), members)
    for number, one in enumerate(cut[:3]):
        mask = members == number
        assert one.n == mask.sum()
        assert one.student == pytest.approx((STUDENT[mask].argmax(1) == LABELS[mask]).mean())
    assert sum((one.change or 0) * one.n for one in cut) == pytest.approx(
        (STUDENT.argmax(1) == LABELS).sum() - (TEACHER.argmax(1) == LABELS).sum()
    )
    assert cut[3].n == 0


def test_calibration_bin_by_bin(found: TeacherComparison) -> None:
    def by_hand(logits: np.ndarray) -> float:
        powers = np.exp(logits.astype(np.float64))
        probabilities = powers / powers.sum(1, keepdims=True)
        sure, right = probabilities.max(1), probabilities.argmax(1) == LABELS
        error = 0.0
        for low in np.arange(15) / 15:
            inside = (sure > low) & (sure <= low + 1 / 15)
            if inside.any():
                error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
        return error

    assert found.calibration is not None
    assert found.calibration.teacher_error == pytest.approx(by_hand(TEACHER))
    assert found.calibration.student_error == pytest.approx(by_hand(STUDENT))
    assert found.calibration.teacher_confidence == pytest.approx(stats_confidence(TEACHER))


def stats_confidence(logits: np.ndarray) -> float:
    powers = np.exp(logits.astype(np.float64))
    return float((powers.max(1) / powers.sum(1)).mean())


def test_a_student_that_is_its_teacher_lost_nothing() -> None:
    same = compare(TEACHER, TEACHER, LABELS, NAMES, temperature=2.0)
    assert same.agreement == 1.0
    assert [one.change for one in same.classes] == [0.0] * 4
    assert same.dark_knowledge is not None
    assert same.dark_knowledge.rank_correlation == pytest.approx(1.0)
    assert same.dark_knowledge.teacher_top == same.dark_knowledge.student_top


def test_classes_without_names_are_numbered() -> None:
    assert [one.name for one in compare(TEACHER, STUDENT, LABELS, (), temperature=1.0).classes] == ["0", "1", "2", "3"]


# -- classes that look alike


def test_likeness_of_three_classes_by_hand() -> None:
    """Two samples of class 0, one of class 1, none of class 2."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.6, 0.3]])
    found = likeness(probabilities, np.array([0, 0, 1]))
    assert found[0, 1] == pytest.approx(((0.2 + 0.4) / 2 + 0.1) / 2)
    assert found[0, 2] == pytest.approx(0.1), "one direction only"
    assert found[1, 2] == pytest.approx(0.3)
    assert np.isnan(found[2, 2])
    assert np.array_equal(found, found.T, equal_nan=True)


def test_a_pair_of_which_no_sample_is_left_is_not_counted() -> None:
    labels = np.where(LABELS >= 2, 0, LABELS)
    found = dark_knowledge(TEACHER, STUDENT, labels, NAMES, temperature=1.0)
    assert found is not None
    assert found.pairs == 5
    assert ("lynx", "wolf") not in [pair.classes for pair in found.teacher_top]


def test_pairs_are_ranked_and_correlated_as_scipy_does(found: TeacherComparison) -> None:
    def by_hand(logits: np.ndarray) -> list[float]:
        powers = np.exp(logits.astype(np.float64) / 4.0)
        soft = powers / powers.sum(1, keepdims=True)
        mean = np.array([soft[label == LABELS].mean(0) for label in range(4)])
        return [(mean[a, b] + mean[b, a]) / 2 for a in range(4) for b in range(a + 1, 4)]

    one = found.dark_knowledge
    assert one is not None
    before, after = by_hand(TEACHER), by_hand(STUDENT)
    assert (one.temperature, one.pairs) == (4.0, 6)
    assert one.rank_correlation == pytest.approx(stats.spearmanr(before, after).statistic)
    assert [pair.teacher for pair in one.teacher_top] == pytest.approx(sorted(before, reverse=True))
    assert [pair.student for pair in one.student_top] == pytest.approx(sorted(after, reverse=True))
    assert [pair.teacher_rank for pair in one.teacher_top] == [1, 2, 3, 4, 5, 6]
    by_pair = {pair.classes: pair for pair in one.teacher_top}
    names = [(NAMES[a], NAMES[b]) for a in range(4) for b in range(a + 1, 4)]
    ranks = dict(zip(names, stats.rankdata([-value for value in after]), strict=True))
    assert {pair: by_pair[pair].student_rank for pair in names} == ranks


def test_two_classes_make_no_table_of_pairs() -> None:
    labels = LABELS % 2
    found = compare(TEACHER[:, :2], STUDENT[:, :2], labels, ("ham", "spam"), temperature=4.0)
    assert found.dark_knowledge is None
    assert len(found.classes) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
@settings(max_examples=60, deadline=None)
def test_the_rank_correlation_is_spearmans(values: list[tuple[int, int]]) -> None:
    one, two = (np.array(part, dtype=np.float64) for part in zip(*values, strict=True))
    found = rank_correlation(one, two)
    if len(set(one)) == 1 or len(set(two)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(one, two).statistic)


def test_large_logits_do_not_overflow() -> None:
    assert softmax(np.array([[1e4, 0.0, -1e4]])).tolist() == [[1.0, 0.0, 0.0]]


# -- what artifacts hold


def artifact(folder: Path, facts: dict[str, Any], **arrays: np.ndarray) -> Artifact:
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    files = {path.name: "" for path in folder.iterdir()}
    return Artifact(folder.name, "evaluate", "measurements", folder, "", files, {}, {}, facts)


def evaluated(folder: Path, logits: np.ndarray, **facts: Any) -> Artifact:
    metrics = {"accuracy": 0.5, "per_class_accuracy": dict.fromkeys(NAMES, 0.5)}
    return artifact(folder, {"metrics": metrics, "reason": None, **facts}, logits=logits, labels=LABELS)


def reference(*evaluations: Artifact | None, **rest: Any) -> Reference:
    count = len(evaluations)
    lesson = Lesson("distill", tuple(f"t{number}" for number in range(count)), (1 / count,) * count, 4.0)
    return Reference(**{"lesson": lesson, "evaluations": evaluations, "probes": (None,) * count, **rest})


def test_a_row_is_compared_by_what_was_kept(tmp_path: Path, found: TeacherComparison) -> None:
    members = np.zeros(200, dtype=np.int32)
    known = reference(evaluated(tmp_path / "t", TEACHER), slices=(("all", ("one",), members),))
    got = known.against(evaluated(tmp_path / "s", STUDENT), None)
    assert got.teacher == "t0"
    assert got.model_copy(update={"teacher": "", "slices": ()}) == found
    assert got.slices[0].groups[0].model_dump(exclude={"name"}) == got.accuracy.model_dump(exclude={"name"})  # type: ignore[union-attr]
    assert got.probe is None


def test_several_teachers_answer_with_the_mean_of_their_probabilities(tmp_path: Path) -> None:
    lesson = Lesson("distill", ("a", "b"), (0.25, 0.75), 1.0)
    teachers = (evaluated(tmp_path / "a", TEACHER), evaluated(tmp_path / "b", STUDENT))
    got = reference(*teachers, lesson=lesson).against(evaluated(tmp_path / "s", STUDENT), None)
    mean = 0.25 * softmax(TEACHER) + 0.75 * softmax(STUDENT)
    assert got.teacher == "a + b"
    assert got.accuracy is not None and got.calibration is not None
    assert got.accuracy.teacher == pytest.approx((mean.argmax(1) == LABELS).mean())
    assert got.calibration.teacher_confidence == pytest.approx(mean.max(1).mean())


def test_what_failed_says_why(tmp_path: Path) -> None:
    teacher, student = evaluated(tmp_path / "t", TEACHER), evaluated(tmp_path / "s", STUDENT)
    broken = evaluated(tmp_path / "nan", STUDENT * np.nan, metrics=None, reason="the outputs hold NaN or infinity")
    other = evaluated(tmp_path / "other", STUDENT[:50])
    empty = artifact(tmp_path / "empty", {"metrics": {"accuracy": 1.0}, "reason": None})
    reasons = {
        "the file was not evaluated": reference(teacher).against(None, None),
        "the file was not evaluated: the outputs hold NaN or infinity": reference(teacher).against(broken, None),
        "the teacher was not evaluated": reference(None).against(student, None),
        "the file has no answers that are kept": reference(teacher).against(empty, None),
        "they were asked about different samples": reference(teacher).against(other, None),
    }
    for reason, got in reasons.items():
        assert (got.reason, got.n, got.agreement, got.classes) == (reason, 0, None, ())


def test_the_probe(tmp_path: Path) -> None:
    before = np.array([[0.0, math.log(3.0)], [0.0, math.log(3.0)], [math.log(9.0), 0.0]])
    after = np.array([[0.0, math.log(4.0)], [math.log(4.0), 0.0], [math.log(4.0), 0.0]])
    known = reference(
        evaluated(tmp_path / "t", TEACHER),
        probes=(artifact(tmp_path / "tp", {"samples": 3, "reason": None}, logits=before),),
    )
    row = evaluated(tmp_path / "s", STUDENT)
    probe = known.against(row, artifact(tmp_path / "sp", {"samples": 3, "reason": None}, logits=after)).probe
    assert probe is not None
    assert probe.teacher_confidence == pytest.approx((0.75 + 0.75 + 0.9) / 3)
    assert probe.student_confidence == pytest.approx(0.8)
    assert (probe.n, probe.agreement) == (3, pytest.approx(2 / 3))
    unopened = known.against(row, artifact(tmp_path / "no", {"samples": 3, "reason": "no runtime opens it"})).probe
    assert unopened is not None
    assert (unopened.reason, unopened.agreement) == ("no runtime opens it", None)
    never = known.against(row, None).probe
    assert never is not None and never.reason == "not every model was probed"


# -- language models


def written(folder: Path, same: np.ndarray | None, scored: np.ndarray) -> Artifact:
    """`same`: whether the file finds the token likeliest that the model does which the chain began with."""
    arrays = {"nll": np.zeros(scored.shape, dtype=np.float32), "scored": scored}
    arrays |= {} if same is None else {"top1": same}
    return artifact(folder, {"metrics": {"perplexity": 9.0}, "reason": None}, **arrays)


SCORED = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], dtype=bool)


def test_language_models_are_compared_token_by_token(tmp_path: Path) -> None:
    same = np.array([[1, 1, 0, 1], [1, 0, 1, 1]], dtype=bool)
    got = reference(None, baseline="t0").against(written(tmp_path / "s", same, SCORED), None)
    assert (got.unit, got.n, got.agreement) == ("token", 5, pytest.approx(3 / 5))
    assert got.agreement_ci95 is not None
    assert got.agreement_ci95[0] == pytest.approx(1 / 2), "only windows 0 and 1 can be drawn: 2 of 3 and 1 of 2"
    assert got.agreement_ci95[1] == pytest.approx(2 / 3)
    assert (got.accuracy, got.classes, got.calibration, got.dark_knowledge) == (None, (), None, None)


def test_of_other_language_models_nothing_is_kept(tmp_path: Path) -> None:
    row = written(tmp_path / "s", np.ones_like(SCORED), SCORED)
    for known in (reference(None, baseline="train"), reference(None, None, baseline="t0")):
        got = known.against(row, None)
        assert (got.unit, got.n, got.agreement) == ("token", 0, None)
        assert "only the agreement with the baseline is kept" in str(got.reason)
    alone = reference(None, baseline="t0").against(written(tmp_path / "alone", None, SCORED), None)
    assert alone.reason is not None
