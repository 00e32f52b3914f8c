"""What a user can say about training. `train`, `distill`, `finetune` and `recover` all take these fields."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from edgeforge.core.errors import IncompatiblePlanError
from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import Spec
from edgeforge.losses import Loss
from edgeforge.losses.hard_labels import HardLabels
from edgeforge.teachers import Request, Teacher
from edgeforge.teachers.model import Model as TeacherModel
from edgeforge.training.adapters import Lora
from edgeforge.training.mixture import DATASET, Mix, check_task
from edgeforge.training.on_policy import OnPolicy
from edgeforge.training.transfer import Transfer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgeforge.core.task import Split, Task

DEFAULT_EPOCHS = 5
MODULES = (
    "edgeforge.training.adapters",
    "edgeforge.training.loop",
    "edgeforge.training.mixture",
    "edgeforge.training.objective",
    "edgeforge.training.precision",
    "edgeforge.training.sampling",
    "edgeforge.training.transfer",
    "edgeforge.training.validation",
)
"""What decides how a training stage ends, beside its kinds."""
NOT_IDENTITY: dict[str, Any] = {"name": True, "checkpoint_seconds": True, "mix": {"stage"}}
"""What of a training stage cannot change its result. The written texts are an input, whose key stands beside this."""


class Recipe(Spec):
    """How long and how a model is trained."""

    epochs: int | None = Field(
        default=None, ge=1, description=f"Passes over the training data; {DEFAULT_EPOCHS} where `steps` is absent too."
    )
    steps: int | None = Field(default=None, ge=1, description="Optimizer steps, instead of `epochs`.")
    batch_size: int = Field(
        default=128,
        ge=1,
        description="Samples per optimizer step, over all processes together; of texts to go on with, windows.",
    )
    accumulate: int = Field(
        default=1, ge=1, description="Pieces a batch is processed in, to save memory; gradients are summed."
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="AdamW (Loshchilov & Hutter, 2019) or SGD with Nesterov momentum 0.9."
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Its peak.")
    weight_decay: float = Field(default=0.01, ge=0, description="Applied to weights, not to biases and norms.")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="Share of the steps in which the rate rises from zero.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="What the learning rate does after warm-up: falls to zero, or stays."
    )
    cycles: int = Field(
        default=1,
        ge=1,
        description="Times that the schedule runs, warm-up included, in equal parts of all steps (warm restarts: "
        "Loshchilov & Hutter, 2017).",
    )
    clip_norm: float | None = Field(default=None, gt=0, description="Largest norm of the whole gradient.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="`auto`: bfloat16 autocast where the processor multiplies it natively."
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="Decay of a running average of the weights, which is what is kept."
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="`best`: the epoch with the best validation metric, instead of the last."
    )
    mix: Mix | None = Field(default=None, description="Further texts that an earlier stage wrote; absent: none.")
    lora: Lora | None = Field(default=None, description="Train low-rank adapters only; absent: all weights.")
    checkpoint_seconds: float = Field(
        default=30, ge=0, description="Time between checkpoints; a killed run goes on from the last one."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give 'epochs' or 'steps', not both")
        if self.batch_size % self.accumulate:
            raise ValueError("'accumulate' must divide 'batch_size'")
        return self

    def written(self) -> dict[str, str]:
        """The further texts, as one of a stage's `sources`."""
        return {} if self.mix is None else {DATASET: self.mix.stage}

    def total_steps(self, train_size: int) -> int:
        """Optimizer steps for a training split of this size; the last partial batch of an epoch is left out."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or DEFAULT_EPOCHS) * max(1, train_size // self.batch_size)


class Recovery(Recipe):
    """How a pruned model is brought back: training, with the unpruned model as teacher where a loss asks for one."""

    losses: tuple[Annotated[Loss, OneOf("edgeforge.losses")], ...] = Field(
        default=(HardLabels(),), min_length=1, description="What is minimised: their weighted sum."
    )
    teacher: Annotated[Teacher, OneOf("edgeforge.teachers")] | None = Field(
        default=None, description="Who teaches, where a loss needs a teacher; absent: the model before pruning."
    )
    on_policy: OnPolicy | None = Field(
        default=None, description="Teach on texts that the student writes, too (language models); absent: no."
    )
    transfer: Transfer | None = Field(default=None, description="Teach on some of the samples; absent: on all.")


def needs_teacher(losses: tuple[Loss, ...]) -> bool:
    """Whether any of these losses reads a teacher's outputs."""
    return any(loss.needs_teacher for loss in losses)


def split_of(losses: tuple[Loss, ...]) -> Split:
    """Which samples these losses can learn from: those without a label, too, where a teacher answers."""
    return "transfer" if needs_teacher(losses) else "train"


def teacher_identity(teacher: Teacher | None) -> dict[str, Any]:
    """What a stage's key says of its teacher, beside the artifacts that it reads, whose keys stand there, too."""
    own = {} if teacher is None else teacher.identity()
    return {"teacher": own} if own else {}


def check_losses(losses: tuple[Loss, ...]) -> None:
    """Raise IncompatiblePlanError where the sum of losses cannot train anything."""
    if not any(loss.weight > 0 for loss in losses):
        raise IncompatiblePlanError("every loss has weight 0", remedy="give one of them a positive weight")


def check_teacher(
    recipe: Recipe, teacher: Teacher | None, losses: tuple[Loss, ...], on_policy: OnPolicy | None = None
) -> None:
    """Raise IncompatiblePlanError where the losses, or on-policy texts, ask more of the teacher than it can answer."""
    if teacher is not None:
        teacher.check(Request(losses, recipe.cycles, on_policy is not None))
    if teacher is not None and teacher.keeps() is not None:
        for loss in losses:
            _check_buckets(loss, where="teacher.top_k")
    if on_policy is not None:
        _check_on_policy(teacher, losses)


def _check_buckets(loss: Loss, where: str) -> None:
    if loss.needs_teacher and not loss.compares_buckets:
        raise IncompatiblePlanError(
            f"`{loss.kind}` reads every logit, and `top_k` keeps the likeliest and the sum of the others",
            where=where,
            remedy="use `soft_targets`, `reverse_kl` or `jensen_shannon`, or `teacher: model`",
        )
    if loss.needs_teacher and getattr(loss, "temperature", 1.0) != 1.0:
        raise IncompatiblePlanError(
            f"`{loss.kind}` has a temperature other than 1, which makes more or less of each of the tokens whose sum "
            "alone `top_k` keeps",
            where=where,
            remedy=f"use {{kind: {loss.kind}, temperature: 1}}, or `teacher: model`",
        )


def _check_on_policy(teacher: Teacher | None, losses: tuple[Loss, ...]) -> None:
    if teacher is not None and teacher.recorded():
        raise IncompatiblePlanError(
            f"the `{teacher.kind}` teacher answered before the student wrote anything",
            where="on_policy",
            remedy="use `teacher: model`, or leave `on_policy` out",
        )
    if not any(loss.needs_teacher and loss.weight > 0 for loss in losses):
        raise IncompatiblePlanError(
            "nobody judges what the student writes: no loss asks for a teacher",
            where="on_policy",
            remedy="add e.g. `- jensen_shannon` to `losses`",
        )


def check_fits(recipe: Recipe, model: PreTrainedModel, task: Task) -> None:
    """Refuse what cannot be trained, by the model's shape and the task's data.

    Raises ModelError, IncompatiblePlanError.
    """
    if recipe.lora is not None:
        recipe.lora.names(model)
    check_task(task, recipe.mix)
    if isinstance(transfer := getattr(recipe, "transfer", None), Transfer):
        transfer.rows(task.open(), split_of(recipe.losses))  # type: ignore[attr-defined]  # both stages that have one
    if getattr(recipe, "on_policy", None) is not None and not task.open().interface.per_token:
        raise IncompatiblePlanError(
            "only a language model writes texts, and this task has a label for each sample",
            where="on_policy",
            remedy="leave `on_policy` out",
        )


def default_teacher() -> Teacher:
    """The chain's model so far."""
    return TeacherModel()
