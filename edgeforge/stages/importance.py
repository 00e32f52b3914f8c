"""Which of a language model's weights matter, measured on training text before its file is quantized."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from edgeforge import gguf_names
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import DataError, ModelError
from edgeforge.core.seeds import derive
from edgeforge.core.stage import Job, Stage
from edgeforge.quantizers._importance import Importance as Measured
from edgeforge.quantizers._importance import write

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from edgeforge.core.task import Batch

GRADIENT_WINDOWS = 16
"""Of how many windows gradients are taken too, which costs three times a forward pass."""


class Importance(Stage):
    """Measure, on windows of the training split, what llama.cpp's quantization and the choice of types go by.

    For each weight the mean square of its inputs: llama.cpp's importance matrix, as its own tool computes it. And how
    much the model's predictions change with it: squared gradients, row by row and column by column, of the
    log-likelihood of labels that the model itself draws (the Fisher information's diagonal; see
    `edgeforge.quantizers._importance`), on the first 16 windows. A quantizer that wants it brings this step along.
    """

    kind: Literal["importance"] = "importance"
    tokens: int = Field(default=16384, ge=1, description="Tokens of training text, in whole windows.")

    makes: ClassVar[str] = "measurements"
    in_chain: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = (
        "edgeforge.gguf_names",
        "edgeforge.models.loading",
        "edgeforge.quantizers._importance",
    )

    def run(self, inputs: Mapping[str, Artifact], job: Job) -> Mapping[str, Any]:
        """Facts: `tokens`, `windows`, `gradient_windows`, `loss` (nats per token). Raises DataError, ModelError."""
        from edgeforge.models import loading

        model = loading.load(inputs["model"].path)
        batches = self._windows(job)
        device = job.accelerator.device
        model.to(device)
        watch = _Watch(model)
        for done, batch in enumerate(batches):
            batch = {name: value.to(device) for name, value in batch.items()}
            seed = derive(job.seed, "drawn labels", done)
            watch.read(batch, seed=seed if done < GRADIENT_WINDOWS else None)
            job.progress.update(done + 1, len(batches))
        write(watch.measured(), job.folder)
        return {
            "tokens": watch.tokens,
            "windows": len(batches),
            "gradient_windows": min(len(batches), GRADIENT_WINDOWS),
            "weights": len(watch.rows),
        }

    def _windows(self, job: Job) -> list[Batch]:
        """Training windows, drawn by the job's seed. Raises DataError where the text is shorter than one."""
        data = job.data
        present, length = data.size("train"), data.interface.text.max_length
        order = random.Random(derive(job.seed, "importance")).sample(range(present), present)
        batches: list[Batch] = []
        tokens = longest = 0
        for row in order:
            if tokens >= self.tokens:
                break
            batch = data.batch("train", [row])
            batches.append(batch)
            own = int(batch["attention_mask"].sum())
            tokens, longest = tokens + own, max(longest, own)
        if longest < length:
            raise DataError(
                f"the calibration text has {longest} tokens, less than one window of {length}",
                where="task.data",
                remedy="give more training text, or a smaller task.max_length",
            )
        if tokens < self.tokens:
            job.progress.warn(
                f"importance: the training split has {tokens:,} tokens, fewer than the {self.tokens:,} asked"
            )
        return batches


class _Watch:
    """Sums over what a model reads."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Raises ModelError for a family whose tensors have no GGUF names."""
        self.model = model.eval()
        self.tokens = self._graded = 0
        self.inputs: dict[str, torch.Tensor] = {}
        self.rows: dict[str, torch.Tensor] = {}
        self.columns: dict[str, torch.Tensor] = {}
        self.weights: dict[str, Any] = dict(_weights(model))
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    def read(self, batch: Batch, *, seed: int | None) -> None:
        """One window; its gradients too where a seed for its labels is given. Raises ModelError for NaN."""
        import torch

        mask = batch["attention_mask"].bool()
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        self.tokens += int(mask.sum())
        with self._inputs_seen(mask), torch.set_grad_enabled(seed is not None), self._gradients_taken(seed is not None):
            logits = self.model(**given).logits[mask].float()
            if not bool(logits.isfinite().all()):
                raise ModelError(
                    "the model's answers on training text are not all numbers",
                    remedy="look at the chain's metrics: this model is broken before quantization",
                )
            if seed is not None:
                self._graded += len(logits)
                log_p = logits.log_softmax(-1)
                generator = torch.Generator(logits.device).manual_seed(seed)
                drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
                log_p.gather(1, drawn).sum().backward()

    @contextmanager
    def _inputs_seen(self, mask: torch.Tensor) -> Iterator[None]:
        """Meanwhile, add up the squares of every linear layer's inputs."""
        from torch import nn

        def watcher(name: str) -> Any:
            def watch(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
                seen = args[0].detach()[mask].float().square().sum(0, dtype=_double()).cpu()
                self.inputs[name] = self.inputs[name] + seen if name in self.inputs else seen

            return watch

        handles = [
            module.register_forward_pre_hook(watcher(name))
            for name, module in self.weights.items()
            if isinstance(module, nn.Linear)
        ]
        # A tied head is the embedding's weight under the head's own module.
        head = self.model.get_output_embeddings()
        if head is not None and head not in self.weights.values():
            handles.append(head.register_forward_pre_hook(watcher(f"{gguf_names.EMBEDDING}.weight")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _gradients_taken(self, wanted: bool) -> Iterator[None]:
        """Meanwhile, add up the squares of each weight's gradient and let go of it, one weight at a time."""

        def taker(name: str) -> Any:
            def take(weight: torch.Tensor) -> None:
                assert weight.grad is not None
                squares = weight.grad.float().square()
                weight.grad = None
                for sums, axis in ((self.rows, 1), (self.columns, 0)):
                    found = squares.sum(axis, dtype=_double()).cpu()
                    sums[name] = sums[name] + found if name in sums else found

            return take

        handles = []
        if wanted:
            for name, module in self.weights.items():
                module.weight.requires_grad_(True)
                handles.append(module.weight.register_post_accumulate_grad_hook(taker(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for module in self.weights.values():
                module.weight.requires_grad_(False)

    def measured(self) -> Measured:
        """Means per token, rows in GGUF's order."""
        config = self.model.config
        turned = gguf_names.ARCHITECTURES[config.model_type] in gguf_names.PAIRED
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rows = {name: (sums / self._graded).float().numpy() for name, sums in self.rows.items()}
        for name in rows:
            if turned and gguf_names.is_turned(gguf_names.to_hugging_face(name) or ""):
                rows[name] = gguf_names.paired(rows[name], head_size)
        columns = {name: (sums / self._graded).float().numpy() for name, sums in self.columns.items()}
        inputs = {name: (sums / self.tokens).float().numpy() for name, sums in self.inputs.items()}
        return Measured(inputs, rows, columns)


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """GGUF's name of each weight matrix, and the module that holds it; a tied one once, as the embedding's."""
    if model.config.model_type not in gguf_names.ARCHITECTURES:
        raise ModelError(
            f"a {model.config.model_type} has no GGUF names here",
            remedy=f"use a model of {', '.join(sorted(gguf_names.ARCHITECTURES))}",
        )
    known: set[int] = set()
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        name = gguf_names.to_gguf(f"{path}.weight")
        if weight is None or weight.dim() != 2 or name is None or id(weight) in known:
            continue
        known.add(id(weight))
        yield name, module


def _double() -> torch.dtype:
    import torch

    return torch.float64
