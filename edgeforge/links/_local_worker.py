"""`_worker` on this machine, where EdgeForge is installed: every runtime it has, with its own error messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgeforge.core.errors import EdgeForgeError
from edgeforge.core.kinds import discover
from edgeforge.links._worker import Session, main
from edgeforge.runtimes import Runtime


class Installed:
    """The runtimes found in `edgeforge.runtimes` and by entry points."""

    refusals: tuple[type[Exception], ...] = (EdgeForgeError,)
    version: str | None = None

    def prepare(self, kind: str) -> Callable[[Path, int], Session]:
        """Raises EdgeForgeError where this runtime cannot run here."""
        cls = discover("edgeforge.runtimes", Runtime)[kind]
        runtime: Runtime = cls.model_validate({"kind": kind})  # type: ignore[assignment]
        if reason := runtime.available():
            raise EdgeForgeError(reason)
        runtime.prepare()
        return lambda folder, threads: runtime.open(folder, threads=threads)


if __name__ == "__main__":
    main(Installed())
