"""What runs a shipped file: one file per runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


Processor = Literal["cpu", "cuda"]
"""What computes: this machine's processor, or its NVIDIA GPU (untested on hardware)."""

PROCESSOR = (
    "`cpu`, or `cuda`: this machine's NVIDIA GPU, its results copied back before a call ends. Untested on hardware."
)


class Session(Protocol):
    """An opened model file."""

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Logits, float32, shape (N, labels), for inputs by name."""


class TextSession(Session, Protocol):
    """An opened language model that reads and writes token by token, remembering what it has read."""

    def prefill(self, tokens: Sequence[int], *, room: int = 256) -> int:
        """Forget all, read `tokens`, return the likeliest next one. `room`: how many `decode` may add."""

    def decode(self, token: int) -> int:
        """Read one more token, return the likeliest next one. Raises ModelError where there is no room for it."""

    def clear(self) -> None:
        """Forget what was read."""


class Runtime(Spec):
    """Base of every runtime."""

    kind: str
    format: ClassVar[str]
    """The artifact format it opens."""
    processors: ClassVar[frozenset[str]] = frozenset({"cpu"})
    """What it can compute on; a runtime that has a choice has a field `processor`."""
    measures_speed: ClassVar[bool] = True
    """False: how fast it is says nothing about any device, so it gives answers and is never timed."""

    def available(self) -> str | None:
        """None where this runtime can run here, else the reason it cannot, as a sentence."""
        return None

    def prepare(self) -> None:
        """Import the runtime's library, so that the time `open` takes is the model's own."""

    def open(self, folder: Path, *, threads: int | None = None) -> Session:
        """Load the model in an artifact's folder. `threads`: how many it may use, None for its own choice."""
        raise NotImplementedError

    def context_length(self, folder: Path) -> int | None:
        """Tokens of the longest text that the language model in a folder takes; None where it does not say."""
        return None

    def bytes_per_token(self, folder: Path) -> int | None:
        """Bytes of weights that a language model reads for each token it writes; None where that is not known."""
        return None


def runtime_on(kind: str, processor: Processor) -> Runtime | None:
    """The runtime of that kind, computing there; None where it cannot. Raises KeyError for an unknown kind."""
    from edgeforge.core.kinds import discover

    cls = discover("edgeforge.runtimes", Runtime)[kind]
    if processor not in cls.processors:  # type: ignore[attr-defined]
        return None
    chosen = {"processor": processor} if processor != "cpu" else {}
    return cls.model_validate({"kind": kind, **chosen})  # type: ignore[return-value]


def runtime_for(format: str, *, timed: bool = True) -> Runtime | None:
    """The runtime that opens an artifact format, or None: one that can run here, where there is any.

    `timed`: only runtimes whose speed means something. Without, the one that ships still goes first.
    """
    from edgeforge.core.kinds import discover

    classes = [cls for cls in discover("edgeforge.runtimes", Runtime).values() if cls.format == format]  # type: ignore[attr-defined]
    found: list[Runtime] = [cls(kind=cls.model_fields["kind"].default) for cls in classes]  # type: ignore[call-arg,misc]
    found = sorted((one for one in found if one.measures_speed or not timed), key=lambda one: not one.measures_speed)
    return next((one for one in found if one.available() is None), found[0] if found else None)
