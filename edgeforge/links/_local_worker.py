"""`_worker` on this machine, where EdgeForge is installed: every runtime it has, with its own error messages.

Language models are measured here too: what `_text_worker` does of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeforge.core.errors import EdgeForgeError
from edgeforge.links import _text_worker, _worker
from edgeforge.links._worker import Session
from edgeforge.runtimes import Processor, runtime_on


class Installed:
    """The runtimes found in `edgeforge.runtimes` and by entry points."""

    refusals: tuple[type[Exception], ...] = (EdgeForgeError,)
    version: str | None = None

    def prepare(self, kind: str, processor: Processor) -> Callable[[Path, int], Session]:
        """Raises EdgeForgeError where this runtime cannot run here, or not on that processor."""
        runtime = runtime_on(kind, processor)
        reason = f"{kind} does not compute on a GPU here" if runtime is None else runtime.available()
        if runtime is None or reason is not None:
            raise EdgeForgeError(str(reason))
        runtime.prepare()
        return lambda folder, threads: runtime.open(folder, threads=threads)


def start(job: Mapping[str, Any], *rest: Any) -> None:
    """Of whatever the subject is."""
    (_text_worker if job.get("new_tokens") else _worker).start(job, *rest)


def race(job: Mapping[str, Any], *rest: Any) -> None:
    """Of whatever the subjects are."""
    (_text_worker if job.get("new_tokens") else _worker).race(job, *rest)


if __name__ == "__main__":
    _worker.main(Installed(), {"start": start, "race": race, "speculate": _text_worker.speculate})
