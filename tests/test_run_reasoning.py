"""A program teaches traces to a model with fresh weights; the report says what it answers with and without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from edgeforge.pipeline import parse
from edgeforge.plan import Plan, build
from edgeforge.run import execute
from edgeforge.store import Store

if TYPE_CHECKING:
    from tests.conftest import Tales

PROGRAM = """
def teach(prompt):
    first, second = map(int, prompt.split("+"))
    return f"{first} and {second} more", str(first + second)

def check(answer, expected, question):
    return answer == expected or "another sum"
"""
CHECKER = {"kind": "python", "function": "sums.py:check", "answer": {}}


class Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def plan(tales: Tales, folder: Path) -> Plan:
    (folder / "sums.py").write_text(PROGRAM, encoding="utf-8")
    sums = [{"prompt": f"{a}+{b}", "answer": str(a + b), "digits": len(str(a))} for a in range(6, 14) for b in range(9)]
    for name, rows in (("taught", sums[::2]), ("asked", sums[1::8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = tales.task.model_dump(mode="json") | {"prompts": str(folder / "asked.jsonl"), "max_new_tokens": 6}
    said = {
        "name": "sums",
        "task": {**task, "checker": CHECKER, "direct_prefix": "Answer:", "prompt_group": "digits"},
        "model": {
            "kind": "config",
            "architecture": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 64,
        },
        "stages": [
            {
                "kind": "generate",
                "name": "lessons",
                "prompts": str(folder / "taught.jsonl"),
                "teacher": {"kind": "program", "function": "sums.py:teach"},
                "filters": [{"kind": "verified", "checker": {"kind": "numeric", "answer": {}}}],
            },
            {"kind": "train", "mix": {"stage": "lessons", "share": 1.0}, "steps": 3, "batch_size": 2},
        ],
    }
    return build(parse(yaml.safe_dump(said).encode(), str(folder / "sums.yaml")))


def test_what_is_compared_is_what_was_taught_and_users_code_is_named(tales: Tales, tmp_path: Path) -> None:
    found = plan(tales, tmp_path)
    assert found.baseline == "train", "lessons written before it do not make the random weights the baseline"
    assert "model.evaluate" not in [step.name for step in found.steps]
    (checker,) = [text for text in found.warnings if "function check" in text]
    assert checker.startswith("task: runs your code")
    assert any("function teach" in text for text in found.warnings)


@pytest.mark.slow
def test_the_report_has_both_ways_for_every_group(tales: Tales, tmp_path: Path) -> None:
    outcome = execute(plan(tales, tmp_path), Store(tmp_path / "store"), tmp_path / "out", watcher=Silent())
    assert outcome.error is None, outcome.error
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    names = {"prompts_passed", "prompts_passed_direct", "tokens_per_answer", "tokens_per_answer_direct"}
    (baseline,) = report["artifacts"]
    assert baseline["against_teacher"]["teacher"] == "lessons"
    assert "gives no logits" in baseline["against_teacher"]["reason"]
    for found in (report["stages"][-1]["facts"], baseline):
        assert names < found["metrics"].keys()
        assert list(found["prompt_groups"]) == ["1", "2"]
        assert [group["prompts"] for group in found["prompt_groups"].values()] == [5, 4]
        assert all(names < group.keys() for group in found["prompt_groups"].values())
        assert 0 < found["metrics"]["tokens_per_answer"] <= 6
    drawn = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").partition("## Prompts, group by group\n")[2]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in drawn.strip().splitlines()[2:4]]
    assert [row[:3] for row in rows] == [["baseline", "1", "5"], ["baseline", "2", "4"]]
    assert float(rows[0][5]) == pytest.approx(baseline["prompt_groups"]["1"]["tokens_per_answer"], rel=1e-3)
