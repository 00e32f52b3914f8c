"""What a student lost: its answers to the test split beside its teacher's, sample by sample.

Everything is computed from the logits that `evaluate` and `probe` kept; no model is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeforge.core.artifact import Artifact
from edgeforge.core.report import StepResult
from edgeforge.core.report_teacher import (
    Calibration,
    DarkKnowledge,
    GroupChange,
    Pair,
    ProbeChange,
    SliceChange,
    TeacherComparison,
)
from edgeforge.plan import SLICES, Plan
from edgeforge.stages.slices import MEMBERS
from edgeforge.tasks._classification import calibration_error
from edgeforge.teaching import Lesson

Z95 = 1.959963984540054
RESAMPLES = 2000
TOP_PAIRS = 10
FEWEST_PAIRS = 3
"""A correlation over fewer says nothing."""


@dataclass(frozen=True)
class Reference:
    """The teacher of a run, and all that files are compared with it by.

    It is the torch model of the step that all teaching goes back to (`teaching.root`), not the baseline's written
    file: the baseline need not be who taught. Several models that taught together answer as they did then, with the
    mean of their probabilities.
    """

    lesson: Lesson
    evaluations: tuple[Artifact | None, ...]
    probes: tuple[Artifact | None, ...]
    baseline: str = ""
    slices: tuple[tuple[str, tuple[str, ...], np.ndarray], ...] = ()
    """(rule, names of the groups, position of each sample's group)"""

    @classmethod
    def of(cls, plan: Plan, results: Mapping[str, StepResult]) -> Reference | None:
        """The run's teacher; None where no model teaches."""
        if plan.lesson is None:
            return None
        return cls(
            lesson=plan.lesson,
            evaluations=tuple(_made(results, f"{name}.evaluate") for name in plan.lesson.teachers),
            probes=tuple(_made(results, f"{name}.probe") for name in plan.lesson.teachers),
            baseline=plan.baseline,
            slices=_slices(_made(results, SLICES)),
        )

    def against(self, row: Artifact | None, probe: Artifact | None) -> TeacherComparison:
        """A file by its evaluation and what it said to the probe, where there is one."""
        if row is not None and "nll.npy" in row.files and row.facts.get("metrics") is not None:
            return self._tokens(row)
        reasons = [*(_missing(one, "the teacher") for one in self.evaluations), _missing(row, "the file")]
        teachers = [one for one in self.evaluations if one is not None]
        reason = next(filter(None, reasons), None)
        if reason is not None or row is None:
            return TeacherComparison(teacher=self.lesson.title, reason=reason)
        (logits, labels), known = _arrays(row, "logits", "labels"), _arrays(teachers[0], "labels")[0]
        before = self._together(teachers)
        if logits.shape != before.shape or not np.array_equal(labels, known):
            return TeacherComparison(teacher=self.lesson.title, reason="they were asked about different samples")
        names = tuple((teachers[0].facts["metrics"] or {}).get("per_class_accuracy") or ())
        found = compare(before, logits, labels, names, temperature=self.lesson.temperature)
        slices = tuple(
            SliceChange(rule=rule, groups=groups(before, logits, labels, names, members))
            for rule, names, members in self.slices
        )
        changed = {"teacher": self.lesson.title, "slices": slices, "probe": self._probed(probe)}
        return found.model_copy(update=changed)

    def _together(self, artifacts: Sequence[Artifact]) -> np.ndarray:
        """The teacher's logits, (N, classes)."""
        found = [_arrays(one, "logits")[0] for one in artifacts]
        if len(found) == 1:
            return found[0]
        shares = zip(found, self.lesson.shares, strict=True)
        mean: np.ndarray = sum((share * softmax(logits) for logits, share in shares), start=np.zeros(()))
        together: np.ndarray = np.log(np.maximum(mean, np.finfo(np.float64).tiny))
        return together

    def _tokens(self, row: Artifact) -> TeacherComparison:
        """The share of tokens for which both find the same one likeliest, its interval a bootstrap over windows.

        Of every token it is kept whether the file agrees with the model that the chain began with, and no more.
        """
        nothing = TeacherComparison(teacher=self.lesson.title, unit="token")
        if self.lesson.teachers != (self.baseline,) or "top1.npy" not in row.files:
            reason = "of a language model's tokens only the agreement with the baseline is kept, which did not teach"
            return nothing.model_copy(update={"reason": reason})
        scored, same = (array.astype(bool) for array in _arrays(row, "scored", "top1"))
        counts, hits = scored.sum(axis=1), (same & scored).sum(axis=1)
        drawn = np.random.RandomState(0).randint(len(counts), size=(RESAMPLES, len(counts)))
        low, high = np.percentile(hits[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [2.5, 97.5])
        shares = {"agreement": float(hits.sum() / counts.sum()), "agreement_ci95": (float(low), float(high))}
        return nothing.model_copy(update={"n": int(counts.sum()), **shares})

    def _probed(self, student: Artifact | None) -> ProbeChange | None:
        if all(one is None for one in self.probes):
            return None
        teachers = [one for one in self.probes if one is not None]
        count = int(teachers[0].facts["samples"])
        missing = len(teachers) < len(self.probes) or student is None
        said = [one.facts["reason"] for one in (*teachers, *((student,) if student else ()))]
        reason = next(filter(None, said), "not every model was probed" if missing else None)
        if reason is not None or student is None:
            return ProbeChange(n=count, reason=reason)
        before, after = self._together(teachers), _arrays(student, "logits")[0]
        same = int((before.argmax(axis=1) == after.argmax(axis=1)).sum())
        return ProbeChange(
            n=count,
            teacher_confidence=float(softmax(before).max(axis=1).mean()),
            student_confidence=float(softmax(after).max(axis=1).mean()),
            agreement=same / count,
            ci95=share_interval(same, count),
        )


def unasked(names: Sequence[str], *, wrote: bool) -> TeacherComparison:
    """Of a file taught, in the steps of these names, by what nobody can ask about the test split: why nothing is known.

    `wrote`: it wrote texts; else its answers came in a file.
    """
    taught = (
        "its teacher wrote what it learned from and gives no logits"
        if wrote
        else "its teacher is a file of answers about training samples"
    )
    return TeacherComparison(
        teacher=" + ".join(names),
        reason=f"{taught}, so that agreement, calibration and classes that look alike are not known; how right its own "
        "answers are is among its metrics",
    )


# -- numbers from arrays


def compare(
    teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, names: Sequence[str], *, temperature: float
) -> TeacherComparison:
    """Both models on the whole test split. Logits: (N, classes); labels: int64, (N,); `names` of the classes."""
    names = names or [str(number) for number in range(teacher.shape[1])]
    whole = group("all", teacher, student, labels)
    agreed = int((teacher.argmax(axis=1) == student.argmax(axis=1)).sum())
    return TeacherComparison(
        teacher="",
        n=len(labels),
        agreement=whole.agreement,
        agreement_ci95=share_interval(agreed, len(labels)),
        accuracy=whole,
        classes=groups(teacher, student, labels, names, labels),
        calibration=_calibration(teacher, student, labels),
        dark_knowledge=dark_knowledge(teacher, student, labels, names, temperature=temperature),
    )


def groups(
    teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, names: Sequence[str], members: np.ndarray
) -> tuple[GroupChange, ...]:
    """`group` for each of `names`; `members` holds the position of each sample's group, (N,)."""
    masks = [members == number for number in range(len(names))]
    return tuple(
        group(name, teacher[mask], student[mask], labels[mask]) for name, mask in zip(names, masks, strict=True)
    )


def group(name: str, teacher: np.ndarray, student: np.ndarray, labels: np.ndarray) -> GroupChange:
    """Both models on some samples. Logits: (n, classes); labels: (n,)."""
    count = len(labels)
    if not count:
        return GroupChange(name=name, n=0)
    before, after = teacher.argmax(axis=1), student.argmax(axis=1)
    gained = int(((after == labels) & (before != labels)).sum())
    lost = int(((after != labels) & (before == labels)).sum())
    return GroupChange(
        name=name,
        n=count,
        teacher=float((before == labels).mean()),
        student=float((after == labels).mean()),
        change=(gained - lost) / count,
        ci95=paired_interval(gained, lost, count),
        agreement=float((before == after).mean()),
    )


def dark_knowledge(
    teacher: np.ndarray, student: np.ndarray, labels: np.ndarray, names: Sequence[str], *, temperature: float
) -> DarkKnowledge | None:
    """Pairs of classes by how alike each model finds them (Hinton, Vinyals and Dean, 2015, section 3).

    A pair's likeness is the mean probability, at `temperature`, of one class over the samples of the other, averaged
    over both directions; where the test split has no sample of one of the two, over the other direction. None for two
    classes, which make a single pair.
    """
    if len(names) < 3:
        return None
    first, second = np.triu_indices(len(names), k=1)
    known = [likeness(softmax(logits, temperature), labels)[first, second] for logits in (teacher, student)]
    there = ~np.isnan(known[0])
    first, second, values = first[there], second[there], [one[there] for one in known]
    if not len(first):
        return None
    orders = [np.argsort(-one, kind="stable") for one in values]
    ranks = [np.argsort(order, kind="stable") + 1 for order in orders]

    def top(order: np.ndarray) -> tuple[Pair, ...]:
        return tuple(
            Pair(
                classes=(names[first[place]], names[second[place]]),
                teacher=float(values[0][place]),
                student=float(values[1][place]),
                teacher_rank=int(ranks[0][place]),
                student_rank=int(ranks[1][place]),
            )
            for place in order[:TOP_PAIRS]
        )

    return DarkKnowledge(
        temperature=temperature,
        pairs=len(first),
        rank_correlation=rank_correlation(values[0], values[1]) if len(first) >= FEWEST_PAIRS else None,
        teacher_top=top(orders[0]),
        student_top=top(orders[1]),
    )


def likeness(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(classes, classes), symmetric: the mean of both directions; NaN where no sample is of either class."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    sums = np.zeros((classes, classes))
    np.add.at(sums, labels, probabilities)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts[:, None]  # row: the class of the samples
    both = np.stack([means, means.T])
    known = (~np.isnan(both)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = np.nansum(both, axis=0) / known
    return found


def rank_correlation(one: np.ndarray, two: np.ndarray) -> float | None:
    """Spearman's: Pearson's of ranks, equal values sharing the mean of theirs; None where one of them is constant."""
    ranks = [_mean_ranks(values) for values in (one, two)]
    spread = [values - values.mean() for values in ranks]
    norm = math.sqrt(float((spread[0] ** 2).sum() * (spread[1] ** 2).sum()))
    return float((spread[0] * spread[1]).sum() / norm) if norm else None


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    found: np.ndarray = ((last - counts + 1 + last) / 2)[places]
    return found


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / T) of each row, float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return found


def paired_interval(gained: int, lost: int, n: int) -> tuple[float, float]:
    """95 % interval of the difference of two paired proportions, (gained - lost) / n.

    Agresti & Min, 2005, "Simple improved confidence intervals for comparing matched proportions": Wald's interval
    after adding 1/2 to each of the four cells.
    """
    gained_, lost_, n_ = gained + 0.5, lost + 0.5, n + 2
    centre = (gained_ - lost_) / n_
    half = Z95 * math.sqrt(gained_ + lost_ - (gained_ - lost_) ** 2 / n_) / n_
    return (max(-1.0, centre - half), min(1.0, centre + half))


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, hits / n (Wilson, 1927)."""
    share, z2 = hits / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (max(0.0, centre - half), min(1.0, centre + half))


def _calibration(teacher: np.ndarray, student: np.ndarray, labels: np.ndarray) -> Calibration:
    before, after = softmax(teacher), softmax(student)
    return Calibration(
        teacher_error=calibration_error(before, labels),
        student_error=calibration_error(after, labels),
        teacher_confidence=float(before.max(axis=1).mean()),
        student_confidence=float(after.max(axis=1).mean()),
    )


# -- what artifacts hold


def _made(results: Mapping[str, StepResult], name: str) -> Artifact | None:
    result = results.get(name)
    return result.artifact if result else None


def _missing(evaluation: Artifact | None, whose: str) -> str | None:
    """Why there are no answers to compare; None where there are."""
    if evaluation is None:
        return f"{whose} was not evaluated"
    if evaluation.facts.get("metrics") is None:
        return f"{whose} was not evaluated: {evaluation.facts.get('reason')}"
    return None if "logits.npy" in evaluation.files else f"{whose} has no answers that are kept"


def _arrays(artifact: Artifact, *names: str) -> list[np.ndarray]:
    return [np.load(artifact.path / f"{name}.npy", allow_pickle=False) for name in names]


def _slices(artifact: Artifact | None) -> tuple[tuple[str, tuple[str, ...], np.ndarray], ...]:
    if artifact is None:
        return ()
    members = np.load(artifact.path / MEMBERS, allow_pickle=False)
    said = artifact.facts["slices"]
    return tuple((one["rule"], tuple(one["groups"]), row) for one, row in zip(said, members, strict=True))
