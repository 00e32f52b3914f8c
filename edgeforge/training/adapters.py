"""Low-rank adapters in the place of full training (Hu et al., 2021, "LoRA", arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeforge.core.errors import ModelError
from edgeforge.core.extras import require
from edgeforge.core.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn
    from transformers import PreTrainedModel


class Lora(Spec):
    """Train a low-rank change of each linear layer, and nothing else; it is added to the weights at the end.

    What is kept is a plain model, as large as before. Optimizer and checkpoints hold only the adapters, and what they
    cannot say (norms, embeddings, convolutions) stays as it was.
    """

    rank: int = Field(default=16, ge=1, description="Rank of each change.")
    alpha: float = Field(default=32.0, gt=0, description="Each change is scaled by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before each change.")
    targets: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Layers by the end of their name, such as q_proj; absent: every linear layer but one that gives "
        "the logits of tokens.",
    )

    needs: ClassVar[tuple[str, ...]] = ("peft",)

    def names(self, model: PreTrainedModel) -> list[str]:
        """The layers that are changed. Raises ModelError where a target is none, or shares its weights."""
        from torch import nn

        output = model.get_output_embeddings()
        linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        if self.targets is None:
            return [name for name, module in linear.items() if module is not output]
        for target in self.targets:
            if not any(_ends(name, target) for name in linear):
                raise ModelError(
                    f"no linear layer's name ends in '{target}'",
                    where="lora.targets",
                    remedy=f"this model has {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}",
                )
        found = [name for name in linear if any(_ends(name, target) for target in self.targets)]
        shared = _shared(model)
        for name in found:
            if linear[name].weight.data_ptr() in shared and not linear[name].weight.is_meta:
                raise ModelError(
                    f"{name} shares its weights with another layer, which the change would change too",
                    where="lora.targets",
                    remedy="leave it out",
                )
        return found

    def attach(self, model: PreTrainedModel) -> Adapters:
        """Put adapters into `model`, in place; from then on nothing else of it trains. Raises MissingExtraError.

        They begin without effect, at random as torch's global seed has it.
        """
        peft = require("peft", "lora")
        config = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=self.names(model)
        )
        return Adapters(model, peft.LoraModel(model, {"default": config}, "default"))


class Adapters:
    """The adapters in a model."""

    def __init__(self, model: PreTrainedModel, tuner: Any) -> None:
        self._model, self._tuner = model, tuner

    def merge(self) -> None:
        """Add every change to its weights and take the adapters out: the model is as it came, with other numbers."""
        self._tuner.merge_and_unload(progressbar=False)
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config  # or the library would take it for a model with adapters
        self._model.requires_grad_(True)


def changing(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a module without what no training changes: weights under adapters."""
    frozen = {name for name, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def restore(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load what `changing` gave. Raises RuntimeError where it is not this module's."""
    known = changing(module).keys()
    if known != state.keys():
        raise RuntimeError(f"not this module's state: {sorted(known ^ state.keys())[:3]} ...")
    module.load_state_dict(state, strict=False)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _shared(model: nn.Module) -> set[int]:
    """Where in memory the weights lie that several layers have."""
    seen: set[int] = set()
    found: set[int] = set()
    for _, value in model.named_parameters(remove_duplicate=False):
        if value.data_ptr() in seen:
            found.add(value.data_ptr())
        seen.add(value.data_ptr())
    return found
