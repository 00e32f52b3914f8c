"""A task with a `spec`: a model's answers to the test part's questions, judged by hand and by the task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge.core.errors import ConfigurationError, DataError
from edgeforge.core.task import Answers
from edgeforge.models import tokenizer
from edgeforge.tasks.causal_lm import CausalLm

if TYPE_CHECKING:
    import torch

    from tests.conftest import Tales

SPEC = """
task: Animals and their colours.
instruction: "What colour is it? Answer as JSON."
input: {type: object, properties: {animal: {type: string}}, required: [animal]}
output: {type: object, properties: {colour: {type: string}}, required: [colour], additionalProperties: false}
labels: {at: output.colour, allowed: [red, grey]}
constraints:
  - {name: not the animal, at: output.colour, expected: input.animal, check: {kind: python, function: "checks:apart"}}
examples:
  - {input: {animal: fox}, output: {colour: red}}
"""
CHECKS = "def apart(answer, expected, question):\n    return answer != expected\n"
ANIMALS = ("fox", "whale", "red", "mouse", "swan")
WRITTEN = ('{"colour": "red"}', "grey", '{"colour": "red"}', '{"colour": "pink"}', '{"colour": "grey", "more": 1}')
"""All right; no JSON; the animal itself; off-label; more than is asked for."""


def chats(animals: Sequence[str]) -> list[dict[str, Any]]:
    def question(animal: str) -> str:
        return f"What colour is it? Answer as JSON.\n\n{json.dumps({'animal': animal})}"

    return [
        {
            "messages": [
                {"role": "user", "content": question(animal)},
                {"role": "assistant", "content": '{"colour": "grey"}'},
            ]
        }
        for animal in animals
    ]


def task(tales: Tales, folder: Path, *, test: list[dict[str, Any]] | None = None, spec: str = SPEC) -> CausalLm:
    (folder / "checks.py").write_text(CHECKS, encoding="utf-8")
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
    lines = chats(ANIMALS) if test is None else test
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    said = tales.task.model_dump(mode="json", exclude={"data"})
    data = {"kind": "jsonl", "train": str(tales.root / "train.jsonl"), "test": str(folder / "test.jsonl")}
    return CausalLm.model_validate({**said, "data": data, "spec": str(folder / "spec.yaml")})


def answers(one: CausalLm, *, writes: bool = True) -> Answers:
    """Even logits, and the texts above whatever is asked."""
    folder, vocabulary = one.open().tokenizer, one.open().interface.text.vocabulary_size

    def logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.zeros(*batch["input_ids"].shape, vocabulary)

    def generate(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        reader = tokenizer.read(folder)
        for prompt, animal in zip(prompts, ANIMALS, strict=True):
            assert f'"animal": "{animal}"' in reader.decode(prompt)
        return [reader(text, add_special_tokens=False)["input_ids"] for text in WRITTEN]

    return Answers(logits, generate if writes else None)  # type: ignore[arg-type]


def test_answers_are_judged_by_the_spec(tales: Tales, tmp_path: Path) -> None:
    one = task(tales, tmp_path)
    found = one.evaluate(answers(one), one.open(), "test")
    assert {name: value for name, value in found.metrics.items() if name.startswith("spec_")} == {
        "spec_passed": 1 / 5,
        "spec_form": 4 / 5,
        "spec_output": 3 / 5,
        "spec_label": 3 / 5,
        "spec_not_the_animal": 3 / 5,
    }
    assert found.arrays["spec"].tolist() == [True, False, False, False, False]
    assert next(iter(found.metrics)) == "perplexity", "the headline stays"
    assert "spec_passed" not in one.evaluate(answers(one), one.open(), "validation").metrics
    mute = one.evaluate(answers(one, writes=False), one.open(), "test").metrics
    assert mute["spec_passed"] is None and "writes no texts" in mute["reasons"]["spec_label"]


def test_the_spec_and_its_code_are_part_of_the_key(tales: Tales, tmp_path: Path) -> None:
    one = task(tales, tmp_path)
    assert one.digest() == task(tales, tmp_path).digest()
    other = task(tales, tmp_path, spec=SPEC.replace("grey]", "grey, pink]")).digest()
    (tmp_path / "checks.py").write_text(CHECKS.replace("!=", "=="), encoding="utf-8")
    spec = SPEC.replace("examples:\n", "shots: 0\nexamples:\n").replace("{colour: red}", "{colour: red}")
    assert len({one.digest(), other, task(tales, tmp_path, spec=spec).digest()}) == 3


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ([{"text": "A fox is red, and it runs to the forest, and to the sea, and home again."}] * 9, "no question"),
        ([{"messages": [{"role": "user", "content": "fox?"}, {"role": "assistant", "content": "red"}]}] * 9, "no JSON"),
        (chats(["fox"])[:0] + [{"messages": [{"role": "user", "content": "3"}, {"role": "assistant", "content": "r"}]}]
         * 9, "no input of the spec"),
    ],
)  # fmt: skip
def test_questions_that_are_none_are_refused_before_any_work(
    tales: Tales, tmp_path: Path, test: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        task(tales, tmp_path, test=test).digest()


def test_a_spec_that_is_not_there(tales: Tales, tmp_path: Path) -> None:
    one = task(tales, tmp_path)
    (tmp_path / "spec.yaml").unlink()
    with pytest.raises((ConfigurationError, DataError), match=r"spec\.yaml"):
        one.digest()
