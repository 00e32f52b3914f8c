"""Values against a JSON schema (draft 2020-12, or what its `$schema` says)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.extras import require

_FENCE = "```"


class JsonSchema:
    """A schema that was checked. References lead to places in itself only: nothing is brought from elsewhere."""

    def __init__(self, schema: Mapping[str, Any], where: str) -> None:
        """Raises ConfigurationError where it is no schema, MissingExtraError."""
        library = require("jsonschema", "api")
        validator = library.validators.validator_for(schema, default=library.Draft202012Validator)
        try:
            validator.check_schema(schema)
        except library.SchemaError as error:
            raise ConfigurationError(
                f"this is no JSON schema: {error.message}", where=f"{where} {error.json_path}".strip()
            ) from error
        for reference in _references(schema):
            if not reference.startswith("#"):
                raise ConfigurationError(
                    f"the schema refers to another place: {reference}", where=where, remedy="use `#/$defs/...`"
                )
        self._where, self._library = where, library
        self._unresolvable = require("referencing.exceptions", "api").Unresolvable
        self._validator = validator(schema)

    def problem(self, value: Any) -> str | None:
        """Why a value does not satisfy it, in the same words for all values alike; None where it does."""
        try:
            errors = list(self._validator.iter_errors(value))
        except RecursionError as error:
            raise ConfigurationError("the schema refers to itself without end", where=self._where) from error
        except self._unresolvable as error:
            raise ConfigurationError(f"a `$ref` leads nowhere: {error}", where=self._where) from error
        if not errors:
            return None
        first = self._library.exceptions.best_match(errors)
        place = ".".join("[]" if isinstance(part, int) else part for part in first.absolute_path)
        if first.validator == "required":
            missing = [name for name in first.validator_value if name not in first.instance]
            place, said = ".".join(filter(None, (place, missing[0]))), "missing"
        else:
            said = _SAID.get(first.validator, f"against `{first.validator}`")
        return f"{place}: {said}" if place else said


_SAID = {
    "additionalProperties": "holds what is not asked for",
    "const": "another value",
    "enum": "none of the allowed values",
    "type": "another type",
    "pattern": "not of the form",
    "minLength": "too short",
    "maxLength": "too long",
}


def read_json(text: str) -> Any:
    """The value that a text is, alone or in one code fence. Raises ValueError where it is none."""
    plain = text.strip()
    if plain.startswith(_FENCE) and plain.endswith(_FENCE) and "\n" in plain:
        plain = plain.partition("\n")[2].removesuffix(_FENCE)
    try:
        return json.loads(plain, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _references(value)
