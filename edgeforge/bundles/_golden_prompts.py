"""What a language model's file writes after a few prompts, for an app to ask its own binding of llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeforge.bundles._contract import GoldenPrompt, GoldenPrompts
from edgeforge.runtimes._llama.session import LlamaCppSession
from edgeforge.verification._recheck import AGREEMENT

PROMPTS = (
    "The capital of France is",
    "The opposite of hot is",
    "Once upon a time, there was",
    "Monday, Tuesday, Wednesday,",
    "1, 2, 3, 4, 5,",
    "A B C D E F",
    "Thank you very",
    "To be, or not to",
    "Roses are red, violets are",
    "def add(a, b):\n    return",
    '{"name": "Ada", "age": 36, "city":',
    "<p>The quick brown fox jumps over the lazy dog.",
    "Die Hauptstadt von Deutschland ist",
    "El sol sale por el",
    "Un café crème, s'il vous",
    "北京是中国的",
)
"""Of several scripts and kinds, so that a binding with another tokenizer is found out."""

MAX_NEW_TOKENS = 12

MARGIN = 0.5
"""Logits: other kernels round otherwise, and a choice that was nearly another may become it."""

BROKEN = "\ufffd"


def record_prompts(model: Path) -> GoldenPrompts | None:
    """Ask a GGUF file; None where it is sure of nothing. Raises MissingExtraError, ModelError where it cannot be."""
    session = LlamaCppSession(model)
    try:
        ids = [session.tokenize(prompt, add_special=True) for prompt in PROMPTS]
        written = session.generate(ids, MAX_NEW_TOKENS)
        texts = [_clear_text(session, *both) for both in zip(ids, written, strict=True)]
    finally:
        session.close()
    kept = tuple(GoldenPrompt(prompt=one, text=text) for one, text in zip(PROMPTS, texts, strict=True) if text)
    if not kept:
        return None
    return GoldenPrompts(prompts=kept, max_new_tokens=MAX_NEW_TOKENS, margin=MARGIN, agreement=AGREEMENT)


def share_repeated(model: Path, golden: GoldenPrompts) -> float:
    """Share of the prompts after which a GGUF file still writes what is recorded. Raises as `record_prompts`."""
    session = LlamaCppSession(model)
    try:
        ids = [session.tokenize(one.prompt, add_special=True) for one in golden.prompts]
        written = session.generate(ids, golden.max_new_tokens)
        texts = [session.detokenize(one).strip() for one in written]
    finally:
        session.close()
    same = [text.startswith(one.text) for text, one in zip(texts, golden.prompts, strict=True)]
    return sum(same) / len(same)


def _clear_text(session: LlamaCppSession, prompt: list[int], written: list[int]) -> str:
    """What it wrote up to the first token that was no clear choice."""
    if not written:
        return ""
    both = np.array([prompt + written], dtype=np.int64)
    logits = session.run({"input_ids": both, "attention_mask": np.ones_like(both)})[0, len(prompt) - 1 : -1]
    second, first = np.partition(logits, (-2, -1), axis=1)[:, -2:].T
    clear = (first - second >= MARGIN) & (logits.argmax(axis=1) == written)
    sure = len(written) if clear.all() else int(clear.argmin())
    texts = (session.detokenize(written[:count]).strip() for count in range(sure, 0, -1))
    return next((text for text in texts if BROKEN not in text), "")
