"""What answers cost: worked by hand from made-up measurements."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeforge import costs
from edgeforge.core.artifact import Artifact
from edgeforge.core.report import ArtifactRow, StepResult
from edgeforge.core.report_teacher import Cost
from edgeforge.plan import Plan, Step
from edgeforge.teachers.endpoint import Endpoint
from edgeforge.teachers.program import Program
from edgeforge.teaching import Lesson

SECONDS = {"model": 1.0, "train": 100.0, "distill": 50.0, "generate": 20.0, "phone.export": 5.0, "phone.quantize": 5.0}


def measured(median: float | None, origin: str = "measured", device: str = "host_cpu") -> dict[str, Any]:
    return {
        "device": device, "runtime": "onnxruntime", "metric": "latency_ms", "origin": origin, "n": 9,
        "median": median, "p90": median, "ci95": [median, median],
    }  # fmt: skip


def against(verdict: str) -> dict[str, Any]:
    return {
        "device": "host_cpu", "runtime": "onnxruntime", "origin": "measured", "n": 9, "ratio": 2.0,
        "ci95": [1.9, 2.1], "verdict": verdict,
    }  # fmt: skip


class Case:
    """model -> train -> distill -> phone.export -> phone.quantize, measured beside a baseline of 3 ms."""

    def __init__(self, *, teachers: tuple[str, ...] = ("train",), baseline_ms: float | None = 3.0) -> None:
        task = SimpleNamespace(answers_per="sample")
        self.plan = Plan(SimpleNamespace(task=task), baseline="train", chain=["model", "train", "distill"])  # type: ignore[arg-type]
        if teachers:
            self.plan.lesson = Lesson("distill", teachers, (1.0,) * len(teachers), 4.0)
        self.results: dict[str, StepResult] = {}
        self.add("model", {})
        self.add("train", {"model": "model"})
        self.add("distill", {"model": "train", "teacher": "train"})
        self.add("phone.export", {"model": "distill"}, row="phone")
        self.add("phone.quantize", {"model": "phone.export"}, row="phone")
        facts = {"baseline": [measured(baseline_ms)] if baseline_ms else []}
        self.add("phone.benchmark.host_cpu", {"model": "phone.quantize"}, row="phone", kind="benchmark", facts=facts)
        self.row = ArtifactRow(
            name="phone", status="shipped", format="onnx", measurements=[measured(1.0)], latency=[against("faster")]
        )

    def add(
        self,
        name: str,
        inputs: dict[str, str],
        *,
        row: str = "chain",
        kind: str = "x",
        facts: dict[str, Any] | None = None,
        teacher: Any = None,
    ) -> None:
        stage: Any = SimpleNamespace(kind=kind, device="host_cpu", losses=(), teacher=teacher)
        self.plan.steps.append(Step(name, stage, inputs, name, row))
        artifact = Artifact(name, kind, "torch", Path(), "", {}, {}, {}, facts or {}, SECONDS.get(name, 7.0))
        self.results[name] = StepResult(artifact)

    def paid(self, asked: dict[str, Any] | None, teacher: Any = None) -> None:
        """A `generate` step that the student was trained on."""
        self.add("generate", {}, facts={"asked": asked} if asked else {}, teacher=teacher or Endpoint(model="m"))
        self.plan.datasets.append("generate")
        self.plan.steps.insert(2, self.plan.steps.pop())  # before what was made from it
        distill = next(step for step in self.plan.steps if step.name == "distill")
        dict.update(distill.inputs, {"dataset": "generate"})  # type: ignore[arg-type]

    def of(self) -> tuple[Cost, ...]:
        return costs.of(self.plan, self.results, self.row, source="phone", made="phone.quantize")


def test_time_is_won_back_after_as_many_answers_as_the_difference_needs() -> None:
    (found,) = Case().of()
    assert (found.unit, found.device, found.runtime) == ("answers", "host_cpu", "onnxruntime")
    assert found.seconds_per_1000 == 1.0, "1 ms each"
    assert found.teacher_seconds_per_1000 == 3.0
    assert found.making_seconds == 60.0, "distill, export and quantize; the teacher's own making is not counted"
    assert found.break_even_by_time == 30_000, "60 s at 2 ms saved by each"
    assert found.time_reason is None
    assert found.teacher_money_per_1000 is None and found.break_even_by_money is None
    assert any("not behind its teacher" in line for line in found.assumptions)
    assert not any("money" in line for line in found.assumptions)


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [("slower", "it is slower"), ("no difference shown", "no difference in speed was shown")],
)
def test_a_file_that_is_not_faster_never_pays_off(verdict: str, reason: str) -> None:
    case = Case()
    case.row = case.row.model_copy(update={"latency": ()})
    case.row = ArtifactRow.model_validate({**case.row.model_dump(), "latency": [against(verdict)]})
    (found,) = case.of()
    assert found.break_even_by_time is None
    assert reason in str(found.time_reason)


def test_medians_that_contradict_the_paired_verdict_promise_nothing() -> None:
    (found,) = Case(baseline_ms=0.9).of()
    assert (found.break_even_by_time, found.time_reason) == (None, "the medians show no difference in speed")


@pytest.mark.parametrize("case", [Case(baseline_ms=None), Case(teachers=("model",)), Case(teachers=("model", "train"))])
def test_a_teacher_that_was_not_measured_has_no_time(case: Case) -> None:
    (found,) = case.of()
    assert found.seconds_per_1000 == 1.0
    assert (found.teacher_seconds_per_1000, found.break_even_by_time) == (None, None)
    assert "was not measured" in str(found.time_reason)


def test_estimates_are_no_measurements() -> None:
    case = Case()
    rows = [measured(1.0, "estimated"), measured(None), measured(2.0, "emulated")]
    case.row = ArtifactRow.model_validate({**case.row.model_dump(), "measurements": rows})
    assert case.of() == ()


def test_without_a_teacher_nothing_is_counted() -> None:
    assert Case(teachers=()).of() == ()


def test_money_is_won_back_after_as_many_answers_as_were_bought() -> None:
    case = Case(teachers=())
    asked = {"answers": {"finished": 180, "refused": 20}, "cost": 0.5, "answers_without_usage": 0}
    case.paid(asked)
    (found,) = case.of()
    assert found.teacher_money_per_1000 == pytest.approx(2.5)
    assert found.making_money == 0.5
    assert found.break_even_by_money == 200
    assert found.making_seconds == 1 + 100 + 50 + 20 + 5 + 5, "an API's own making is not ours"
    assert found.teacher_seconds_per_1000 is None
    assert costs.PAID in found.assumptions and costs.NO_POWER in found.assumptions


def test_answers_without_a_token_count_are_said_to_be_assumed() -> None:
    case = Case(teachers=())
    case.paid({"answers": {"finished": 10}, "cost": 1.0, "answers_without_usage": 4})
    (found,) = case.of()
    assert any(line.startswith("4 answers came without a token count") for line in found.assumptions)


@pytest.mark.parametrize(
    ("asked", "teacher"),
    [
        ({"answers": {"finished": 10}, "cost": None, "answers_without_usage": 0}, None),
        ({"answers": {"finished": 10}, "stopped": None}, Program(function="lessons:teach")),
        ({"answers": {}, "cost": 0.0}, None),
    ],
)
def test_no_price_is_invented(asked: dict[str, Any], teacher: Any) -> None:
    case = Case(teachers=())
    case.paid(asked, teacher)
    (found,) = case.of()
    assert (found.making_money, found.teacher_money_per_1000, found.break_even_by_money) == (None, None, None)


def test_a_local_server_that_costs_nothing_has_nothing_to_win_back() -> None:
    case = Case(teachers=())
    case.paid({"answers": {"finished": 10}, "cost": 0.0, "answers_without_usage": 0})
    (found,) = case.of()
    assert (found.making_money, found.teacher_money_per_1000, found.break_even_by_money) == (0.0, 0.0, None)


def test_a_file_that_was_not_measured_still_has_what_was_paid_for_it() -> None:
    case = Case(teachers=())
    case.paid({"answers": {"finished": 10}, "cost": 1.0, "answers_without_usage": 0})
    case.row = case.row.model_copy(update={"measurements": ()})
    (found,) = case.of()
    assert (found.device, found.seconds_per_1000, found.making_money) == (None, None, 1.0)


def test_a_language_models_time_is_that_of_tokens() -> None:
    case = Case()
    case.plan.pipeline.task.answers_per = "token"  # type: ignore[misc]
    (found,) = case.of()
    assert (found.unit, found.break_even_by_time) == ("tokens", 30_000)
    assert costs.PER_TOKEN in found.assumptions
