"""Every kind on every axis, described from its own code: what `explain`, `schema` and the README's tables show."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from edgeforge.architectures import Architecture
from edgeforge.checkers import Checker
from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec, perhaps
from edgeforge.core.stage import Stage
from edgeforge.core.task import Task
from edgeforge.criteria import Criterion
from edgeforge.data import DataSource
from edgeforge.estimators import Estimator
from edgeforge.exporters import Exporter
from edgeforge.fetchers import Fetcher
from edgeforge.filters import Filter
from edgeforge.links import Link
from edgeforge.losses import Loss
from edgeforge.models import Model
from edgeforge.pipeline import Budgets, Pipeline, Target
from edgeforge.quantizers import Quantizer
from edgeforge.renderers import Renderer
from edgeforge.runtimes import Runtime
from edgeforge.structures import Structure
from edgeforge.students import Student
from edgeforge.teachers import Teacher

_BASES: Mapping[str, type[Spec]] = {
    "tasks": Task,
    "data": DataSource,
    "models": Model,
    "architectures": Architecture,
    "stages": Stage,
    "students": Student,
    "teachers": Teacher,
    "filters": Filter,
    "checkers": Checker,
    "losses": Loss,
    "structures": Structure,
    "criteria": Criterion,
    "quantizers": Quantizer,
    "exporters": Exporter,
    "runtimes": Runtime,
    "links": Link,
    "estimators": Estimator,
    "renderers": Renderer,
    "fetchers": Fetcher,
}
_FILE: Mapping[str, type[Spec]] = {"pipeline": Pipeline, "targets": Target, "budgets": Budgets}


@dataclass(frozen=True)
class Axis:
    """One folder of choices."""

    name: str
    base: type[Spec]

    @property
    def package(self) -> str:
        return f"edgeforge.{self.name}"

    @property
    def title(self) -> str:
        """What it decides: the beginning of the folder's docstring, up to the colon."""
        return _first_line(importlib.import_module(self.package)).partition(":")[0].rstrip(".")

    def kinds(self) -> Mapping[str, type[Spec]]:
        """Its kinds by the word a user writes."""
        return discover(self.package, self.base)


@dataclass(frozen=True)
class Option:
    """One field of a spec, in words. `default` is YAML; None where the field must be given."""

    name: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True)
class Entry:
    """Something that `explain` can explain. `axis` is empty for the parts of the pipeline file itself."""

    word: str
    axis: str
    spec: type[Spec]

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return _first_line(self.spec)

    @property
    def text(self) -> str:
        """The whole docstring."""
        return inspect.getdoc(self.spec) or ""

    @property
    def options(self) -> list[Option]:
        """Every field but `kind`, in order."""
        return [
            Option(name, type_in_words(field), _default(field), field.description or "")
            for name, field in self.spec.model_fields.items()
            if name != "kind"
        ]

    @property
    def parts(self) -> list[Entry]:
        """The specs inside it that are no choice of their own (``recover``, ``augment``), to any depth."""
        found = []
        for name, field in self.spec.model_fields.items():
            for cls in _classes(field.annotation):
                if isinstance(cls, type) and issubclass(cls, Spec) and cls not in _BASES.values():
                    part = Entry(name, "", cls)
                    found += [part, *part.parts]
        return found

    @property
    def example(self) -> str:
        """YAML with every field at its default; `...` stands for what must be given."""
        lines = [f"kind: {self.word}"] if self.axis else []
        lines += [f"{item.name}: {'...' if item.default is None else item.default}" for item in self.options]
        return "\n".join(lines)

    @property
    def chosen_by(self) -> list[str]:
        """The fields of other specs that take this axis, as ``distill.losses``."""
        base = _BASES.get(self.axis)
        holders = [*(entry for axis in axes() for entry in entries(axis.name)), *_parts()]
        return [
            f"{holder.word}.{name}"
            for holder in holders
            for name, field in holder.spec.model_fields.items()
            if base is not None and base in _classes(field.annotation)
        ]


def axes() -> list[Axis]:
    """Every axis, in the order in which a pipeline meets them."""
    return [Axis(name, base) for name, base in _BASES.items()]


def entries(axis: str) -> list[Entry]:
    """The kinds of one axis."""
    return [Entry(word, axis, spec) for word, spec in Axis(axis, _BASES[axis]).kinds().items()]


def find(word: str) -> list[Entry]:
    """What a word stands for: a kind (on every axis that has one of that name), an axis, or a part of the file.

    ``structures.layers`` means the kind on that axis only. Raises ConfigurationError with the nearest known word.
    """
    if word in _BASES:
        return entries(word)
    known = [*_parts(), *(entry for axis in axes() for entry in entries(axis.name))]
    found = [entry for entry in known if word in (entry.word, f"{entry.axis}.{entry.word}")]
    if not found:
        words = [*_BASES, *(entry.word for entry in known)]
        raise ConfigurationError(
            perhaps("nothing is called", word, sorted(set(words))), remedy="`edgeforge explain` lists everything"
        )
    return found


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of a pipeline file, for editors."""
    found = Pipeline.model_json_schema()
    for definition in found["$defs"].values():
        if "architecture" in definition["properties"]:
            definition["additionalProperties"] = True  # the family's fields may stand beside it
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def _parts() -> list[Entry]:
    return [Entry(word, "", spec) for word, spec in _FILE.items()]


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]


# -- types and defaults in words


def type_in_words(field: FieldInfo) -> str:
    """``integer, at least 0``, ``one of losses``, ``adamw | sgd``, ``list of number``, ``... or null``."""
    words = _words(field.annotation)
    limits = _limits(field.metadata)
    if not limits:
        return words
    plain, nullable, _ = words.partition(" or null")
    return f"{plain}, {limits},{nullable}" if nullable else f"{plain}, {limits}"


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (Union, UnionType):
        parts = [_words(item) for item in arguments if item is not NoneType]
        return " or ".join([*parts, "null"] if NoneType in arguments else parts)
    if origin is tuple:
        inner = dict.fromkeys(_words(item) for item in arguments if item is not ...)
        return f"list of {' and '.join(inner)}".replace("of one of", "of")
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{_words(arguments[0])}: {_words(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return _words(arguments[0])
    return _plain(annotation)


def _plain(annotation: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true | false"}
    if annotation in names:
        return names[annotation]
    for axis, base in _BASES.items():
        if annotation is base:
            return f"one of {axis}"
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return "keys, see below"
    return getattr(annotation, "__name__", str(annotation)).lower()


def _limits(metadata: list[Any]) -> str:
    said = {
        annotated_types.Ge: ("at least", "ge"),
        annotated_types.Gt: ("above", "gt"),
        annotated_types.Le: ("at most", "le"),
        annotated_types.Lt: ("below", "lt"),
    }
    found = [f"{said[type(item)][0]} {getattr(item, said[type(item)][1])}" for item in metadata if type(item) in said]
    return ", ".join(found)


def _classes(annotation: Any) -> Iterator[Any]:
    yield annotation
    for item in get_args(annotation):
        yield from _classes(item)


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    return _flow(_short(field.get_default(call_default_factory=True)))


def _short(value: Any) -> Any:
    """Plain data with every nested default left out, as a person would write it."""
    if isinstance(value, Spec):
        fields = type(value).model_fields
        inside = {
            name: _short(getattr(value, name))
            for name, field in fields.items()
            if name != "kind" and (field.is_required() or getattr(value, name) != field.get_default())
        }
        kind = getattr(value, "kind", None)
        return inside if kind is None else {"kind": kind, **inside} if inside else kind
    if isinstance(value, tuple | list):
        return [_short(item) for item in value]
    return value


def _flow(value: Any) -> str:
    """YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
