"""Naming layers in a spec: module paths, with * and ?, or a module for all in it."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.spec import perhaps


def matching(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The `names` that a user's patterns mean. Raises ConfigurationError for one that means none."""
    found = []
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not hits:
            raise ConfigurationError(
                perhaps("no layer is named", pattern, list(names)),
                where="quantize.keep",
                remedy="name a layer or module",
            )
        found += hits
    return found
