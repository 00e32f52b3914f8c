"""Where a run's models come from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import EnvironmentProblem
from edgeforge.core.report import StepResult
from edgeforge.core.report_teacher import Source
from edgeforge.core.spec import digest_of
from edgeforge.data.jsonl import Jsonl
from edgeforge.losses.soft_targets import SoftTargets
from edgeforge.models.config import Config
from edgeforge.models.gguf import Gguf
from edgeforge.models.pretrained import Pretrained
from edgeforge.plan import Plan, Step
from edgeforge.provenance import lineage
from edgeforge.stages.initialize import Initialize
from edgeforge.teachers.endpoint import Endpoint
from edgeforge.teachers.program import Program

NEW = Config.model_validate({"kind": "config", "architecture": "resnet"})


class Case:
    def __init__(self, model: Any, data: Any = None) -> None:
        task = SimpleNamespace(data=data, answers_per="sample")
        pipeline: Any = SimpleNamespace(model=model, task=task)
        self.plan = Plan(pipeline, chain=["model"], data_digest="d" * 64)
        self.results: dict[str, StepResult] = {}
        self.add("model", Initialize(model=model), {})

    def add(self, name: str, stage: Any, inputs: dict[str, str], **rest: Any) -> None:
        self.plan.steps.append(Step(name, stage, inputs, f"key of {name}", "chain"))
        fields = {"facts": {}, "recipe": {}, **rest}
        artifact = Artifact(
            name, stage.kind, "torch", Path(), f"digest of {name}", {}, {}, fields["recipe"], fields["facts"], 3.5
        )
        self.results[name] = StepResult(artifact)

    def taught(self, teacher: str) -> None:
        stage = SimpleNamespace(kind="distill", losses=(SoftTargets(),), teacher=None)
        self.add("distill", stage, {"model": "model", "teacher": teacher}, facts={"steps": 40})

    def sources(self, what: str) -> list[Source]:
        return [one for one in lineage(self.plan, self.results).sources if one.what == what]


def folder(root: Path, licence: str) -> Path:
    root.mkdir(parents=True)
    (root / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")
    return root


def test_steps_have_their_digests_and_training_steps() -> None:
    case = Case(NEW)
    case.taught("model")
    case.add("distill.evaluate", SimpleNamespace(kind="evaluate"), {"model": "distill"})
    model, distill = lineage(case.plan, case.results).steps
    assert (model.name, model.kind, model.digest, model.training_steps) == (
        "model", "initialize", "digest of model", None,
    )  # fmt: skip
    assert (distill.key, distill.digest, distill.training_steps, distill.seconds) == (
        "key of distill", "digest of distill", 40, 3.5,
    )  # fmt: skip


def test_generations_count_together() -> None:
    case = Case(NEW)
    facts = {"generations": [{"steps": 30}, {"steps": 12}]}
    case.add("born_again", SimpleNamespace(kind="born_again", losses=()), {"model": "model"}, facts=facts)
    assert lineage(case.plan, case.results).steps[1].training_steps == 42


def test_a_step_that_was_not_reached_has_no_digest() -> None:
    case = Case(NEW)
    case.taught("model")
    case.results.pop("distill")
    step = lineage(case.plan, case.results).steps[1]
    assert (step.name, step.digest, step.seconds) == ("distill", None, None)


def test_a_new_model_is_the_users_own_and_so_is_what_it_teaches() -> None:
    case = Case(NEW)
    case.add("train", SimpleNamespace(kind="train", losses=()), {"model": "model"})
    case.taught("train")
    (model,), (teacher,) = case.sources("model"), case.sources("teacher")
    assert (model.kind, model.licence, model.place) == ("config", "your own", None)
    assert (teacher.kind, teacher.place, teacher.licence, teacher.digest) == (
        "stage", "train", "your own", "digest of train",
    )  # fmt: skip


def test_a_teacher_of_another_folder_keeps_its_licence(tmp_path: Path) -> None:
    case = Case(NEW)
    big = folder(tmp_path / "secret" / "big-teacher", "cc-by-nc-4.0")
    case.add("teacher", Initialize(model=Pretrained(path=str(big))), {})
    case.taught("teacher")
    (teacher,) = case.sources("teacher")
    assert (teacher.kind, teacher.place, teacher.digest) == ("pretrained", "big-teacher", "digest of teacher")
    assert (teacher.licence, teacher.licence_from) == ("cc-by-nc-4.0", "README.md")
    assert "secret" not in teacher.model_dump_json()


def test_what_a_pretrained_model_was_made_into_has_its_licence(tmp_path: Path) -> None:
    case = Case(Pretrained(path=str(folder(tmp_path / "base", "mit"))))
    case.add("train", SimpleNamespace(kind="train", losses=()), {"model": "model"})
    case.taught("train")
    assert case.sources("teacher")[0].licence == "mit"


def test_a_model_of_the_hub_has_the_licence_of_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = folder(tmp_path / "cache", "apache-2.0")
    monkeypatch.setattr(Pretrained, "folder", lambda self: cache)
    (found,) = Case(Pretrained(path="owner/name")).sources("model")
    assert (found.place, found.licence, found.licence_from) == ("owner/name", "apache-2.0", "README.md")


def test_a_hub_that_cannot_be_reached_costs_the_licence_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Pretrained) -> Path:
        raise EnvironmentProblem("no network")

    monkeypatch.setattr(Pretrained, "folder", refuse)
    (found,) = Case(Pretrained(path="owner/name")).sources("model")
    assert (found.licence, found.licence_from) == ("unknown", None)


def test_a_gguf_file_that_is_gone_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert Case(Gguf(path=str(tmp_path / "gone.gguf"))).sources("model")[0].licence == "unknown"


def test_data_by_name_digest_and_licence(tmp_path: Path) -> None:
    where = folder(tmp_path / "private", "cc0-1.0")
    for part in ("train", "test"):
        (where / f"{part}.jsonl").write_text(json.dumps({"text": "a", "label": "b"}), encoding="utf-8")
    data = Jsonl(train=str(where / "train.jsonl"), test=str(where / "test.jsonl"))
    (found,) = Case(NEW, data).sources("data")
    assert (found.kind, found.place, found.digest) == ("jsonl", "train.jsonl, test.jsonl", "d" * 64)
    assert found.licence == "cc0-1.0"
    assert "private" not in found.model_dump_json()


def test_an_endpoint_as_the_step_that_asked_it_keeps_it() -> None:
    case = Case(NEW)
    teacher = Endpoint(model="big", base_url="http://localhost:8000/v1", temperature=0.5)
    stage = SimpleNamespace(kind="generate", teacher=teacher, spec=None, prompts="folder/asked.jsonl")
    recipe = {"teacher": teacher.identity(), "prompts_sha256": "ab" * 32}
    facts = {"documents": 90, "asked": {"served_by": ["big-2026"], "answers": {"finished": 100}}}
    case.add("generate", stage, {"teacher": "model"}, recipe=recipe, facts=facts)
    case.plan.datasets.append("generate")
    student = SimpleNamespace(kind="finetune", losses=())
    case.add("finetune", student, {"model": "model", "dataset": "generate"})
    (found,) = case.sources("teacher")
    assert (found.step, found.kind, found.place, found.licence) == (
        "generate", "endpoint", "http://localhost:8000/v1", "unknown",
    )  # fmt: skip
    assert found.details["model"] == "big" and found.details["served_by"] == ["big-2026"]
    assert found.digest == digest_of(teacher.identity())
    (prompts,) = case.sources("prompts")
    assert (prompts.kind, prompts.digest, prompts.details) == ("prompts", "ab" * 32, {"documents": 90})


def test_a_program_and_a_spec() -> None:
    case = Case(NEW)
    stage = SimpleNamespace(kind="generate", teacher=Program(function="lessons:teach"), spec="spec.yaml", prompts=None)
    said = {"kind": "program", "function": "teach", "source": "cd" * 32, "template": "{answer}"}
    case.add("generate", stage, {}, recipe={"teacher": said, "spec_sha256": "ef" * 32})
    case.plan.datasets.append("generate")
    (teacher,), (prompts,) = case.sources("teacher"), case.sources("prompts")
    assert (teacher.kind, teacher.place, teacher.details) == ("program", "teach", {"template": "{answer}"})
    assert (prompts.kind, prompts.place, prompts.digest) == ("spec", "spec.yaml", "ef" * 32)
