"""The memory of contrastive representation distillation (Tian et al., 2020, arXiv:1910.10699; Wu et al., 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import distributed, nn
from torch.nn import functional

from edgeforge.core.errors import DataError
from edgeforge.core.seeds import derive
from edgeforge.core.task import NO_LABEL

if TYPE_CHECKING:
    from edgeforge.losses import Training
    from edgeforge.losses.contrastive import Contrastive


class Contrast(nn.Module):
    """Embeddings and memories of both networks. All that changes is in buffers, so a checkpoint holds it."""

    labels: torch.Tensor
    step: torch.Tensor

    def __init__(self, widths: tuple[int, int], spec: Contrastive, training: Training) -> None:
        super().__init__()
        self._spec, self._seed = spec, training.seed
        self.student = Memory(widths[0], spec.width, training.samples)
        self.teacher = Memory(widths[1], spec.width, training.samples)
        # Learned as samples come by. Until a sample did, its memory is noise, a negative for every class.
        self.register_buffer("labels", torch.full((training.samples,), NO_LABEL))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss (scalar) of one vector per sample and network; in training mode, the memories follow."""
        rows, labels = batch["rows"], batch["labels"]
        drawn = torch.cat([rows[:, None], self._negatives(rows, labels)], dim=1)
        ours, theirs = self.student.embed(student), self.teacher.embed(teacher)
        losses = [
            _estimation_loss(memory.cosines(other, drawn) / self._spec.temperature, memory)
            for memory, other in ((self.teacher, ours), (self.student, theirs))
        ]
        if self.training:
            everyone = _of_all_processes(rows)
            self.student.keep(everyone, _of_all_processes(ours.detach()), self._spec.momentum)
            self.teacher.keep(everyone, _of_all_processes(theirs.detach()), self._spec.momentum)
            self.labels[everyone] = _of_all_processes(labels)
            self.step += 1
        return torch.stack(losses).sum()

    def _negatives(self, rows: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Positions of samples of other classes, (N, negatives), drawn evenly with replacement."""
        seed = derive(self._seed, "negatives", int(self.step), *rows.tolist())
        generator = torch.Generator(device=rows.device).manual_seed(seed)
        known = self.labels.index_copy(0, rows, labels)
        drawn = rows.new_empty(len(rows), self._spec.negatives)
        for label in sorted(set(labels.tolist())):
            mine = labels == label
            size = (int(mine.sum()), self._spec.negatives)
            if label == NO_LABEL:
                # All but itself: those behind it are moved up by one.
                chosen = torch.randint(len(known) - 1, size, generator=generator, device=rows.device)
                drawn[mine] = chosen + (chosen >= rows[mine][:, None]).long()
                continue
            others = (known != label).nonzero()[:, 0]
            if not len(others):
                raise DataError(
                    "contrastive: all training samples are of one class, so none can be told from another",
                    remedy="use data of several classes, or another loss",
                )
            drawn[mine] = others[torch.randint(len(others), size, generator=generator, device=rows.device)]
        return drawn


class Memory(nn.Module):
    """One network's embedding, what it last gave for every sample, and the constant Z of scores against that."""

    kept: torch.Tensor
    log_z: torch.Tensor

    def __init__(self, features: int, width: int, samples: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(features, width)
        bound = math.sqrt(3 / width)  # unit length on average
        self.register_buffer("kept", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.tensor(math.nan))

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Vectors of unit length, (N, width)."""
        return functional.normalize(self.embedding(features), dim=1)

    def cosines(self, anchors: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Of each of the other network's embeddings (N, width) with the samples drawn for it (N, 1 + negatives)."""
        # All of them and then those drawn: the vectors drawn would take `width` times the space of their cosines. A
        # copy, because the memory changes before the backward pass that needs it.
        return (anchors @ self.kept.clone().T).gather(1, drawn)

    def keep(self, rows: torch.Tensor, embedded: torch.Tensor, momentum: float) -> None:
        """Move the memories of these samples towards what was just embedded."""
        self.kept[rows] = functional.normalize(self.kept[rows] * momentum + embedded * (1 - momentum), dim=1)


def _estimation_loss(logits: torch.Tensor, memory: Memory) -> torch.Tensor:
    """Noise-contrastive estimation of which sample is the anchor's: the first of each row (N, 1 + negatives).

    With P = exp(logit) / Z, n samples and m negatives: ``-log P / (P + m/n)`` of the first, and
    ``-log (m/n) / (P + m/n)`` summed over the others. Z is fixed at its first use, so that P is 1/n on average then.
    """
    samples, negatives = len(memory.kept), logits.shape[1] - 1
    if bool(memory.log_z.isnan()):
        means = _of_all_processes(logits.detach().logsumexp(dim=1) - math.log(logits.shape[1]))
        memory.log_z.copy_(means.logsumexp(dim=0) - math.log(len(means)) + math.log(samples))
    odds = logits - memory.log_z - math.log(negatives / samples)
    return -(functional.logsigmoid(odds[:, 0]) + functional.logsigmoid(-odds[:, 1:]).sum(dim=1)).mean()


def _of_all_processes(values: torch.Tensor) -> torch.Tensor:
    """The rows of every process, so that all remember the same; processes may have different numbers of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    counts = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(values)], device=values.device))
    lengths = [int(count) for count in counts]
    padded = values.new_zeros(max(lengths), *values.shape[1:])
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in lengths]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
