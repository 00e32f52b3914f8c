"""Prompts answered with and without a trace: marked answers, who judges them, tokens, groups, mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from edgeforge.core import user_code
from edgeforge.core.errors import ConfigurationError, DataError
from edgeforge.core.task import Answers
from edgeforge.models import tokenizer
from edgeforge.tasks.causal_lm import CausalLm

if TYPE_CHECKING:
    from tests.conftest import Tales

NUMERIC = {"kind": "numeric", "answer": {}}
PREFIX = "Answer:"
ASKED = [
    {"prompt": "2+3", "answer": "5", "digits": 1},
    {"prompt": "12+9", "answer": "21", "digits": 2},
    {"prompt": "4+4", "answer": "8", "digits": 1},
    {"messages": [{"role": "user", "content": "100+1"}], "answer": "101", "digits": 3},
]
TRACES = {
    "2+3": "2+3=05\nAnswer: 5",
    "12+9": "2+9=11\nAnswer: 11\n1+1=2\nAnswer: 22",  # the last one counts, and is wrong
    "4+4": "4+4=8",  # right, but not marked
    "100+1": "0+1=1\nAnswer: 101.0 apples",
}
DIRECT = {"2+3": " 5", "12+9": " 21", "4+4": " 8", "100+1": " 11"}


class StandIn:
    """A model that writes what is in two tables, one of them where the answer was begun for it."""

    def __init__(self, folder: Path) -> None:
        self.reader = tokenizer.read(folder)
        self.limits: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        self.limits.append(most)
        texts = [self.reader.decode(ids) for ids in prompts]
        return [self.reader(self._reply(text))["input_ids"] for text in texts]

    def _reply(self, text: str) -> str:
        begun = text.endswith(f"<|im_start|>assistant\n{PREFIX}")
        assert begun or text.endswith("<|im_start|>assistant\n")
        question = text.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
        return (DIRECT if begun else TRACES)[question]


def task(tales: Tales, folder: Path, *lines: dict[str, Any], **fields: Any) -> CausalLm:
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines or ASKED), encoding="utf-8")
    said = {**dict(tales.task), "prompts": str(path), "max_new_tokens": 40, **fields}
    return CausalLm.model_validate(said, context={user_code.FOLDER: str(folder)})


def evaluated(tales: Tales, asked: CausalLm, *, writes: bool = True) -> Any:
    even = Answers(lambda batch: torch.zeros(*batch["input_ids"].shape, 352))
    model = StandIn(tales.root / "tokenizer")
    return asked.evaluate(Answers(even.logits, model.generate) if writes else even, asked.open(), "test")


def test_with_and_without_a_trace(tales: Tales, tmp_path: Path) -> None:
    asked = task(tales, tmp_path, checker=NUMERIC, direct_prefix=PREFIX, prompt_group="digits")
    found = evaluated(tales, asked)
    assert found.arrays["prompts"].tolist() == [True, False, False, True]
    assert found.arrays["prompts_direct"].tolist() == [True, True, True, False]
    reader = tokenizer.read(tales.root / "tokenizer")
    with_trace, without = ([len(reader(text)["input_ids"]) for text in one.values()] for one in (TRACES, DIRECT))
    assert found.arrays["answer_tokens"].tolist() == with_trace
    assert found.arrays["answer_tokens_direct"].tolist() == without
    metrics = found.metrics
    assert (metrics["prompts_passed"], metrics["prompts_passed_direct"]) == (0.5, 0.75)
    assert metrics["tokens_per_answer"] == pytest.approx(sum(with_trace) / 4)
    assert metrics["tokens_per_answer_direct"] == pytest.approx(sum(without) / 4)
    groups = metrics["prompt_groups"]
    assert list(groups) == ["1", "2", "3"], "as the file has them"
    assert groups["1"] == {
        "prompts": 2,
        "prompts_passed": 0.5,
        "prompts_passed_direct": 1.0,
        "tokens_per_answer": (with_trace[0] + with_trace[2]) / 2,
        "tokens_per_answer_direct": (without[0] + without[2]) / 2,
    }
    assert [groups[name]["prompts_passed"] for name in ("2", "3")] == [0, 1]
    assert [groups[name]["prompts_passed_direct"] for name in ("2", "3")] == [1, 0]


@pytest.mark.parametrize(
    ("checker", "passed"),
    [
        ({"kind": "exact", "answer": {}}, [True, False, False, False]),
        ({"kind": "exact", "answer": {"take": "first"}}, [True, False, False, False]),
        ({"kind": "regex", "pattern": r".*=0?(\d+)", "group": 1}, [False, False, True, False]),
        ({"kind": "regex", "pattern": r"\d+", "answer": {}}, [True, True, False, False]),
        ({"kind": "python", "function": "checks:about", "answer": {}}, [True, True, False, True]),
    ],
)
def test_every_checker_judges(tales: Tales, tmp_path: Path, checker: dict[str, Any], passed: list[bool]) -> None:
    (tmp_path / "checks.py").write_text(
        "def about(answer, expected, question):\n"
        "    assert '+' in question\n"
        "    return abs(float(answer.split()[0]) - int(expected)) < 2\n",
        encoding="utf-8",
    )
    found = evaluated(tales, task(tales, tmp_path, checker=checker))
    assert found.arrays["prompts"].tolist() == passed
    assert "prompt_groups" not in found.metrics
    assert "prompts_passed_direct" not in found.metrics


def test_a_pattern_is_looked_for_whoever_judges_the_others(tales: Tales, tmp_path: Path) -> None:
    lines = [{"prompt": "2+3", "pattern": "=0[5-9]"}, {"prompt": "4+4", "pattern": f"^{PREFIX} 8$"}, ASKED[1]]
    found = evaluated(tales, task(tales, tmp_path, *lines, checker=NUMERIC, direct_prefix=PREFIX))
    assert found.arrays["prompts"].tolist() == [True, False, False]
    assert found.arrays["prompts_direct"].tolist() == [False, True, True], "what is judged begins with the prefix"


def test_without_a_checker_all_of_the_text_is_the_answer(tales: Tales, tmp_path: Path) -> None:
    lines = [{"prompt": "4+4", "answer": "4+4=8"}, {"prompt": "2+3", "answer": "5"}]
    found = evaluated(tales, task(tales, tmp_path, *lines))
    assert found.arrays["prompts"].tolist() == [True, False]
    assert found.metrics["tokens_per_answer"] == found.arrays["answer_tokens"].mean() > 0


def test_what_cannot_write_has_a_reason_for_every_metric(tales: Tales, tmp_path: Path) -> None:
    asked = task(tales, tmp_path, checker=NUMERIC, direct_prefix=PREFIX, prompt_group="digits")
    found = evaluated(tales, asked, writes=False).metrics
    names = ["prompts_passed", "prompts_passed_direct", "tokens_per_answer", "tokens_per_answer_direct"]
    assert [name for name in found if name in names] == names
    for name in names:
        assert found[name] is None
        assert "writes no texts" in found["reasons"][name]
    assert "prompt_groups" not in found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checker": NUMERIC, "prompts": None}, "`checker` is about `prompts`, and there are none"),
        ({"prompt_group": "digits", "prompts": None}, "`prompt_group` is about `prompts`"),
        ({"direct_prefix": PREFIX}, "needs a `checker`"),
        ({"checker": NUMERIC, "direct_prefix": ""}, "at least 1 character"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tales: Tales, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        task(tales, tmp_path, **fields)


@pytest.mark.parametrize(
    ("line", "fields", "message"),
    [
        ({"prompt": "1+1", "answer": "two"}, {"checker": NUMERIC}, "the expected answer is no number: 'two'"),
        ({"prompt": "1+1"}, {"checker": NUMERIC}, "no answer is known to compare with"),
        ({"prompt": "1+1"}, {"checker": "exact"}, "no answer is known to compare with"),
        ({"prompt": "1+1", "answer": "2", "pattern": "2"}, {"checker": "exact"}, "one of 'answer' and 'pattern'"),
        ({"prompt": "1+1", "answer": "2", "digit": 1}, {"prompt_group": "digits"}, "perhaps you meant 'digit'"),
        ({"prompt": "1+1", "answer": "2", "digits": None}, {"prompt_group": "digits"}, "neither a text nor a number"),
        ({"prompt": "1+1", "answer": "2", "digits": [1]}, {"prompt_group": "digits"}, "neither a text nor a number"),
    ],
)
def test_mistakes_are_found_before_any_work(
    tales: Tales, tmp_path: Path, line: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    asked = task(tales, tmp_path, ASKED[0], line, **fields)
    with pytest.raises(DataError, match=message) as caught:
        asked.digest()
    assert str(caught.value.where).endswith("sums.jsonl:2")


def test_a_form_needs_no_answer(tales: Tales, tmp_path: Path) -> None:
    asked = task(tales, tmp_path, {"prompt": "2+3"}, checker={"kind": "regex", "pattern": "[0-9]", "answer": {}})
    assert asked.digest()
    assert evaluated(tales, asked).metrics["prompts_passed"] == 1


def test_the_digest_covers_who_judges_and_how_is_asked(tales: Tales, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "checks.py").write_text("def same(a, b, c): return a == b\n", encoding="utf-8")
    own = {"kind": "python", "function": "checks:same", "answer": {}}
    first, moved = (task(tales, folder, checker=own).digest() for folder in folders)
    assert first == moved, "its place makes no difference"
    (folders[1] / "checks.py").write_text("def same(a, b, c): return a != b\n", encoding="utf-8")
    digests = [
        first,
        task(tales, folders[1], checker=own).digest(),
        task(tales, tmp_path).digest(),
        task(tales, tmp_path, checker=NUMERIC).digest(),
        task(tales, tmp_path, checker=NUMERIC, direct_prefix=PREFIX).digest(),
        task(tales, tmp_path, prompt_group="digits").digest(),
    ]
    assert len(set(digests)) == len(digests)
    with pytest.raises(ConfigurationError, match="there is no such file"):
        task(tales, tmp_path, checker={"kind": "python", "function": "none:same"}).digest()
