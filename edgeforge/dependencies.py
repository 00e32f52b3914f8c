"""What a spec's work depends on beside its own numbers: EdgeForge's modules, and libraries that must be installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from edgeforge.core.errors import MissingExtraError
from edgeforge.core.spec import Spec, nested_specs


def modules_of(spec: Spec) -> set[str]:
    """Modules whose code may change what a spec does: those of its kinds and their bases, and those they name."""
    found: set[str] = set()
    for part in nested_specs(spec):
        classes = [cls for cls in type(part).__mro__ if issubclass(cls, Spec)]
        found.update(cls.__module__ for cls in classes if not cls.__module__.startswith("edgeforge.core"))
        found.update(part.uses)
    return found


def libraries_of(spec: Spec) -> set[str]:
    """The distributions that the kinds of a spec need."""
    return {name for part in nested_specs(spec) for name in part.needs}


def check_installed(spec: Spec) -> None:
    """Raise MissingExtraError where a distribution that a spec's kinds need is not installed."""
    for name in sorted(libraries_of(spec)):
        try:
            version(name)
        except PackageNotFoundError as error:
            raise MissingExtraError(
                f"{spec.kind if hasattr(spec, 'kind') else 'this'} needs {name}, which is not installed",
                remedy=f"pip install 'edgeforge[{_extra_of(name)}]'",
            ) from error


def _extra_of(distribution: str) -> str:
    for line in requires("edgeforge") or ():
        requirement = Requirement(line)
        if requirement.name.lower() == distribution.lower() and requirement.marker is not None:
            extra = str(requirement.marker).rpartition("==")[2].strip(" \"'")
            if extra not in ("all", "test"):
                return extra
    return "all"
