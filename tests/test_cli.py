"""The command line: exit codes, messages, what it imports, and terminals of every kind."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from edgeforge import __version__, catalog, cli
from edgeforge.core.document import Document
from edgeforge.core.errors import (
    BudgetError,
    ConfigurationError,
    DataError,
    EdgeForgeError,
    EnvironmentProblem,
    IncompatiblePlanError,
    MissingExtraError,
    ModelError,
    VerificationError,
)

QUICKSTART = Path(__file__).parent.parent / "pipelines" / "quickstart.yaml"
HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "torch_pruning",
    "onnx",
    "onnxruntime",
    "coremltools",
    "datasets",
    "timm",
)

SMALL = """\
name: small
task: {kind: image_classification, data: sklearn_digits, image_size: 16}
model: {kind: config, architecture: resnet}
stages:
  - {kind: train, epochs: 1}
targets:
  - {name: phone, quantize: int8_static, export: onnx}
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEFORGE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")


def edgeforge(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


def process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The real command, with its main()."""
    return subprocess.run(
        [sys.executable, "-m", "edgeforge", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
    )


# -- what it imports


def test_light_commands_import_nothing_heavy() -> None:
    script = f"""
import sys
from typer.testing import CliRunner
from edgeforge.cli import app
def check(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (arguments, result.output)
    heavy = sorted(set({HEAVY!r}) & set(sys.modules))
    assert not heavy, (arguments, heavy)
check("--help")
light = {{"pydantic", "yaml", "numpy", "sklearn"}} & set(sys.modules)
assert not light, light
for command in ("run", "plan", "bench", "report", "fetch"):
    check(command, "--help")
check("init", "new.yaml")
check("devices")
check("explain")
check("explain", "prune")
check("schema")
check("plan", "small.yaml")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_takes_well_under_a_second_of_processor_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


# -- errors and exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError, 2),
        (DataError, 2),
        (ModelError, 2),
        (MissingExtraError, 3),
        (IncompatiblePlanError, 4),
        (BudgetError, 5),
        (VerificationError, 6),
        (EnvironmentProblem, 7),
    ],
)
def test_every_error_ends_with_its_exit_code_and_one_message(
    error: type[EdgeForgeError], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error("it is [broken]", where="here:1", remedy="mend it")

    monkeypatch.setattr("edgeforge.run.execute", fails)
    result = edgeforge("run", "small.yaml")
    assert result.exit_code == code
    assert result.stderr == "error here:1: it is [broken]\n  -> mend it\n"


def test_a_mistake_in_the_file_names_the_line() -> None:
    Path("small.yaml").write_text(SMALL.replace("epochs", "epoch"), encoding="utf-8")
    done = process("run", "small.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error small.yaml:5 stages[0].epoch: unknown key 'epoch'; perhaps you meant 'epochs'?"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "absent.yaml"], 2),
        (["run"], 2),
        (["rnu", "small.yaml"], 2),
        (["run", "small.yaml", "--no-such-option"], 2),
        (["run", "small.yaml", "--set", "stages.0.epochs=x"], 2),
        (["run", "small.yaml", "--set", "nonsense"], 2),
        (["run", "small.yaml", "--from", "no_such_step"], 4),
        (["plan", "small.yaml", "--set", "targets.0.devices=[fridge]"], 2),
        (["plan", "small.yaml", "--set", "targets.0.export=coreml"], 4),
        (["plan", "small.yaml", "--store", "/dev/null/store"], 7),
        (["doctor", "--store", "/dev/null/store"], 7),
        (["init", "/dev/null/x.yaml"], 7),
        (["explain", "prun"], 2),
        (["report", "."], 2),
        (["bench", "."], 2),
        (["fetch", "nothing"], 2),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], code: int) -> None:
    result = edgeforge(*arguments)
    assert result.exit_code == code, result.output
    assert result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_a_defect_leaves_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*_: Any, **__: Any) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("edgeforge.run.execute", breaks)
    monkeypatch.setattr(sys, "argv", ["edgeforge", "run", "small.yaml"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr().err
    assert caught.value.code == 1
    assert "KeyError: 'oops'" in said
    assert "Traceback" not in said
    written = Path(said.split()[-1])
    assert "in breaks" in written.read_text()
    written.unlink()


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeforge.run.execute", interrupted)
    arguments = ["run", "small.yaml", "--fresh", "--from", "train", "--from=train", "--set", "seed=1", "--out", "a b"]
    monkeypatch.setattr(sys, "argv", ["edgeforge", *arguments])
    result = edgeforge(*arguments)
    assert result.exit_code == 130
    assert "To go on: edgeforge run small.yaml --set seed=1 --out 'a b'" in result.stderr


@pytest.mark.slow
def test_a_real_interrupt_loses_nothing(tmp_path: Path) -> None:
    arguments = ["run", "small.yaml", "--set", "stages.0.epochs=1000000", "--set", "stages.0.checkpoint_seconds=0"]
    running = subprocess.Popen(
        [sys.executable, "-m", "edgeforge", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As in a terminal: what runs in the background may have been told to ignore it.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "store" / "drafts").glob("*/checkpoint/*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "what is finished is kept. To go on: edgeforge run small.yaml" in said
    assert "Traceback" not in said
    assert list((tmp_path / "store" / "drafts").glob("*/checkpoint/*"))


# -- terminals


@pytest.mark.parametrize(
    "variables", [{}, {"NO_COLOR": "1"}, {"COLUMNS": "20"}, {"PYTHONIOENCODING": "ascii"}, {"TERM": "dumb"}]
)
def test_any_terminal_will_do(variables: dict[str, str]) -> None:
    done = process("explain", "train", **variables)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "learning_rate" in done.stdout.replace("\n", "") or "COLUMNS" in variables


def test_a_reader_that_leaves_early_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m edgeforge schema | head -c 10", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout == '{\n "$schem'
    assert done.stderr == ""


def test_only_the_first_of_several_processes_speaks() -> None:
    assert process("devices", RANK="1").stdout == ""
    assert "host_cpu" in process("devices", RANK="0").stdout


# -- each command


def test_version() -> None:
    assert edgeforge("--version").output == f"{__version__}\n"


def test_plan_shows_the_true_order_and_does_no_work(tmp_path: Path) -> None:
    output = edgeforge("plan", "small.yaml").output
    steps = [line.split()[1] for line in output.splitlines() if line[:1].isdigit() and line.split()[0].isdigit()]
    assert steps.index("phone.export") < steps.index("phone.quantize") < steps.index("phone.verify")
    assert "int8_static works on the written file" in output
    assert "0 cached" in output
    assert not list((tmp_path / "store" / "sealed").iterdir())


def test_plan_says_what_a_quantizer_of_models_works_on() -> None:
    overrides = ["--set", "targets.0.quantize=int4_weights", "--set", "targets.0.export=coreml"]
    output = edgeforge("plan", "small.yaml", *overrides).output
    assert "phone: quantize -> export -> verify" in output
    assert "int4_weights works on the model, before it is written" in output


def test_devices() -> None:
    output = edgeforge("devices").output
    assert "host_cpu" in output
    assert "estimated" in output


@pytest.mark.parametrize("word", ["pipeline", "targets", "budgets", "losses", "prune", "structures.layers", "onnx"])
def test_explain(word: str) -> None:
    if word == "structures.layers" and "layers" not in {entry.word for entry in catalog.entries("structures")}:
        word = "structures.channels"
    result = edgeforge("explain", word)
    assert result.exit_code == 0
    assert word.rpartition(".")[2] in result.output or word in {axis.name for axis in catalog.axes()}


def test_explain_everything_names_every_kind() -> None:
    output = edgeforge("explain").output.split()
    assert {entry.word for axis in catalog.axes() for entry in catalog.entries(axis.name)} <= set(output)


def test_schema_accepts_the_shipped_pipelines_and_refuses_typing_errors() -> None:
    schema = json.loads(edgeforge("schema").output)
    for path in QUICKSTART.parent.glob("*.yaml"):
        jsonschema.validate(Document(path.read_bytes(), str(path)).data, schema)
    pipeline = Document(SMALL.encode(), "small.yaml").data
    jsonschema.validate(pipeline, schema)
    pipeline["stages"][0]["epoch"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(pipeline, schema)


def test_init_writes_a_pipeline_that_plans_and_never_replaces_one() -> None:
    assert edgeforge("init").exit_code == 0
    text = Path("pipeline.yaml").read_text()
    assert "# " in text
    assert edgeforge("plan", "pipeline.yaml").exit_code == 0
    Path("pipeline.yaml").write_text("mine")
    refused = edgeforge("init")
    assert (refused.exit_code, Path("pipeline.yaml").read_text()) == (2, "mine")
    assert "--force" in refused.stderr
    assert edgeforge("init", "--force").exit_code == 0
    assert Path("pipeline.yaml").read_text() == text


def test_doctor_says_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgeforge.commands import doctor

    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "onnxruntime" else installed(name))
    output = edgeforge("doctor").output
    (line,) = [line for line in output.splitlines() if line.startswith("onnx ")]
    assert "onnxruntime absent" in line
    assert "pip install 'edgeforge[onnx]'" in line
    assert str(tmp_path / "store") in output


def test_the_default_store_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform == "linux":
        assert cli.default_store() == tmp_path / "cache" / "edgeforge" / "store"
