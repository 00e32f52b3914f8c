"""A user's function as the teacher: what it may return, what it is asked, and how its mistakes are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgeforge.core import user_code
from edgeforge.core.errors import ConfigurationError, DataError, IncompatiblePlanError
from edgeforge.data import Message
from edgeforge.pipeline import dump, load
from edgeforge.teachers.program import Program

ADDITION = '''
def teach(prompt):
    """12+30 -> column by column, and 42."""
    first, second = map(int, prompt.split("+"))
    return f"{first % 10}+{second % 10}={first % 10 + second % 10}", str(first + second)

def plain(prompt):
    return None if prompt == "?" else prompt.upper()

def wrong(prompt):
    return 42

def told(prompt):
    with open(__file__ + ".asked", "a") as asked:
        asked.write(prompt + "\\n")
    if prompt == "bad":
        open(__file__ + ".ok")
    return prompt.upper()

def leaves(prompt):
    raise SystemExit(3)

def _private(prompt):
    return prompt

number = 3
'''


class Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        raise AssertionError(message)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("edgeforge.teachers.program.in_user_data", lambda: tmp_path / "data")
    (tmp_path / "addition.py").write_text(ADDITION, encoding="utf-8")
    return tmp_path


def program(folder: Path, name: str, **fields: Any) -> Program:
    said = {"kind": "program", "function": f"addition:{name}", **fields}
    return Program.model_validate(said, context={user_code.FOLDER: str(folder)})


def chats(*prompts: str) -> list[list[Message]]:
    return [[Message("system", "Add."), Message("user", prompt)] for prompt in prompts]


def test_a_trace_and_an_answer(folder: Path) -> None:
    asked = program(folder, "teach").ask(chats("12+30", "7+8"), Silent())
    assert [answer.text for answer in asked.usable] == ["2+0=2\nAnswer: 42", "7+8=15\nAnswer: 15"]
    alone = program(folder, "teach", template="Answer: {answer}").ask(chats("12+30"), Silent())
    assert alone.answers[0].text == "Answer: 42"
    assert asked.facts == {"wanted": 2, "answers": {"finished": 2}, "stopped": None}


def test_none_is_no_answer(folder: Path) -> None:
    asked = program(folder, "plain").ask(chats("a", "?", "b"), Silent())
    assert [answer.text for answer in asked.usable] == ["A", "B"]
    assert [answer.finish for answer in asked.answers] == ["finished", "empty", "finished"]


@pytest.mark.parametrize(
    ("name", "prompt", "match"),
    [
        ("teach", "12", r"addition\.py:4: teach\('12'\) raised ValueError: not enough values"),
        ("leaves", "x", r"addition\.py:21: leaves\('x'\) raised SystemExit: 3"),
        ("wrong", "x", r"returned '?42'? for 'x'"),
    ],
)
def test_what_the_function_does_wrong(folder: Path, name: str, prompt: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        program(folder, name).ask(chats(prompt), Silent())


def test_what_was_answered_before_it_raised_is_kept(folder: Path) -> None:
    one, asked = program(folder, "told"), folder / "addition.py.asked"
    with pytest.raises(DataError, match=r"told\('bad'\) raised FileNotFoundError"):
        one.ask(chats("a", "b", "a", "bad", "c"), Silent())
    (folder / "addition.py.ok").touch()
    found = one.ask(chats("a", "b", "a", "bad", "c"), Silent())
    assert [answer.text for answer in found.answers] == ["A", "B", "A", "BAD", "C"]
    assert asked.read_text(encoding="utf-8").split() == ["a", "b", "a", "bad", "bad", "c"]
    with (folder / "addition.py").open("a", encoding="utf-8") as module:
        module.write("# repaired\n")
    one.ask(chats("a"), Silent())
    assert asked.read_text(encoding="utf-8").split()[6:] == ["a"], "another module's answers are its own"


def test_the_answers_of_a_slow_function_are_on_the_disk_while_it_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(folder, "plain").ask(chats("a", "b"), Silent())
    assert list(folder.glob("data/**/*.jsonl")) == [], "quick ones leave no file"
    monkeypatch.setattr("edgeforge.teachers._journal.FLUSH_SECONDS", 0.0)
    program(folder, "plain").ask(chats("a", "b"), Silent())
    (journal,) = folder.glob("data/**/*.jsonl")
    assert len(journal.read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("def teach(:\n", r"addition\.py:1: cannot be imported: SyntaxError"),
        ("x = 1\nimport no_such_module\n", r"addition\.py:2: cannot be imported: ModuleNotFoundError"),
        ("def teached(prompt): ...\n", r"no function is named 'teach'; perhaps you meant 'teached'\?"),
        ("teach = 3\n", "no function is named 'teach'"),
        (None, "there is no such file"),
    ],
)
def test_a_module_that_cannot_be_used(tmp_path: Path, source: str | None, match: str) -> None:
    if source is not None:
        (tmp_path / "addition.py").write_text(source, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=match):
        program(tmp_path, "teach").check_ready()


@pytest.mark.parametrize("template", ["{trace}", "{answer} {other}", "{answer", "plain", "{answer} {}"])
def test_a_template_with_other_places_is_refused(template: str) -> None:
    with pytest.raises(ValidationError, match="template"):
        Program(function="a:b", template=template)


@pytest.mark.parametrize("function", ["addition", "addition:", ":teach", "addition:1", "addition:a.b"])
def test_a_function_is_named_by_module_and_name(function: str) -> None:
    with pytest.raises(ValidationError, match="module:function"):
        Program(function=function)


def test_the_module_is_beside_the_pipeline_file_wherever_that_is_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "lessons").mkdir()
    (folder / "lessons" / "deep.py").write_text("def teach(prompt):\n    return 'deep'\n", encoding="utf-8")
    text = """name: x
task: {kind: causal_lm, data: {kind: jsonl, train: a.jsonl, test: b.jsonl}}
model: {kind: pretrained, path: somewhere}
stages:
  - {kind: generate, name: one, teacher: {kind: program, function: addition:plain}}
  - {kind: generate, name: two, teacher: {kind: program, function: lessons.deep:teach}}
  - {kind: generate, name: three, teacher: {kind: program, function: lessons/deep.py:teach}}
"""
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(folder)
    pipeline = load(Path("x.yaml"))
    monkeypatch.chdir(elsewhere)
    (elsewhere / "y.yaml").write_text(dump(pipeline), encoding="utf-8")  # what a run writes into its folder
    for stages in (pipeline.stages, load(Path("y.yaml")).stages):
        said = [stage.teacher.ask(chats("a"), Silent()).answers[0].text for stage in stages]  # type: ignore[attr-defined]
        assert said == ["A", "deep", "deep"]
        assert [len(user_code.inside(stage)) for stage in stages] == [1, 1, 1]


def test_its_identity_is_its_source_and_not_its_place(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "addition.py").write_text(ADDITION, encoding="utf-8")
    assert program(folder, "teach").identity() == program(moved, "teach").identity()
    assert program(folder, "teach").identity() != program(folder, "plain").identity()
    (moved / "addition.py").write_text(ADDITION + "\n", encoding="utf-8")
    assert program(folder, "teach").identity() != program(moved, "teach").identity()


def test_losses_get_no_logits_from_it(folder: Path) -> None:
    with pytest.raises(IncompatiblePlanError, match="a `program` teacher writes texts"):
        program(folder, "teach").check_data(None)  # type: ignore[arg-type]
