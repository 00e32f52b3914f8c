"""Who taught whom in a plan, and which models all of a file's teaching goes back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.stages.distill import Distill
from edgeforge.stages.finetune import Finetune
from edgeforge.stages.initialize import Initialize
from edgeforge.stages.prune import Prune
from edgeforge.structures.vocabulary import Vocabulary
from edgeforge.teachers import TEACHER
from edgeforge.teachers._writer import Writer
from edgeforge.teachers.ensemble import Ensemble
from edgeforge.teachers.file import File
from edgeforge.teachers.model import BY_SEQUENCE
from edgeforge.training.mixture import DATASET
from edgeforge.training.recipe import needs_teacher

if TYPE_CHECKING:
    from edgeforge.models import Model
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


def files(plan: Plan) -> dict[str, File]:
    """The chain's steps that were taught by a file of answers, with it."""
    stages = {step.name: step.stage for step in plan.steps if step.row == "chain"}
    found = {name: getattr(stage, "teacher", None) for name, stage in stages.items()}
    return {name: teacher for name, teacher in found.items() if isinstance(teacher, File)}


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


def check_readers(plan: Plan, stage: Distill | Finetune, inputs: Mapping[str, str], where: str) -> None:
    """Refuse, before any work, a teacher that splits texts otherwise than the student.

    No loss can compare what they say then; texts that the teacher writes can still be learnt from. Files of tokenizers
    are compared, no model is opened. Raises IncompatiblePlanError.
    """
    task = plan.pipeline.task
    if task.reads != "texts" or not needs_teacher(stage.losses):
        return
    own = _reader(plan, _origin(stage, inputs))
    for role, source in inputs.items():
        theirs = _reader(plan, source) if role.startswith(TEACHER) else None
        if own is None or theirs is None or own == theirs or (folder := theirs.folder()) is None:
            continue
        try:
            task.open(own.folder()).for_model(folder)
        except ModelError as error:
            remedy = BY_SEQUENCE if task.answers_per == "token" else error.remedy
            raise IncompatiblePlanError(error.what, where=f"{where}.{role}", remedy=remedy) from error


def _origin(stage: Distill | Finetune, inputs: Mapping[str, str]) -> str:
    """The step whose model brings the student's tokenizer."""
    return inputs[TEACHER] if isinstance(stage, Distill) and TEACHER in inputs else inputs["model"]


def _reader(plan: Plan, name: str) -> Model | None:
    """The model whose tokenizer a step's model reads with; None where a stage cuts it, which no file shows yet."""
    at = name
    while not isinstance(stage := plan.step(at).stage, Initialize):
        if isinstance(stage, Prune) and isinstance(stage.structure, Vocabulary):
            return None
        inputs = plan.step(at).inputs
        at = _origin(stage, inputs) if isinstance(stage, Distill) else inputs["model"]
    return stage.model


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
