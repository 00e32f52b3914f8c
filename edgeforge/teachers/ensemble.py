"""Several models as one teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError, ModelError
from edgeforge.core.kinds import OneOf
from edgeforge.teachers import OpenTeacher, Request, Teacher
from edgeforge.teachers._source import TeachingModel

if TYPE_CHECKING:
    from typing import Self

    import torch
    from transformers.utils import ModelOutput

    from edgeforge.core.task import Batch, TaskData
    from edgeforge.models import Model


class Ensemble(Teacher):
    """The weighted mean of several models' probabilities (Hinton et al., 2015; You et al., 2017).

    Its logits are the logarithm of that mean, so that every loss on logits applies: at temperature 1 it compares with
    the mean itself, at others it softens the mean; You et al. (https://doi.org/10.1145/3097983.3098135) soften each
    model's probabilities first. Every member is asked for every batch, so a step costs all their forward passes, and
    they all stay in memory; `cached` members cost neither.

    Models of different families and sizes may stand side by side, but layers have no mean: losses on hidden states
    and attention need a single `model`.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: tuple[Annotated[Teacher, OneOf("edgeforge.teachers", without=("ensemble",))], ...] = Field(
        min_length=2, description="Whose answers are averaged: teachers that are models, such as `model` and `cached`."
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, description="One for each member, whatever their sum; absent: all the same."
    )

    why_logits_only: ClassVar[str | None] = (
        "an `ensemble` answers with the mean of its members' probabilities: their layers, each of its own width and "
        "meaning, have no mean"
    )
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.teachers._mean",)

    @model_validator(mode="after")
    def _a_weight_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.members):
            raise ValueError(f"there are {len(self.members)} members and {len(self.weights)} weights")
        return self

    def shares(self) -> tuple[float, ...]:
        """The weights, scaled to a sum of 1."""
        weights = self.weights or (1.0,) * len(self.members)
        return tuple(weight / sum(weights) for weight in weights)

    def sources(self) -> Mapping[str, str | Model | None]:
        return {
            role + suffix: source for suffix, member in self._suffixed() for role, source in member.sources().items()
        }

    def asked(self) -> Mapping[str, Teacher]:
        return {role + suffix: member for suffix, member in self._suffixed() for role in member.sources()}

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, "shares": list(self.shares())}

    def kept_views(self) -> int | None:
        return next(iter({member.kept_views() for member in self.members} - {None}), None)

    def recorded(self) -> bool:
        return any(member.recorded() for member in self.members)

    def check(self, request: Request) -> None:
        super().check(request)
        if len({member.kept_views() for member in self.members} - {None}) > 1:
            raise IncompatiblePlanError(
                "its members keep answers about different numbers of views, and a student sees one view at a time",
                where="teacher.members",
                remedy="give each `cached` member the same `views`",
            )
        for suffix, member in self._suffixed():
            if not member.sources():
                raise IncompatiblePlanError(
                    f"`{member.kind}` reads no model whose probabilities an ensemble could average",
                    where=f"teacher{suffix}",
                    remedy="use `{kind: model, ...}` or `{kind: cached, ...}`",
                )
            if member.keeps() is not None:
                raise IncompatiblePlanError(
                    "`top_k` keeps other tokens of each member, and what it leaves out cannot be averaged",
                    where=f"teacher{suffix}.top_k",
                    remedy="leave it out, or use `kind: model`",
                )
            member.check(request)

    def check_data(self, data: TaskData) -> None:
        for suffix, member in self._suffixed():
            try:
                member.check_data(data)
                if isinstance(member, TeachingModel):
                    member.check_reads(data)
            except (IncompatiblePlanError, ModelError) as error:
                raise type(error)(error.what, where=f"teacher{suffix}", remedy=error.remedy) from error

    def open(self, inputs: Mapping[str, Artifact], device: torch.device, data: TaskData) -> OpenTeacher:
        """See Teacher. Raises ModelError where a member cannot be asked about these data."""
        opened = []
        for suffix, member in self._suffixed():
            own = {role.removesuffix(suffix): found for role, found in inputs.items() if role.endswith(suffix)}
            opened.append(member.open(own, device, data))
        return _Averaging(opened, self.shares())

    def _suffixed(self) -> list[tuple[str, Teacher]]:
        """Every member, with what its roles end in: its place in the pipeline file."""
        return [(f".members[{place}]", member) for place, member in enumerate(self.members)]


class _Averaging(OpenTeacher):
    def __init__(self, members: Sequence[OpenTeacher], shares: Sequence[float]) -> None:
        self._members, self._shares = members, shares

    @property
    def views(self) -> int | None:
        return next((member.views for member in self._members if member.views is not None), None)

    def __call__(self, batch: Batch, outputs: frozenset[str]) -> ModelOutput:
        from transformers.utils import ModelOutput

        from edgeforge.teachers._mean import mean_as_logits

        answers = (member(batch, outputs).logits for member in self._members)
        return ModelOutput(logits=mean_as_logits(answers, self._shares))
