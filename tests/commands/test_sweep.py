"""One pipeline, several values, one table; what combinations share is made once, and validation chooses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgeforge import cli
from edgeforge.commands.sweep import Found, best, plans, varied
from edgeforge.core.errors import ConfigurationError

SMALL = """\
name: small
task: {kind: image_classification, data: sklearn_digits, image_size: 16}
model:
  {kind: config, architecture: resnet, embedding_size: 4, hidden_sizes: [4, 8], depths: [1, 1], layer_type: basic}
stages:
  - {kind: train, steps: 12}
  - kind: distill
    steps: 12
    keep: best
    student: {kind: width, multiple: 0.5}
    losses: [{kind: soft_targets, temperature: 2}]
targets: []
"""
TEMPERATURE = "stages.1.losses.0.temperature"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEFORGE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    Path("small.yaml").write_text(SMALL, encoding="utf-8")


def sweep(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["sweep", "small.yaml", *arguments])


@pytest.mark.parametrize(
    ("said", "values"),
    [
        ("a.b=1,2.5", (1, 2.5)),
        ("a=true", (True,)),
        ("a=[1, 2],[3]", ([1, 2], [3])),
        ("a={kind: cosine, x: 1},constant", ({"kind": "cosine", "x": 1}, "constant")),
        ("a=null,1", (None, 1)),
    ],
)
def test_values_are_yaml_between_commas(said: str, values: tuple[object, ...]) -> None:
    assert varied(said).values == values


@pytest.mark.parametrize("said", ["a", "a=", "=1", "a=[1", "a=1,]"])
def test_anything_else_is_refused_with_an_example(said: str) -> None:
    with pytest.raises(ConfigurationError, match="not of the form") as error:
        varied(said)
    assert "--vary stages.1" in str(error.value.remedy)


def test_values_that_change_together() -> None:
    weights = ("stages.1.losses.0.weight", "stages.1.losses.1.weight")
    found = varied(f"{'+'.join(weights)}=[0.9, 0.1],[0.5, 0.5]")
    assert found.settings() == [dict(zip(weights, pair, strict=True)) for pair in ([0.9, 0.1], [0.5, 0.5])]
    assert varied("a=[1, 2],[3]").settings() == [{"a": [1, 2]}, {"a": [3]}]
    Path("small.yaml").write_text(SMALL.replace("temperature: 2}", "temperature: 2}, hard_labels"), encoding="utf-8")
    found_plans = plans(Path("small.yaml"), (), [varied(f"{TEMPERATURE}=1,4"), found])
    losses = [plan.step("distill").stage.losses for _, plan in found_plans]  # type: ignore[attr-defined]
    assert [(soft.temperature, soft.weight, hard.weight) for soft, hard in losses] == [
        (1, 0.9, 0.1),
        (1, 0.5, 0.5),
        (4, 0.9, 0.1),
        (4, 0.5, 0.5),
    ]


@pytest.mark.parametrize("said", ["a+b=1,2", "a+b=[1],[2]", "a+b=[1, 2],3"])
def test_a_value_for_each_that_changes(said: str) -> None:
    with pytest.raises(ConfigurationError, match="each of theirs is a list of 2") as error:
        varied(said)
    assert "--vary a+b=[1, 2]" in str(error.value.remedy)


def test_validation_chooses_in_the_metrics_own_direction() -> None:
    rising = [Found({}, Path("1"), "accuracy", 0.5), Found({}, Path("2"), "accuracy", 0.7), Found({}, Path("3"))]
    falling = [Found({}, Path("1"), "perplexity", 9.0), Found({}, Path("2"), "perplexity", 7.0)]
    assert [found.folder.name for found in (best(rising), best(falling)) if found] == ["2", "2"]
    assert best([Found({}, Path("1"))]) is None
    assert best([]) is None


def test_every_combination_runs_and_the_teacher_is_trained_once(tmp_path: Path) -> None:
    Path("small.yaml").write_text(SMALL.replace("[]", "[{name: phone, export: onnx, devices: []}]"), encoding="utf-8")
    result = sweep("--vary", f"{TEMPERATURE}=1,4", "--vary", "stages.1.learning_rate=1e-2", "--set", "seed=3")
    assert result.exit_code == 0, result.output
    document = json.loads(Path("runs/small-sweep/sweep.json").read_text(encoding="utf-8"))
    assert document["schema"] == "edgeforge.sweep/1"
    assert [run["settings"] for run in document["runs"]] == [
        {TEMPERATURE: temperature, "stages.1.learning_rate": 0.01} for temperature in (1, 4)
    ]
    kinds = [
        json.loads(path.read_text(encoding="utf-8"))["kind"]
        for path in (tmp_path / "store" / "sealed").glob("*/artifact.json")
    ]
    assert (kinds.count("train"), kinds.count("distill")) == (1, 2)
    by_validation = max(document["runs"], key=lambda run: run["validation"]["accuracy"])
    assert document["best"] == by_validation["run"]
    assert f"{document['best']} best" in result.stdout
    for run in document["runs"]:
        report = json.loads(Path("runs/small-sweep", run["run"], "report.json").read_text(encoding="utf-8"))
        (phone,) = [row for row in report["artifacts"] if row["name"] == "phone"]
        assert run["test"]["phone"] == phone["metrics"]["accuracy"]
        assert run["bytes"]["phone"] == phone["bytes"]


def test_without_validation_none_is_called_best() -> None:
    Path("small.yaml").write_text(SMALL.replace("keep: best", "keep: last"), encoding="utf-8")
    result = sweep("--vary", f"{TEMPERATURE}=1,2")
    assert result.exit_code == 0, result.output
    assert "none is called best" in result.stdout
    assert json.loads(Path("runs/small-sweep/sweep.json").read_text(encoding="utf-8"))["best"] is None


def test_a_combination_that_fails_is_named_and_the_others_go_on() -> None:
    result = sweep("--vary", "stages.1.learning_rate=1e30,0.01")
    assert result.exit_code == 2
    runs = json.loads(Path("runs/small-sweep/sweep.json").read_text(encoding="utf-8"))["runs"]
    assert "no longer a number" in runs[0]["error"]
    assert runs[1]["error"] is None
    assert "1 of 2 combinations failed; run 1:" in result.stderr


@pytest.mark.parametrize(
    ("values", "where"),
    [("stages.1.temprature=1,2", "temprature"), (f"{TEMPERATURE}=1,cold", "temperature"), ("stages.9.x=1", "stages")],
)
def test_a_wrong_value_is_found_before_any_run(values: str, where: str, tmp_path: Path) -> None:
    result = sweep("--vary", values)
    assert result.exit_code == 2
    assert where in result.stderr
    assert not Path("runs").exists()


def test_too_many_combinations_are_refused() -> None:
    many = ",".join(map(str, range(1, 20)))
    result = sweep("--vary", f"{TEMPERATURE}={many}", "--vary", f"seed={many}")
    assert result.exit_code == 2
    assert "361 combinations" in result.stderr
