"""Who taught whom in a plan, and which models all of a file's teaching goes back to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.teachers import TEACHER
from edgeforge.teachers._writer import Writer
from edgeforge.teachers.ensemble import Ensemble
from edgeforge.training.mixture import DATASET
from edgeforge.training.recipe import needs_teacher

if TYPE_CHECKING:
    from edgeforge.plan import Plan, Step


@dataclass(frozen=True)
class Lesson:
    """One step that was trained on the answers of one model, or of several, and each one's share of them.

    `teachers` are names of steps; `temperature` is that of the losses, or `soft_targets`' own where they have none.
    """

    pupil: str
    teachers: tuple[str, ...]
    shares: tuple[float, ...]
    temperature: float

    @property
    def title(self) -> str:
        """The teachers' names in one."""
        return " + ".join(self.teachers)


def lessons(plan: Plan) -> list[Lesson]:
    """Every lesson of the chain that a model gave, in order."""
    return [lesson for step in plan.steps if step.row == "chain" for lesson in _given(plan, step)]


def writers(plan: Plan) -> list[str]:
    """The steps that let a teacher write which is no model of the plan: an API, a program."""
    return [name for name in plan.datasets if isinstance(getattr(plan.step(name).stage, "teacher", None), Writer)]


def root(plan: Plan) -> Lesson | None:
    """The lesson that all teaching of the chain's last model goes back to; None where no model taught it.

    From the chain's end back to the last step that was taught; its teacher, unless that was taught as well (a teacher
    assistant, a model before it was pruned): then that one's, and so on. Several teachers together are not followed
    further.
    """
    given: dict[str, Lesson] = {}
    for lesson in lessons(plan):
        given.setdefault(lesson.pupil, lesson)
    found = None
    at = plan.chain[-1] if plan.chain else None
    while at is not None:
        if at in given:
            found = given[at]
            at = found.teachers[0] if len(found.teachers) == 1 else None
        else:
            at = plan.step(at).inputs.get("model")
    return found


def behind(plan: Plan, *names: str) -> set[str]:
    """The names of some steps and of all that they were made from."""
    wanted = set(names)
    for step in reversed(plan.steps):
        if step.name in wanted:
            wanted.update(step.inputs.values())
    return wanted


def _given(plan: Plan, step: Step) -> Iterator[Lesson]:
    losses = getattr(step.stage, "losses", ())
    temperature = _temperature(losses)
    asked = tuple(source for role, source in step.inputs.items() if role.startswith(TEACHER))
    if asked and needs_teacher(losses):
        teacher = getattr(step.stage, "teacher", None)
        shares = teacher.shares() if isinstance(teacher, Ensemble) else (1 / len(asked),) * len(asked)
        yield Lesson(step.name, asked, shares, temperature)
    if DATASET in step.inputs:
        written = plan.step(step.inputs[DATASET])
        # A teacher that writes has no model: the one that is given in its place only reads what it wrote.
        if TEACHER in written.inputs and not isinstance(getattr(written.stage, "teacher", None), Writer):
            yield Lesson(step.name, (written.inputs[TEACHER],), (1.0,), temperature)


def _temperature(losses: Any) -> float:
    known = (getattr(loss, "temperature", None) for loss in losses if loss.needs_teacher)
    return float(next((value for value in known if value is not None), SoftTargets().temperature))
