"""Texts that a torch artifact writes: several side by side are those it writes one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from edgeforge.models import loading
from edgeforge.runtimes import torch_eager
from edgeforge.runtimes.torch_eager import TorchEager

if TYPE_CHECKING:
    from tests.conftest import Tales

PROMPTS = [[5, 9], [7], [9, 5], [11, 12], [300, 4, 8], [8], [200, 201]]


def by_hand(tales: Tales, prompt: list[int], most: int, ends: frozenset[int]) -> list[int]:
    """The likeliest token each time, the whole text read anew for it."""
    model, ids = loading.load(tales.torch("llama").path), list(prompt)
    for _ in range(most):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_it_writes_the_likeliest_tokens_up_to_an_end(tales: Tales, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_eager, "AT_ONCE", 3)  # four prompts have two tokens
    session = TorchEager().open(tales.torch("llama").path)
    free = [by_hand(tales, prompt, 6, frozenset()) for prompt in PROMPTS]
    ends = frozenset({free[0][2], free[3][4]})
    session._model.generation_config.eos_token_id = sorted(ends)
    expected = [by_hand(tales, prompt, 6, ends) for prompt in PROMPTS]
    assert len({len(text) for text in expected}) > 1, "some end early"
    assert session.generate(PROMPTS, 6) == expected
    assert session.generate([], 6) == []
