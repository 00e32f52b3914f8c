"""Whether a model's answers hold to a data spec: the one by which a teacher wrote what the model was taught on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from edgeforge.core import user_code
from edgeforge.core.errors import DataError
from edgeforge.core.spec import Spec
from edgeforge.core.task import Evaluation
from edgeforge.data import DataSource, Document
from edgeforge.data import _spec as specs
from edgeforge.data._files import existing, file_digest
from edgeforge.data._json_schema import read_json
from edgeforge.models import tokenizer
from edgeforge.tasks import _prompts

PASSED = "spec_passed"


class Specified(Spec):
    """A spec that a model's answers are judged by. Base of a task for models that write."""

    spec: str | None = Field(
        default=None,
        description="A data spec, as `generate` takes it: what a model answers to the questions of the test part's "
        "chats is judged by it. `spec_passed` is the share of answers that hold to all of it; `spec_form`, "
        "`spec_output`, `spec_label` and one of each constraint's name say what share holds to that.",
    )

    @cached_property
    def _read(self) -> specs.DataSpec:
        assert self.spec is not None
        return specs.read(existing(self.spec))

    def spec_digest(self) -> list[Any] | None:
        """The spec's content and that of the code it names. Raises ConfigurationError, DataError for a mistake in it,
        or in a question, so that it is found before any work."""
        if self.spec is None:
            return None
        self._questions()
        return [file_digest(existing(self.spec)), [one.digest() for one in user_code.inside(self._read)]]

    def spec_metrics(self) -> list[str]:
        """The names of the metrics, the headline first. The input is not the model's to hold to."""
        return [PASSED, *(_metric(name) for name in self._read.judge(None) if name != specs.INPUT)]

    def ask_of_spec(self, generate: _prompts.Generate, folder: Path, max_new_tokens: int) -> Evaluation:
        """Put every question to a model, whose tokenizer is in `folder`.

        Metrics: `spec_metrics`. Array ``spec`` (bool, (questions,)): the answers that hold to all of it.
        """
        asked, spec = self._questions(), self._read
        prompts = [_prompts.Prompt(Document(messages=document.messages[:-1]), None, None) for document, _ in asked]
        reader = tokenizer.read(folder)
        written = generate(_prompts.encoded(prompts, folder), max_new_tokens)
        texts = [reader.decode(ids, skip_special_tokens=True) for ids in written]
        judged = [spec.judge(spec.answered(one, text)) for (_, one), text in zip(asked, texts, strict=True)]
        passed = np.array([not any(why for name, why in one.items() if name != specs.INPUT) for one in judged])
        rates = {_metric(name): rate["rate"] for name, rate in specs.pass_rates(judged).items() if name != specs.INPUT}
        return Evaluation({PASSED: float(passed.mean()), **rates}, {"spec": passed})

    def _questions(self) -> list[tuple[Document, specs.Example]]:
        """The answered chats of the test part, each as the example that it is. Raises DataError."""
        source = getattr(self, "data", None)
        tested: Sequence[Document] = source.documents().test if isinstance(source, DataSource) else ()
        answered = [one for one in tested if one.messages and one.messages[-1].role == "assistant"]
        found = [(document, _example(document, self._read)) for document in answered if len(document.messages) > 1]
        if not found:
            raise DataError(
                "the test part has no question for the answers of a spec",
                where="task.spec",
                remedy="give chats, whose last two messages are a question (the spec's `instruction`, an empty line, "
                "the input) and its answer",
            )
        return found


def _metric(name: str) -> str:
    return f"spec_{name.replace(' ', '_')}"


def _example(document: Document, spec: specs.DataSpec) -> specs.Example:
    """A question and its answer as `DataSpec.chat` writes them, read back. Raises DataError."""
    text = document.messages[-2].content
    text = text.removeprefix(f"{spec.instruction}\n\n") if spec.instruction else text
    try:
        value = text if spec.input.get("type") == "string" else read_json(text)
    except ValueError as error:
        raise DataError(
            "this question is no JSON, and the spec's inputs are", where=document.where, remedy="correct it"
        ) from error
    example = specs.Example(input=value, output=document.messages[-1].content)
    if why := spec.judge(example)[specs.INPUT]:
        raise DataError(f"this question is no input of the spec: {why}", where=document.where, remedy="correct it")
    return example
