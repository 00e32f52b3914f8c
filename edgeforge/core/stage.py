"""A stage is one step of work: a spec and what it does, together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from edgeforge.core.artifact import Artifact
from edgeforge.core.spec import Spec
from edgeforge.core.task import Task, TaskData

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


class Progress(Protocol):
    """Where a stage says how far it is. Messages are for people; nothing reads them back."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of this stage's work are finished."""

    def warn(self, message: str) -> None:
        """Something the user should know; it is repeated in the report."""


@dataclass(frozen=True)
class Job:
    """All a stage is given beside its inputs. `folder` is a draft: what is written there is sealed afterwards.

    What a stage left in `folder` under ``checkpoint/`` when it was interrupted is there when it runs again,
    and is removed before sealing. `model` is the folder of the artifact that the stage works on, None in a rehearsal.
    """

    task: Task
    folder: Path
    seed: int
    make_accelerator: Callable[[], Accelerator]
    progress: Progress
    model: Path | None = None

    @property
    def data(self) -> TaskData:
        """The task's data as this model reads them."""
        return self.task.open(self.model)

    @property
    def accelerator(self) -> Accelerator:
        """The process group and device of this run (made at first use, since it imports torch)."""
        return self.make_accelerator()


class Stage(Spec):
    """Base of every stage.

    Class facts: `accepts` are the formats its ``model`` input may have, `makes` is the format it writes,
    `needs` are the distributions whose versions may change its result, `uses` are the modules whose code may,
    `in_chain` says whether a pipeline's `stages` may name it, `distributed` says whether every process of
    ``accelerate launch`` takes part.
    """

    kind: str
    name: str | None = Field(default=None, description="What later stages call this one; absent: its kind.")

    accepts: ClassVar[frozenset[str]] = frozenset({"torch"})
    makes: ClassVar[str] = "torch"
    in_chain: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    distributed: ClassVar[bool] = False

    def makes_format(self) -> str:
        """The format it writes; stages whose fields decide it override this."""
        return self.makes

    def identity(self) -> dict[str, Any]:
        """All of the spec that can change the result, as plain JSON: part of the artifact's key."""
        return self.model_dump(mode="json", exclude={"name"})

    def sources(self) -> Mapping[str, Any]:
        """Further inputs by name: a stage's name, a `Model` of its own, or None for the chain's model so far."""
        return {}

    def check(self) -> None:
        """Refuse, from the spec alone, what cannot work. Raises IncompatiblePlanError."""

    def work(self, train_size: int) -> int:
        """Training samples this stage will process, for `plan`'s estimate."""
        return 0

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        """The model this stage would make, in shape only, so that what cannot fit is found before any work.

        `model` has arbitrary weights and may be changed. Raises ModelError or IncompatiblePlanError.
        """
        return model

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        """Do the work: read `inputs`, write files into ``job.folder``, return the facts to record (plain JSON)."""
        raise NotImplementedError
