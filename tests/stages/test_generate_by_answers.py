"""Teachers that answer questions, through `generate`: a program beside the pipeline, prompts or a spec, filters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge.core.errors import DataError, IncompatiblePlanError
from edgeforge.pipeline import parse
from edgeforge.plan import build
from edgeforge.stages.finetune import Finetune
from edgeforge.stages.generate import Generate

if TYPE_CHECKING:
    from tests.conftest import Tales

PROGRAM = """
def teach(prompt):
    words = prompt.split()
    return f"{words[0]} plus {words[2]}", str(int(words[0]) + int(words[2]))
"""
MAKES = """
import json
count = 0

def teach(prompt):
    global count
    count += 1
    output = str(count + 1) if count % 2 else count + 1
    return json.dumps({"input": f"{count} and 1", "output": output})
"""
ERRS = """
import json, re

def teach(prompt):
    made_up = re.search(r"example number (\\d+)", prompt)
    if made_up is None:
        first, _, second = prompt.splitlines()[-1].split()
        return str(int(first) + int(second))
    number = int(made_up[1])
    return json.dumps({"input": f"{number} and 1", "output": str(number + 1 + (number % 3 == 0))})
"""
SPEC = """
task: Make up sums of two whole numbers.
input: {type: string}
output: {type: string}
examples:
  - {input: 1 and 2, output: "3"}
axes: {size: [small, large]}
"""


@pytest.fixture
def program(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "sums.py").write_text(PROGRAM, encoding="utf-8")
    return {"kind": "program", "function": f"{tmp_path / 'sums.py'}:teach"}


def prompts(folder: Path, lines: list[dict[str, Any]]) -> str:
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def written(tales: Tales, folder: Path, **fields: Any) -> tuple[list[Any], dict[str, Any]]:
    stage = Generate.model_validate({"kind": "generate", **fields})
    stage.check()
    stage.rehearse(None, tales.task)  # type: ignore[arg-type]  # it looks at files only
    facts = stage.run({"teacher": tales.torch("llama")}, tales.job(folder))
    lines = (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], dict(facts)


def test_answers_become_chats_and_copies_are_left_out(tales: Tales, tmp_path: Path, program: dict[str, str]) -> None:
    asked = prompts(tmp_path, [{"prompt": "2 and 3"}, {"prompt": "2 and 3"}, {"prompt": "40 and 2"}])
    found, facts = written(tales, tmp_path / "out", teacher=program, prompts=asked)
    assert [one["messages"][-1]["content"] for one in found] == [
        "2 plus 3\nAnswer: 5",
        "40 plus 2\nAnswer: 42",
    ]
    assert facts["documents"] == 2
    assert [(one["filter"], one["in"], one["out"]) for one in facts["yields"]] == [
        ("overlap_with_test", 3, 3),
        ("duplicates", 3, 2),
    ]
    assert facts["teacher"]["function"] == "teach"


def test_wrong_answers_are_left_out_by_what_the_prompts_say(
    tales: Tales, tmp_path: Path, program: dict[str, str]
) -> None:
    asked = prompts(tmp_path, [{"prompt": "2 and 3", "answer": "5"}, {"prompt": "4 and 4", "answer": "9"}])
    checked = {"kind": "verified", "checker": {"kind": "numeric", "answer": {"pattern": "Answer: (.*)"}}}
    found, facts = written(tales, tmp_path / "out", teacher=program, prompts=asked, filters=[checked])
    assert [one["messages"][0]["content"] for one in found] == ["2 and 3"]
    assert facts["yields"][0]["out"] == 1


def test_examples_of_a_spec_are_made_up_and_judged(tales: Tales, tmp_path: Path) -> None:
    (tmp_path / "makes.py").write_text(MAKES, encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    teacher = {"kind": "program", "function": f"{tmp_path / 'makes.py'}:teach"}
    found, facts = written(tales, tmp_path / "out", teacher=teacher, spec=str(tmp_path / "spec.yaml"), count=6)
    assert 1 <= len(found) <= 6
    assert all([turn["role"] for turn in one["messages"]] == ["user", "assistant"] for one in found)
    assert facts["yields"][0]["filter"] == "spec"
    assert facts["pass_rates"]["output"]["rate"] < 1  # one answer in two is a number, where a text is asked for


def test_an_example_is_left_out_where_its_teacher_answers_otherwise_when_asked_again(
    tales: Tales, tmp_path: Path
) -> None:
    (tmp_path / "errs.py").write_text(ERRS, encoding="utf-8")
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    teacher = {"kind": "program", "function": f"{tmp_path / 'errs.py'}:teach"}
    fields = {"spec": str(tmp_path / "spec.yaml"), "count": 7, "opinions": 2, "filters": ["duplicates", "agreement"]}
    found, facts = written(tales, tmp_path / "out", teacher=teacher, **fields)
    assert [one["messages"][0]["content"] for one in found] == [f"{n} and 1" for n in (1, 2, 4, 5, 7)]
    assert facts["yields"][-1]["reasons"] == {"another answer than most": 2}
    assert (facts["asked"]["wanted"], facts["asked"]["opinions"]) == (7 + 14, 14)
    assert facts["asked"]["answers"] == {"finished": 21}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"spec": "s.yaml", "filters": ["agreement"]}, r"each example of a `spec` is another(.|\n)*opinions: 3"),
        ({"spec": "s.yaml", "opinions": 3}, r"which `agreement` compares"),
        ({"prompts": "p.jsonl", "filters": ["agreement"], "opinions": 3}, r"raise the teacher's `samples`"),
    ],
)
def test_agreement_on_nothing_is_refused(program: dict[str, str], fields: dict[str, Any], said: str) -> None:
    with pytest.raises(IncompatiblePlanError, match=said):
        Generate.model_validate({"kind": "generate", "teacher": program, **fields}).check()


def test_a_tested_question_is_left_out_however_short_it_is(tales: Tales, tmp_path: Path) -> None:
    """A spec's input alone, too few words to share a run with the question that the test part makes of it."""
    (tmp_path / "makes.py").write_text(MAKES, encoding="utf-8")
    spec = SPEC.replace("input:", "instruction: How much is it?\ninput:", 1)
    (tmp_path / "spec.yaml").write_text(spec, encoding="utf-8")
    asked = prompts(tmp_path, [{"prompt": "How much is it?\n\n3 and 1"}])
    teacher = {"kind": "program", "function": f"{tmp_path / 'makes.py'}:teach"}
    fields = {"spec": str(tmp_path / "spec.yaml"), "count": 6, "avoid": [asked]}
    found, facts = written(tales, tmp_path / "out", teacher=teacher, **fields)
    assert facts["yields"][1]["reasons"] == {"a text of the test part": 1}
    questions = [one["messages"][0]["content"] for one in found]
    assert questions
    assert "How much is it?\n\n3 and 1" not in questions


def test_nothing_kept_is_an_error_that_names_the_filter(tales: Tales, tmp_path: Path, program: dict[str, str]) -> None:
    asked = prompts(tmp_path, [{"prompt": "2 and 3"}])
    with pytest.raises(DataError, match="length 1 of 1"):
        written(tales, tmp_path / "out", teacher=program, prompts=asked, filters=[{"kind": "length", "least": 5000}])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": 0.5}, "does not heed `temperature`"),
        ({"samples": 2}, "does not heed `samples`"),
        ({"prompts": None}, "a file of `prompts`"),
    ],
)
def test_what_only_models_heed_is_refused(
    tmp_path: Path, program: dict[str, str], fields: dict[str, Any], said: str
) -> None:
    asked = prompts(tmp_path, [{"prompt": "1 and 1"}])
    stage = Generate.model_validate({"kind": "generate", "teacher": program, "prompts": asked, **fields})
    with pytest.raises(IncompatiblePlanError, match=said):
        stage.check()


def test_filters_are_not_for_models() -> None:
    with pytest.raises(IncompatiblePlanError, match="`spec` and `filters`"):
        Generate.model_validate({"kind": "generate", "filters": ["duplicates"]}).check()


def test_a_text_cannot_be_gone_on_with(tales: Tales, tmp_path: Path, program: dict[str, str]) -> None:
    with pytest.raises(IncompatiblePlanError, match="cannot go on with a text"):
        written(tales, tmp_path / "out", teacher=program, prompts=prompts(tmp_path, [{"text": "Once"}]))


def test_a_writer_teaches_no_losses(program: dict[str, str]) -> None:
    stage = Finetune.model_validate({"kind": "finetune", "losses": ["soft_targets"], "teacher": program})
    with pytest.raises(IncompatiblePlanError, match="distil by sequence"):
        stage.check()


def test_the_plan_warns_of_code_and_keys_hang_on_it(tales: Tales, tmp_path: Path, program: dict[str, str]) -> None:
    asked = prompts(tmp_path, [{"prompt": "1 and 1"}])
    source = {
        "name": "sums",
        "task": tales.task.model_dump(mode="json"),
        "model": {"kind": "pretrained", "path": str(tales.torch("llama").path)},
        "stages": [{"kind": "generate", "teacher": program, "prompts": asked}],
    }

    def planned() -> Any:
        return build(parse(json.dumps(source).encode(), "sums.yaml"))

    before = planned()
    assert any("runs your code" in warning and "function teach" in warning for warning in before.warnings)
    (tmp_path / "sums.py").write_text(PROGRAM.replace("plus", "and"), encoding="utf-8")
    assert planned().step("generate").key != before.step("generate").key
