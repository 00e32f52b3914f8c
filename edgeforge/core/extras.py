"""The one place where an absent library is noticed."""

from __future__ import annotations

import importlib
from types import ModuleType

from edgeforge.core.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, or say which extra brings it.

    Raises MissingExtraError when the top-level package is not installed; any other import error
    (a broken installation) propagates unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{module.partition('.')[0]} is not installed",
            remedy=f"pip install 'edgeforge[{extra}]'",
        ) from error
