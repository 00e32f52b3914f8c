"""What a run's models were made of: model, teachers, data, prompts, and every step with its digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeforge import licences, teaching
from edgeforge.core.errors import EdgeForgeError
from edgeforge.core.report import StepResult
from edgeforge.core.report_teacher import Lineage, LineageStep, Source
from edgeforge.core.spec import Spec, digest_of
from edgeforge.models import Model
from edgeforge.plan import Plan, Step
from edgeforge.stages.initialize import Initialize

if TYPE_CHECKING:
    from edgeforge.core.artifact import Artifact
    from edgeforge.teachers.file import File

Results = Mapping[str, StepResult]

OWN = ("your own", "made from random weights")
NOT_LINEAGE = frozenset({"evaluate", "probe", "slices"})
SETTINGS = ("protocol", "model", "temperature", "max_tokens", "samples", "template")
"""Of a teacher that writes: what its answers depend on."""


def lineage(plan: Plan, results: Results) -> Lineage:
    """Nothing is asked but files: of a licence, those beside a model or data set."""
    sources = [_model(plan.pipeline.model, _artifact(results, "model"), "model", "model")]
    sources += _teachers(plan, results)
    sources += [_data(plan), *_prompts(plan, results)]
    steps = [step for step in plan.steps if step.row == "chain" and step.stage.kind not in NOT_LINEAGE]
    return Lineage(sources=tuple(sources), steps=tuple(_step(step, results) for step in steps))


def _step(step: Step, results: Results) -> LineageStep:
    made = _artifact(results, step.name)
    return LineageStep(
        name=step.name,
        kind=step.stage.kind,
        key=step.key,
        digest=made.digest if made else None,
        training_steps=training_steps(made.facts) if made else None,
        seconds=made.seconds if made else None,
    )


def training_steps(facts: Mapping[str, Any]) -> int | None:
    """Optimizer steps of a stage, of all its generations together; None where it trained nothing."""
    generations = facts.get("generations")
    if isinstance(generations, list):
        return int(sum(one["steps"] for one in generations))
    steps: int | None = facts.get("steps")
    return steps


def _artifact(results: Results, name: str) -> Artifact | None:
    result = results.get(name)
    return result.artifact if result else None


# -- teachers and models


def _teachers(plan: Plan, results: Results) -> list[Source]:
    found: dict[str, Source] = {}
    for lesson in teaching.lessons(plan):
        for name in lesson.teachers:
            found.setdefault(name, _teaching_model(plan, results, name))
    wrote = [_writer(name, _artifact(results, name)) for name in teaching.writers(plan)]
    kept = [_file(name, teacher) for name, teacher in teaching.files(plan).items()]
    return [*found.values(), *wrote, *kept]


def _teaching_model(plan: Plan, results: Results, name: str) -> Source:
    """A step's model; its licence is that of the model it was made from."""
    made = _artifact(results, name)
    stage = plan.step(name).stage
    if isinstance(stage, Initialize):
        return _model(stage.model, made, "teacher", name)
    origin = _model(plan.pipeline.model, None, "teacher", name)
    return origin.model_copy(update={"kind": "stage", "place": name, "digest": made.digest if made else None})


def _file(name: str, teacher: File) -> Source:
    """A teacher of which answers are there, by the stage that it taught."""
    path = Path(teacher.path).expanduser()
    licence, said_by = licences.of(path) if path.exists() else (licences.UNKNOWN, None)
    return Source(
        what="teacher",
        step=name,
        kind=teacher.kind,
        place=licences.shown_place(teacher.path),
        digest=teacher.identity()["sha256"] if path.exists() else None,
        licence=licence,
        licence_from=said_by,
    )


def _writer(name: str, written: Artifact | None) -> Source:
    """A teacher that answers questions, as the step that asked it keeps it."""
    said: Mapping[str, Any] = (written.recipe.get("teacher") or {}) if written else {}
    asked: Mapping[str, Any] = (written.facts.get("asked") or {}) if written else {}
    known = {key: said[key] for key in SETTINGS if said.get(key) is not None}
    if asked.get("served_by"):
        known["served_by"] = asked["served_by"]
    place = said.get("base_url") or said.get("function")
    return Source(
        what="teacher",
        step=name,
        kind=str(said.get("kind", "unknown")),
        place=str(place) if place else None,
        digest=digest_of(dict(said)) if said else None,
        details=known,
    )


def _model(model: Model, made: Artifact | None, what: Any, step: str) -> Source:
    licence, said_by = _licence_of(model)
    place = getattr(model, "path", None) or getattr(model, "name", None)
    return Source(
        what=what,
        step=step,
        kind=model.kind,
        place=licences.shown_place(place) if place else None,
        digest=made.digest if made else None,
        licence=licence,
        licence_from=said_by,
    )


def _licence_of(model: Model) -> tuple[str, str | None]:
    path = getattr(model, "path", None)
    if path is None:
        return OWN if model.kind == "config" else (licences.UNKNOWN, None)
    place: Path | None = Path(path).expanduser()
    try:
        # A model of the hub lies in its cache; its card is among what is fetched.
        place = place if place is not None and place.exists() else model.folder()
    except EdgeForgeError:
        place = None
    return licences.of(place) if place is not None else (licences.UNKNOWN, None)


# -- data


def _data(plan: Plan) -> Source:
    data = getattr(plan.pipeline.task, "data", None)
    kind = data.kind if isinstance(data, Spec) and hasattr(data, "kind") else "unknown"
    places = [place for name in ("path", "train", "test") for place in _listed(getattr(data, name, None))]
    local = [Path(place).expanduser() for place in places]
    licence, said_by = next((licences.of(place) for place in local if place.exists()), (licences.UNKNOWN, None))
    shown = ", ".join(dict.fromkeys(licences.shown_place(place) for place in places))
    return Source(
        what="data",
        kind=kind,
        place=shown or None,
        digest=plan.data_digest,
        licence=licence,
        licence_from=said_by,
    )


def _listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)] if value else []


def _prompts(plan: Plan, results: Results) -> Iterator[Source]:
    """What teachers were asked, for every step that let one write."""
    for name in plan.datasets:
        stage, written = plan.step(name).stage, _artifact(results, name)
        recipe: Mapping[str, Any] = written.recipe if written else {}
        kind = "spec" if getattr(stage, "spec", None) else "prompts" if getattr(stage, "prompts", None) else "windows"
        place = getattr(stage, kind, None)
        known = {key: written.facts[key] for key in ("documents",) if written and key in written.facts}
        digest = recipe.get(f"{kind}_sha256") if kind != "windows" else plan.data_digest
        shown = licences.shown_place(place) if place else None
        yield Source(what="prompts", step=name, kind=kind, place=shown, digest=digest, details=known)
