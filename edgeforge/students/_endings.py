"""Where a text that a student writes begins and ends."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def end_texts_alike(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Give a student that writes texts its teacher's special tokens and settings for it, in place.

    Both read texts with the tokenizer that the student is built for, so the ids mean the same.
    """
    if not (student.can_generate() and teacher.can_generate()):
        return
    student.generation_config = copy.deepcopy(teacher.generation_config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(student.config, name, getattr(teacher.config, name))
