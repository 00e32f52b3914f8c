"""What an app's developer is handed: a folder and a zip with the model, its wrapper, and a self-test; one file per
platform.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeforge.core.errors import ConfigurationError
from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec, perhaps

if TYPE_CHECKING:
    from edgeforge.bundles._contract import Contract
    from edgeforge.bundles._source import Source


class Bundle(Spec):
    """Base of every kind of bundle."""

    kind: str
    formats: ClassVar[tuple[str, ...]]
    """Artifact formats it takes, the first preferred."""

    def write(self, source: Source, folder: Path, *, earlier: Path | None = None) -> Contract:
        """Write the platform's own files into the empty `folder`: all but README, licences' list and checksums.

        `earlier` is the folder of this bundle as it was made before, if it was.
        Raises ModelError where the artifact cannot be what the platform wants.
        """
        raise NotImplementedError


def bundle_for(target: str) -> Bundle:
    """The kind of that name. Raises ConfigurationError with the nearest known one."""
    known = discover("edgeforge.bundles", Bundle)
    if target not in known:
        raise ConfigurationError(perhaps("unknown target", target, list(known)), where="--target")
    return known[target].model_validate({"kind": target})  # type: ignore[return-value]
