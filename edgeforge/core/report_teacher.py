"""The part of a report that a teacher makes: what the student lost, where both come from, and what they cost."""

from __future__ import annotations

from typing import Any, Literal

from edgeforge.core.report_part import Part

Interval = tuple[float, float]


class GroupChange(Part):
    """Teacher and student on one group of test samples: shares that each answers right, and their difference.

    `change` is the student's accuracy minus the teacher's, `ci95` its paired interval. All are null where the group
    has no sample.
    """

    name: str
    n: int
    teacher: float | None = None
    student: float | None = None
    change: float | None = None
    ci95: Interval | None = None
    agreement: float | None = None


class SliceChange(Part):
    """One way of cutting the test split: `rule` says by what, `groups` are its parts."""

    rule: str
    groups: tuple[GroupChange, ...]


class Calibration(Part):
    """Expected calibration error (15 bins; Guo et al., 2017), and the mean of the highest probability."""

    teacher_error: float
    student_error: float
    teacher_confidence: float
    student_confidence: float


class Pair(Part):
    """Two classes and how alike each model finds them: the mean probability it gives one for samples of the other.

    Ranks count from 1, the most alike pair.
    """

    classes: tuple[str, str]
    teacher: float
    student: float
    teacher_rank: int
    student_rank: int


class DarkKnowledge(Part):
    """Which classes the teacher finds alike, and whether the student sees them so.

    Probabilities are at `temperature`. `pairs` are counted that the test split can speak of; `rank_correlation` is
    Spearman's over all of them, null where there are fewer than three or one model finds all alike.
    """

    temperature: float
    pairs: int
    rank_correlation: float | None = None
    teacher_top: tuple[Pair, ...] = ()
    student_top: tuple[Pair, ...] = ()


class ProbeChange(Part):
    """Both on samples from elsewhere, which have no label: mean of the highest probability, and agreement."""

    n: int
    teacher_confidence: float | None = None
    student_confidence: float | None = None
    agreement: float | None = None
    ci95: Interval | None = None
    reason: str | None = None


class TeacherComparison(Part):
    """One file against the model that taught: the test split, sample by sample (`unit`; of texts token by token).

    `teacher` names the step. Where nothing can be compared, `reason` says why and the rest is empty.
    """

    teacher: str
    unit: Literal["sample", "token"] = "sample"
    n: int = 0
    agreement: float | None = None
    agreement_ci95: Interval | None = None
    accuracy: GroupChange | None = None
    classes: tuple[GroupChange, ...] = ()
    slices: tuple[SliceChange, ...] = ()
    calibration: Calibration | None = None
    dark_knowledge: DarkKnowledge | None = None
    probe: ProbeChange | None = None
    reason: str | None = None


class Source(Part):
    """Where something comes from that a file was made of.

    `what` it is, the step that took it, its `kind` and place without this machine's folders, and a digest of its
    content. `licence` is "unknown" where nothing beside it says one; `licence_from` is where it was read.
    """

    what: Literal["model", "teacher", "data", "prompts"]
    step: str | None = None
    kind: str
    place: str | None = None
    digest: str | None = None
    licence: str = "unknown"
    licence_from: str | None = None
    details: dict[str, Any] = {}


class LineageStep(Part):
    """One step behind the shipped files. `key` names it in a store, `digest` is of what it wrote."""

    name: str
    kind: str
    key: str
    digest: str | None = None
    training_steps: int | None = None
    seconds: float | None = None


class Lineage(Part):
    """Everything that the chain's models were made of, and every step that made them."""

    sources: tuple[Source, ...] = ()
    steps: tuple[LineageStep, ...] = ()


class Cost(Part):
    """What a thousand answers cost of one file on one device, and of its teacher; and when the file has paid off.

    Of a language model the unit of time is 1,000 tokens that it writes; money is always that of 1,000 answers, in the
    currency of the teacher's `prices`. `making_seconds` is the work of all steps behind the file but not behind its
    teacher; `making_money` is what teachers were paid. `break_even_by_time` is the number of `unit`s, `_by_money` that
    of answers, after which the file has saved as much as it took to make; null where it never does or nothing was
    measured, which `time_reason` says.
    """

    unit: Literal["answers", "tokens"] = "answers"
    device: str | None = None
    runtime: str | None = None
    seconds_per_1000: float | None = None
    teacher_seconds_per_1000: float | None = None
    making_seconds: float | None = None
    break_even_by_time: int | None = None
    time_reason: str | None = None
    teacher_money_per_1000: float | None = None
    making_money: float | None = None
    break_even_by_money: int | None = None
    assumptions: tuple[str, ...] = ()
