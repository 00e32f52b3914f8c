"""Early exits taught by the deepest one (Zhang et al., 2019, arXiv:1905.08094; exits: BranchyNet, arXiv:1709.01686)."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgeforge import architectures
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.kinds import OneOf
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.core.task import Task
from edgeforge.losses import Loss, Training
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.training.recipe import MODULES, NOT_IDENTITY, Recipe, check_losses

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel

    from edgeforge.training.branches import Branches
    from edgeforge.training.peers import Peers

Block = Annotated[int, Field(ge=0)]
Place = Literal["last"] | Block
LAST: Literal["last"] = "last"


class Exits(Stage, Recipe):
    """Train the chain's model with exits after earlier blocks: "be your own teacher"; then end it at one of them.

    Every exit learns from the labels, and all but the deepest, which is the model's own end, from the deepest one's
    answers of the same step (arXiv:1905.08094); no gradient flows into those. `{kind: hidden_states, weight: ...}`
    among the losses is the paper's hint: what the block before an exit puts out is held against what the last block
    does. Without a loss that asks for a teacher it is joint training of exits, as in BranchyNet (arXiv:1709.01686).

    `use` says where the model ends afterwards: cut after that block, with that exit's last layers, it is a smaller
    model of its family that plain `from_pretrained` and every exporter take. The report's facts have the validation
    metric and the size of every exit, to choose by. Nothing decides exit by exit at inference, sample by sample.

    An exit is what its family has behind the blocks (a pooler, a norm, a classifier) with fresh weights; the paper
    puts further convolutions there, which no config could say. For classifiers whose family can end after any block:
    BERT, DistilBERT, ELECTRA, RoBERTa, ViT, ResNet, ConvNeXt. Not for language models.
    """

    kind: Literal["exits"] = "exits"
    after: tuple[Block, ...] = Field(
        min_length=1,
        description="Blocks after which there is an exit, counted from 0 through all stages; the end is one anyway.",
    )
    losses: tuple[Annotated[Loss, OneOf("edgeforge.losses")], ...] = Field(
        default=(HardLabels(weight=0.9), SoftTargets(weight=0.1, temperature=3.0)),
        min_length=1,
        description="What each exit minimises: their weighted sum. Those that need a teacher have the deepest exit's "
        "answers, which itself learns from the others only.",
    )
    use: Place = Field(
        default=LAST, description="Where the chain's model ends: after one of these blocks, or where it did."
    )

    needs: ClassVar[tuple[str, ...]] = ("torch", "transformers", "accelerate")
    uses: ClassVar[tuple[str, ...]] = (
        *MODULES,
        "edgeforge.models.exits",
        "edgeforge.training.branches",
        "edgeforge.training.peers",
        *(module.name for module in pkgutil.iter_modules(architectures.__path__, "edgeforge.architectures.")),
    )
    distributed: ClassVar[bool] = True

    @model_validator(mode="after")
    def _exits_are_in_order(self) -> Self:
        if list(self.after) != sorted(set(self.after)):
            raise ValueError("after must rise, each block once")
        if self.use != LAST and self.use not in self.after:
            raise ValueError(f"use names block {self.use}, after which there is no exit: add it to after")
        return self

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=NOT_IDENTITY)

    def check(self) -> None:
        check_losses(self.losses)
        if not any(loss.weight > 0 and not loss.needs_teacher for loss in self.losses):
            raise IncompatiblePlanError(
                "the deepest exit would learn from nothing: every loss asks for a teacher, and it has none",
                where="losses",
                remedy="add `- hard_labels`",
            )
        deeper = [loss.kind for loss in self.losses if loss.outputs - {"hidden_states"}]
        if deeper:
            raise IncompatiblePlanError(
                f"`{deeper[0]}` reads attention, which exits do not compare",
                where="losses",
                remedy="use losses on logits such as `soft_targets`, or `hidden_states`",
            )
        for name, said in (("lora", self.lora), ("mix", self.mix)):
            if said is not None:
                why = "an exit's layers are new and train whole" if name == "lora" else "it is for language models"
                raise IncompatiblePlanError(f"`{name}` has no place here: {why}", where=name, remedy="leave it out")

    def work(self, train_size: int) -> int:
        return self.total_steps(train_size) * self.batch_size

    def rehearse(self, model: PreTrainedModel, task: Task) -> PreTrainedModel:
        import torch

        from edgeforge.models.exits import check_exits

        data = task.open()
        if data.interface.per_token:
            raise IncompatiblePlanError(
                "exits are for classifiers, and this task's models write texts",
                where="exits",
                remedy="for a language model of fewer blocks: `{kind: prune, structure: layers}`, or `distill` with "
                "`student: {kind: layers, ...}`",
            )
        check_exits(model.config, self.after)
        branches, trainee = self._trainee(model, seed=0)
        batch = data.batch("train", [0, min(1, data.size("train") - 1)])
        with torch.no_grad():
            trainee.make_loss_modules(batch, Training(samples=data.size("train"), seed=0))
            trainee.eval()(batch, None)
        return self._ended(branches, self.use)

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        from edgeforge.models import loading
        from edgeforge.models.footprint import footprint
        from edgeforge.training.loop import fit
        from edgeforge.training.validation import model_validated

        branches, trainee = self._trainee(loading.load(inputs["model"].path), seed=job.seed)
        facts = fit(trainee, self, data=job.data, job=job, split="transfer")
        rows: dict[Place, dict[str, Any]] = {}
        places: list[Place] = [*self.after, LAST]
        for place in places:
            ended = self._ended(branches, place)
            name, value = model_validated(ended, task=job.task, data=job.data, device=job.accelerator.device)
            rows[place] = {"after": place, "metric": name, "validation": value, **footprint(ended, job.data.interface)}
            if place == self.use and job.accelerator.is_main_process:
                loading.save(ended, job.folder, tokenizer_from=inputs["model"].path)
        size = {name: rows[self.use][name] for name in ("params", "macs", "size_bytes")}
        return {**size, **facts, "exits": list(rows.values()), "used": self.use}

    def _trainee(self, model: PreTrainedModel, *, seed: int) -> tuple[Branches, Peers]:
        """The model with its exits, and what the loop trains."""
        import torch

        from edgeforge.models.exits import new_head
        from edgeforge.training.branches import Branches
        from edgeforge.training.peers import Peers

        torch.manual_seed(derive(seed, "exits"))
        branches = Branches(model, {block: new_head(model, block + 1) for block in self.after})
        deepest = len(self.after)
        used = deepest if self.use == LAST else self.after.index(self.use)
        teachers = [[deepest]] * deepest + [[]]
        return branches, Peers(branches, self.losses, teachers=teachers, chosen=[used])

    def _ended(self, branches: Branches, place: Place) -> PreTrainedModel:
        """The model as it is where it ends there; where that is its own end, itself."""
        from edgeforge.models.exits import ended_after

        if place == LAST:
            return branches.model.eval()
        return ended_after(branches.model, place + 1, branches.heads[str(place)])
