"""Texts drawn from a teacher that llama.cpp runs: many side by side, faster than torch on a processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeforge.core.artifact import Artifact
from edgeforge.core.stage import Job
from edgeforge.exporters.gguf import Gguf
from edgeforge.runtimes.llama_cpp import LlamaCpp

if TYPE_CHECKING:
    import numpy as np
    import torch

    from edgeforge.runtimes._llama.session import LlamaCppSession
    from edgeforge.training.sampling import Sampling


class LlamaWriter:
    """What `edgeforge.training.sampling.write` does, on a float16 GGUF file of the same model.

    Not the same texts: llama.cpp's logits differ in their last digits.
    """

    def __init__(self, teacher: Artifact, job: Job, folder: Path) -> None:
        """Writes the file into `folder`, which is to be removed afterwards. Raises MissingExtraError, ModelError."""
        folder.mkdir(parents=True, exist_ok=True)
        Gguf().export(teacher, replace(job, folder=folder))
        self._session: LlamaCppSession = LlamaCpp().open(folder)

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        tokens: int,
        ends: frozenset[int],
        generator: torch.Generator,
    ) -> list[list[int]]:
        """See `edgeforge.training.sampling.write`."""
        import numpy as np
        import torch

        from edgeforge.runtimes._llama.model import Cache

        cache = Cache(self._session.model, length=max(map(len, prompts)) + tokens, sequences=len(prompts))
        written: list[list[int]] = [[] for _ in prompts]

        def take(rows: Sequence[int], logits: np.ndarray) -> list[int]:
            """Draw a token for each of these texts; those that go on."""
            drawn = sampling.draw(torch.from_numpy(logits), generator).tolist()
            for row, token in zip(rows, drawn, strict=True):
                written[row].append(token)
            return [row for row in rows if written[row][-1] not in ends and len(written[row]) < tokens]

        first = []
        for row, prompt in enumerate(prompts):
            wanted = [False] * (len(prompt) - 1) + [True]
            first.append(cache.decode(prompt, range(len(prompt)), [row] * len(prompt), wanted))
        going = take(range(len(prompts)), np.concatenate(first))
        while going:
            places = [len(prompts[row]) + len(written[row]) - 1 for row in going]
            logits = cache.decode([written[row][-1] for row in going], places, going, [True] * len(going))
            going = take(going, logits)
        cache.close()
        return written
