"""A folder is an axis of choice; a file is one choice; the file's name is the word a user writes in YAML.

`OneOf("edgeforge.losses")` in a spec's annotation means: any kind found in that folder, chosen by its `kind`.
Other packages add kinds through the entry-point group ``edgeforge.kinds``: each entry names one class, which joins
every axis whose base class it extends.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

from edgeforge.core.spec import Spec, perhaps

if TYPE_CHECKING:
    from typing_extensions import LiteralString

ENTRY_POINT_GROUP = "edgeforge.kinds"


def camel_case(snake: str) -> str:
    """``soft_targets`` -> ``SoftTargets``."""
    return "".join(part.capitalize() for part in snake.split("_"))


def kind_of(cls: type[Spec]) -> str:
    """The word that chooses `cls`: the single value of its ``kind: Literal[...]`` field."""
    annotation = cls.model_fields["kind"].annotation
    (word,) = get_args(annotation)
    return str(word)


@functools.cache
def discover(package: str, base: type[Spec], without: frozenset[str] = frozenset()) -> dict[str, type[Spec]]:
    """Every kind of an axis, by name: the files of `package` and the installed entry points that extend `base`.

    Files whose names start with ``_`` or stand in the package's ``NOT_KINDS`` serve the kinds and are none themselves.
    Those of `without` are not even imported: so a kind may hold others of its own axis.
    Import errors propagate. Raises TypeError where a file's class, its kind and its name do not agree.
    """
    found: dict[str, type[Spec]] = {}
    root = importlib.import_module(package)
    for item in sorted(pkgutil.iter_modules(root.__path__), key=lambda item: item.name):
        if item.name.startswith("_") or item.name in (*getattr(root, "NOT_KINDS", ()), *without):
            continue
        module = importlib.import_module(f"{package}.{item.name}")
        cls = getattr(module, camel_case(item.name), None)
        if not (isinstance(cls, type) and issubclass(cls, base) and kind_of(cls) == item.name):
            raise TypeError(
                f"{module.__name__} must define class {camel_case(item.name)}({base.__name__}) "
                f"with kind: Literal['{item.name}']"
            )
        found[item.name] = cls
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        cls = entry.load()
        if issubclass(cls, base):
            if kind_of(cls) in found:
                raise TypeError(f"entry point {entry.value} repeats the kind '{kind_of(cls)}' of {package}")
            found[kind_of(cls)] = cls
    return found


def union_of(package: str, base: type[Spec], without: frozenset[str] = frozenset()) -> Any:
    """Pydantic's tagged union over every kind of an axis. A bare word is short for ``{kind: word}``."""
    members = discover(package, base, without)

    def desugar(value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if isinstance(value, dict):
            if "kind" not in value:
                raise _refusal("missing_kind", f"'kind' is missing. Known: {', '.join(sorted(members))}", package)
            if not isinstance(value["kind"], str) or value["kind"] not in members:
                said = perhaps("unknown kind", str(value["kind"]), list(members))
                raise _refusal("unknown_kind", said, package)
        return value

    union: Any = Union[tuple(members.values())]
    choice: Any = Annotated[union, Field(discriminator="kind")] if len(members) > 1 else union
    return Annotated[choice, BeforeValidator(desugar, json_schema_input_type=_written(members, choice))]


def _refusal(error: LiteralString, message: str, package: str) -> PydanticCustomError:
    """`ctx` says at which key, and where the known kinds are explained."""
    return PydanticCustomError(
        error, "{message}", {"message": message, "key": "kind", "axis": package.rpartition(".")[2]}
    )


def _written(members: dict[str, type[Spec]], choice: Any) -> Any:
    """The type for editors: the long form, or the bare word of a kind that needs nothing more said."""
    words = tuple(
        word
        for word, cls in members.items()
        if not any(field.is_required() for name, field in cls.model_fields.items() if name != "kind")
    )
    return Union[Literal[words], choice] if words else choice


class OneOf:
    """Marker for ``Annotated[Base, OneOf(package)]``: the field takes any kind of that axis, but those of `without`."""

    def __init__(self, package: str, *, without: tuple[str, ...] = ()) -> None:
        self.package, self.without = package, frozenset(without)

    def __get_pydantic_core_schema__(self, source: type[Spec], handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(union_of(self.package, source, self.without))
