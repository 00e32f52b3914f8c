"""What a device that is not at hand would probably need for a file: one file per way to tell.

An estimate is no measurement. It comes with its 80 % interval, with the error the same method made on models it had
not seen, and with how many measured models it rests on; where there is too little to go by, it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeforge.core.kinds import discover
from edgeforge.core.spec import Spec

Unit = Literal["cpu", "npu"]


class Known(Spec):
    """One combination that an estimator has measurements of, on one device."""

    unit: Unit
    runtime: str
    precision: str
    rows: int = Field(description="Measured models it rests on.")
    error: float = Field(description="Median relative error on a model left out of the fit (0.2: 20 %).")


class Estimate(Known):
    """A latency of one sample that nobody measured."""

    latency_ms: float
    interval80_ms: tuple[float, float] = Field(description="Holds the truth in four of five cases.")
    source: str


class Refusal(Spec):
    """Why there is no estimate for a unit, as a sentence; `unit` is None where it holds for the whole device."""

    unit: Unit | None
    reason: str


class Estimator(Spec):
    """Base of every estimator."""

    kind: str

    def known(self, device: str) -> tuple[Known, ...]:
        """What there are measurements of for a device, by profile name; empty where there are none."""
        raise NotImplementedError

    def digest(self, device: str) -> str:
        """sha256 of all that its estimates for the device rest on: part of a step's key."""
        raise NotImplementedError

    def estimate(self, device: str, folder: Path, format: str) -> tuple[Estimate | Refusal, ...]:
        """The latency of the file in an artifact's folder, one answer for each unit of the device it knows.

        The graph itself says its precision and its work. Raises ModelError where the file cannot be read.
        """
        raise NotImplementedError


def estimator_for(device: str) -> Estimator | None:
    """The first estimator that knows a device, by profile name; None where no one does."""
    for cls in discover("edgeforge.estimators", Estimator).values():
        estimator: Estimator = cls(kind=cls.model_fields["kind"].default)  # type: ignore[call-arg,assignment]
        if estimator.known(device):
            return estimator
    return None
