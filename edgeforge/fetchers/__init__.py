"""Example data by name: one file per `edgeforge fetch NAME`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec, perhaps


class Fetcher(Spec):
    """Base of every fetcher."""

    kind: str

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        """Bring the data, check it, and write it into `folder`; the path of the file or folder written.

        What is there already and sound is not brought again. `say` is told what happens, for people.
        Raises EnvironmentProblem, MissingExtraError.
        """
        raise NotImplementedError


def fetcher_named(name: str) -> Fetcher:
    """The fetcher of that name, written with ``-`` or ``_``. Raises ConfigurationError with the nearest known name."""
    found = discover("edgeforge.fetchers", Fetcher)
    kind = name.replace("-", "_")
    if kind not in found:
        known = [word.replace("_", "-") for word in found]
        raise ConfigurationError(perhaps("nothing to fetch is named", name, known), where="edgeforge fetch")
    return found[kind](kind=kind)  # type: ignore[return-value,call-arg]
