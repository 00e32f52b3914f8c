"""Specs: frozen, typed, plain descriptions of what a user asked for. No torch, network or environment here."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from importlib.abc import InspectLoader
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Spec(BaseModel):
    """Base of everything a YAML file can say. Unknown keys are refused with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    needs: ClassVar[tuple[str, ...]] = ()
    """Distributions it cannot work without; their versions may change its result."""
    uses: ClassVar[tuple[str, ...]] = ()
    """Further modules whose code may change its result."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    raise unknown_key(str(key), list(cls.model_fields))
        return value


def unknown_key(key: str, known: list[str]) -> PydanticCustomError:
    """The error for a key nobody knows, with the nearest known one; `ctx.key` says which key it was."""
    return PydanticCustomError("unknown_key", "{message}", {"message": perhaps("unknown key", key, known), "key": key})


def perhaps(what: str, word: str, known: list[str]) -> str:
    """``unknown key 'ratoi'; perhaps you meant 'ratio'?`` and the known words behind it."""
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"; perhaps you meant '{near[0]}'?" if near else "."
    return f"{what} '{word}'{hint} Known: {', '.join(sorted(known))}"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def nested_specs(spec: Spec) -> Iterator[Spec]:
    """`spec` and every spec inside it, depth first."""
    yield spec
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Spec):
                yield from nested_specs(item)


@functools.cache
def source_digest(module: str) -> str:
    """sha256 (hex) of a module's source text, read without importing it; a package stands for its own ``__init__``."""
    found = importlib.util.find_spec(module)
    source = found.loader.get_source(module) if found and isinstance(found.loader, InspectLoader) else None
    if source is None:
        raise TypeError(f"the source of {module} cannot be read, so what it makes cannot be kept")
    return hashlib.sha256(source.encode()).hexdigest()
