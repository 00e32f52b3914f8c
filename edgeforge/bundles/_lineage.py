"""Where a file comes from: models, data and steps with their keys; and what is known of licences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from edgeforge import licences as licences_beside
from edgeforge.bundles._contract import Licence
from edgeforge.bundles._source import Source
from edgeforge.licences import UNKNOWN, shown_place

UNWRITTEN = f"{UNKNOWN}: the terms of whoever serves it"
PLACES = frozenset(
    {"path", "train", "test", "validation", "unlabelled", "prompts", "spec", "function", "journal", "tokenizer"}
)
"""Keys of a pipeline whose values name places. A bundle leaves the machine: of these only last names stay."""


def lineage(source: Source) -> dict[str, Any]:
    """Model, data, teachers and steps. Each step's `key` is a sha256 over its spec, data, seed, code and inputs."""
    pipeline = source.pipeline
    stages = [_public(stage) for stage in pipeline.get("stages") or ()]
    names = [row.name for row in source.report.stages]
    known = source.report.lineage
    target = next((one for one in pipeline.get("targets") or () if _made(one, source.row.name)), None)
    return {
        "model": _public(pipeline.get("model")),
        "data": _public((pipeline.get("task") or {}).get("data")),
        "teachers": [_public(one) for one in _teachers(pipeline.get("stages") or ())],
        "stages": stages,
        "chain": names,
        "target": _public(target),
        "steps": source.row.lineage.get("steps", []),
        "seed": source.report.seed,
        "parameters": source.report.stages[-1].facts.params if source.report.stages else None,
        "environment": source.report.environment.packages,
        "sources": [_public(one.model_dump(mode="json")) for one in known.sources] if known else [],
    }


def licences(source: Source, folder: Path) -> list[Licence]:
    """What is known: model, teachers and data by the files beside them, whose texts are copied into `folder`.

    Of what is not on this machine any more, or in the hub's cache, the run's report may know it.
    """
    pipeline = source.pipeline
    found = [_licence("model", pipeline.get("model"), folder), *_of_teachers(pipeline, folder)]
    found.append(_licence("data", (pipeline.get("task") or {}).get("data"), folder))
    return [_as_reported(one, source) for one in found]


def _made(target: Any, row: str) -> bool:
    """A target may be made once for each layout: `android` as `android.x86` and `android.arm`."""
    return isinstance(target, dict) and row in (target.get("name"), f"{target.get('name')}.{row.rpartition('.')[2]}")


def _teachers(stages: Any) -> Iterator[Any]:
    for stage in stages:
        for part in (stage, stage.get("recover") or {}) if isinstance(stage, dict) else ():
            if isinstance(part, dict) and part.get("teacher"):
                yield part["teacher"]


def _public(value: Any) -> Any:
    """The same without folders of this machine."""
    if isinstance(value, dict):
        return {key: _place(item) if key in PLACES else _public(item) for key, item in value.items()}
    if isinstance(value, str):
        return shown_place(value) if _is_path(value) else value
    return [_public(item) for item in value] if isinstance(value, list) else value


def _is_path(value: str) -> bool:
    """Whether this is surely a path and no text that begins like one."""
    return (PurePath(value).is_absolute() or value.startswith("~/")) and not any(mark in value for mark in "\n{")


def _place(value: Any) -> Any:
    if isinstance(value, list):
        return [_place(item) for item in value]
    return shown_place(value) if isinstance(value, str) else _public(value)


def _of_teachers(pipeline: dict[str, Any], folder: Path) -> Iterator[Licence]:
    """Of every teacher that is no step of this pipeline, each once: a step's licence is that of its model."""
    seen: list[Any] = []
    for teacher in _single(_teachers(pipeline.get("stages") or ())):
        model = teacher.get("model") or teacher.get("function")
        if model is None or model in seen:
            continue
        seen.append(model)
        what = f"teacher_{len(seen)}"
        if isinstance(model, str):
            yield Licence(what=what, licence=UNWRITTEN, source=_place(model))
        else:
            yield _licence(what, model, folder)


def _single(teachers: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Teachers one by one: those of an ensemble are its members."""
    for teacher in teachers:
        if isinstance(teacher, dict):
            yield teacher
            yield from _single(teacher.get("members") or ())


def _as_reported(found: Licence, source: Source) -> Licence:
    """What the report of the run knows, where nothing was found now."""
    known = source.report.lineage
    if found.licence != UNKNOWN or known is None:
        return found
    for one in known.sources:
        same = found.what.startswith(one.what) and one.place == found.source
        if same and one.licence != UNKNOWN and not one.licence.startswith("see "):  # its text is not here
            return found.model_copy(update={"licence": one.licence})
    return found


def _licence(what: str, spec: Any, folder: Path) -> Licence:
    """A model made from a config has no licence but its user's; of others, what lies beside them says it."""
    spec = spec if isinstance(spec, dict) else {"kind": spec}
    if what != "data" and spec.get("kind") == "config":
        return Licence(what=what, licence="your own", source="trained from random weights")
    said = next((spec[key] for key in ("path", "train") if spec.get(key)), None)
    said = said[0] if isinstance(said, list) else said
    if said is None:
        return Licence(what=what, licence=UNKNOWN, source=str(spec.get("kind")))
    shown, path = str(_place(said)), Path(said).expanduser()
    beside = path if path.is_dir() else path.parent
    if not path.exists():
        return Licence(what=what, licence=UNKNOWN, source=shown)
    copied = None
    for text in licences_beside.texts(beside):
        folder.mkdir(parents=True, exist_ok=True)
        copied = folder / f"{what}-{text.name}"
        copied.write_bytes(text.read_bytes())
    read_it = f"see {folder.name}/{copied.name}" if copied else UNKNOWN
    named = licences_beside.named(path)
    return Licence(what=what, licence=named[0] if named else read_it, source=shown)
