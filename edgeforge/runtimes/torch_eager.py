"""Torch artifacts, run by torch itself."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeforge.runtimes import Runtime

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel


class TorchEager(Runtime):
    """Torch without compilation, float32, on the CPU."""

    kind: Literal["torch_eager"] = "torch_eager"

    format: ClassVar[str] = "torch"

    def open(self, folder: Path, *, threads: int | None = None) -> TorchSession:
        """See Runtime. Raises ModelError where the folder holds no model that can be loaded."""
        from edgeforge.models import loading

        return TorchSession(loading.load(folder), threads=threads)


class TorchSession:
    """A loaded model."""

    def __init__(self, model: PreTrainedModel, *, threads: int | None = None) -> None:
        self._model = model
        self._threads = threads

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See Session."""
        import torch

        before = torch.get_num_threads()
        # The number of threads belongs to the process: others find it as they left it.
        torch.set_num_threads(self._threads or before)
        try:
            with torch.inference_mode():
                logits = self._model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
        finally:
            torch.set_num_threads(before)
        return logits.float().numpy()  # type: ignore[no-any-return]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """What the model writes after each prompt of ids, greedily, up to and without a token that ends it."""
        import torch

        ending = self._model.generation_config.eos_token_id
        ends = set(ending if isinstance(ending, list) else [ending])
        written = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            with torch.inference_mode():
                found = self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=0,
                )
            new = found[0, len(prompt) :].tolist()
            written.append(list(itertools.takewhile(lambda token: token not in ends, new)))
        return written
