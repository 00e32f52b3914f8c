"""Torch artifacts, run by torch itself, on the CPU or, untested on hardware, on a GPU by CUDA."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.runtimes import PROCESSOR, Processor, Runtime, _cuda

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

AT_ONCE = 16
"""Texts written side by side; each keeps keys and values of all its tokens in memory."""


class TorchEager(Runtime):
    """Torch without compilation, float32.

    On a GPU, which is untested, float32 products may be rounded to TF32, as is torch's choice for convolutions.
    """

    kind: Literal["torch_eager"] = "torch_eager"
    processor: Processor = Field(default="cpu", description=PROCESSOR)

    format: ClassVar[str] = "torch"
    processors: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    def available(self) -> str | None:
        if self.processor == "cpu":
            return None
        if reason := _cuda.missing():
            return reason
        import torch

        return None if torch.cuda.is_available() else f"this torch ({torch.__version__}) cannot use CUDA here"

    def open(self, folder: Path, *, threads: int | None = None) -> TorchSession:
        """See Runtime. Raises ModelError where the folder holds no model that can be loaded.

        Raises EnvironmentProblem where a GPU is asked for and cannot be used.
        """
        from edgeforge.models import loading

        if reason := self.available():
            raise EnvironmentProblem(reason, where=str(folder))
        return TorchSession(loading.load(folder).to(self.processor), threads=threads)


class TorchSession:
    """A loaded model."""

    def __init__(self, model: PreTrainedModel, *, threads: int | None = None) -> None:
        self._model = model
        self._threads = threads
        self._device = next(model.parameters()).device
        self._finish()

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """See Session."""
        import torch

        before = torch.get_num_threads()
        # The number of threads belongs to the process: others find it as they left it.
        torch.set_num_threads(self._threads or before)
        try:
            with torch.inference_mode():
                tensors = {name: torch.from_numpy(value).to(self._device) for name, value in inputs.items()}
                logits = self._model(**tensors).logits
                self._finish()
        finally:
            torch.set_num_threads(before)
        return logits.float().cpu().numpy()  # type: ignore[no-any-return]

    def _finish(self) -> None:
        """Wait for the GPU, which is told what to do and not waited for: whoever takes the time would miss the work."""
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """What the model writes after each prompt of ids, greedily, up to and without a token that ends it.

        Prompts of one length are written side by side: nothing is padded.
        """
        rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(len(prompt), []).append(row)
        written: list[list[int]] = [[] for _ in prompts]
        for alike in rows.values():
            for start in range(0, len(alike), AT_ONCE):
                some = alike[start : start + AT_ONCE]
                for row, ids in zip(some, self._written([prompts[row] for row in some], max_new_tokens), strict=True):
                    written[row] = ids
        return written

    def _written(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """The same for a few prompts of one length."""
        import torch

        ending = self._model.generation_config.eos_token_id
        ends = set(ending if isinstance(ending, list) else [ending])
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self._device)
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=0,  # behind the end of those that end first
            )
        new = found[:, ids.shape[1] :].tolist()
        return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in new]
