"""What every kind on every axis must keep to, so that a new file is tested before its author writes a test."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from edgeforge import catalog
from edgeforge.catalog import Entry
from edgeforge.core.artifact import Artifact
from edgeforge.core.errors import EdgeForgeError, IncompatiblePlanError, ModelError
from edgeforge.core.kinds import camel_case
from edgeforge.core.spec import digest_of, nested_specs
from edgeforge.core.task import model_inputs
from edgeforge.losses import Training
from edgeforge.runtimes import runtime_for
from edgeforge.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tests.conftest import Case, Tales

KINDS = [entry for axis in catalog.axes() for entry in catalog.entries(axis.name)]
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
    "openvino",
    "nncf",
    "tokenizers",
    "openai",
    "anthropic",
    "jsonschema",
)


def of(axis: str) -> Any:
    """A test parameter for each kind of one axis."""
    found = [entry for entry in KINDS if entry.axis == axis]
    return pytest.mark.parametrize("entry", found, ids=[entry.word for entry in found])


EXAMPLES: dict[str, dict[str, Any]] = {
    "checkers.python": {"function": "checks:check"},
    "checkers.regex": {"pattern": "[0-9]+"},
    "data.hub": {"path": "owner/name"},
    "data.image_folder": {"path": "folder"},
    "data.npz": {"path": "file.npz"},
    "data.csv": {"train": "train.csv", "test": "test.csv"},
    "data.jsonl": {"train": "train.jsonl", "test": "test.jsonl"},
    "data.text_files": {"train": "a.txt", "test": "b.txt"},
    "data.text_folder": {"path": "folder"},
    "filters.schema": {"json_schema": {"type": "object"}},
    "filters.verified": {"checker": "exact"},
    "models.config": {"architecture": "resnet"},
    "models.pretrained": {"path": "folder"},
    "stages.benchmark": {"device": "host_cpu"},
    "stages.estimate": {"device": "galaxy_s24"},
    "stages.exits": {"after": [0]},
    "stages.export": {"exporter": "onnx"},
    "stages.initialize": {"model": {"kind": "config", "architecture": "resnet"}},
    "stages.probe": {"path": "texts.txt"},
    "stages.prune": {"structure": {"kind": "channels", "ratio": 0.25}},
    "stages.quantize": {"quantizer": "int8_dynamic"},
    "stages.slices": {"slices": [{"words": [10]}]},
    "structures.attention_heads": {"keep": 2},
    "structures.channels": {"ratio": 0.25},
    "structures.ffn_width": {"ratio": 0.5},
    "structures.layers": {"count": 1},
    "tasks.causal_lm": {"data": {"kind": "jsonl", "train": "train.jsonl", "test": "test.jsonl"}},
    "students.width": {"multiple": 0.5},
    "students.layers": {"every": 2},
    "students.config": {"architecture": "resnet"},
    "quantizers.int8_coreml": {"samples": 16},
    "quantizers.int8_openvino": {"samples": 16},
    "quantizers.int8_static": {"samples": 16},
    "quantizers.smooth_quant": {"samples": 16},
    "teachers.endpoint": {"model": "m"},
    "teachers.ensemble": {"members": ["model", {"kind": "model", "stage": "first"}]},
    "teachers.file": {"path": "answers.npy"},
    "teachers.program": {"function": "lessons:teach"},
    "tasks.text_classification": {"data": {"kind": "jsonl", "train": "train.jsonl", "test": "test.jsonl"}},
}
"""What to say of a kind that does not make itself from its defaults alone, or is quicker with less."""


def made(entry: Entry) -> Any:
    """The kind with its defaults; skips where something must be said and no example above says it."""
    said = EXAMPLES.get(f"{entry.axis}.{entry.word}", {})
    try:
        return entry.spec.model_validate({"kind": entry.word, **said})
    except ValidationError as error:
        wanted = {problem["type"] for problem in error.errors()}
        assert wanted <= {"missing", "value_error"}, error
        pytest.skip(f"{entry.word} needs an example in EXAMPLES: {error.errors()[0]['msg']}")


every = pytest.mark.parametrize("entry", KINDS, ids=[f"{entry.axis}.{entry.word}" for entry in KINDS])


# -- every kind


def test_every_axis_that_opened_has_a_kind() -> None:
    assert [axis.name for axis in catalog.axes() if not axis.kinds()] == []


@every
def test_file_class_and_kind_agree(entry: Entry) -> None:
    assert entry.spec.__name__ == camel_case(entry.word)
    assert entry.spec.__module__ == f"edgeforge.{entry.axis}.{entry.word}"


@every
def test_it_is_documented(entry: Entry) -> None:
    assert entry.spec.__doc__, "the class needs a docstring"
    assert entry.summary.endswith((".", ":", ",", ";")) or len(entry.text.splitlines()) > 1
    assert inspect.getmodule(entry.spec).__doc__, "the file needs a docstring"
    for spec in (entry.spec, *(part.spec for part in entry.parts)):
        for name, field in spec.model_fields.items():
            assert name == "kind" or field.description, f"{spec.__name__}.{name} needs Field(description=...)"


@every
def test_it_is_frozen_and_refuses_unknown_keys(entry: Entry) -> None:
    for spec in (entry.spec, *(part.spec for part in entry.parts)):
        assert spec.model_config["frozen"]
        assert spec.model_config["extra"] == "forbid"
        with pytest.raises(ValidationError, match="unknown key 'no_such_key'"):
            spec.model_validate(
                {"kind": entry.word, "no_such_key": 1} if "kind" in spec.model_fields else {"no_such_key": 1}
            )


@every
def test_its_defaults_are_valid_and_survive_json(entry: Entry) -> None:
    spec = made(entry)
    assert entry.spec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert all(nested_specs(spec))


@every
def test_it_can_be_explained(entry: Entry) -> None:
    assert entry in catalog.find(entry.word)
    assert catalog.find(f"{entry.axis}.{entry.word}") == [entry]
    assert entry.example.startswith(f"kind: {entry.word}")
    assert json.dumps(entry.spec.model_json_schema())


@every
def test_it_does_not_import_its_siblings(entry: Entry) -> None:
    source = Path(inspect.getfile(entry.spec)).read_text(encoding="utf-8")
    siblings = {f"edgeforge.{entry.axis}.{other.word}" for other in KINDS if other.axis == entry.axis} - {
        entry.spec.__module__
    }
    assert not siblings & set(_imports(source))


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_importing_making_and_describing_every_kind_imports_nothing_heavy() -> None:
    script = f"""
import sys
from edgeforge import catalog
for axis in catalog.axes():
    for entry in catalog.entries(axis.name):
        entry.options, entry.example, entry.parts
        try:
            entry.spec.model_validate({{"kind": entry.word}})
        except ValueError:
            pass  # something must be said
catalog.schema()
heavy = sorted(set({HEAVY!r}) & set(sys.modules))
raise SystemExit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# -- kinds of other packages


def _installed(folder: Path, name: str, source: str, target: str) -> None:
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[edgeforge.kinds]\nit = {name}:{target}\n", encoding="utf-8")


def _python(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{script}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


THEIRS = '''
from typing import Literal
from edgeforge.losses import Loss

class Theirs(Loss):
    """A loss of another package."""
    kind: Literal["{kind}"] = "{kind}"
'''


def test_an_installed_package_adds_a_kind(tmp_path: Path) -> None:
    _installed(tmp_path, "third_party_loss", THEIRS.format(kind="theirs"), "Theirs")
    script = """
from edgeforge import catalog
from edgeforge.pipeline import parse
print([(e.axis, e.word, e.summary) for e in catalog.find("theirs")])
text = b'''name: x
task: image_classification
model: {kind: config, architecture: resnet}
stages: [{kind: distill, losses: [theirs]}]
'''
print(type(parse(text, "x.yaml").stages[0].losses[0]).__module__)
"""
    done = _python(script, tmp_path)
    assert done.stdout.splitlines() == ["[('losses', 'theirs', 'A loss of another package.')]", "third_party_loss"], (
        done.stderr
    )


def test_an_installed_package_cannot_replace_a_kind(tmp_path: Path) -> None:
    _installed(tmp_path, "third_party_loss", THEIRS.format(kind="hard_labels"), "Theirs")
    done = _python("import edgeforge.catalog", tmp_path)
    assert "third_party_loss:Theirs repeats the kind 'hard_labels' of edgeforge.losses" in done.stderr


# -- what each axis is for


@of("architectures")
def test_every_family_has_a_tiny_model_here(entry: Entry, request: pytest.FixtureRequest, tales: Tales) -> None:
    (definition,) = request._fixturemanager.getfixturedefs("case", request.node)  # type: ignore[attr-defined,misc]
    # Language models are tried where each kind is tested: most take several times as long as these.
    assert entry.word in definition.params or entry.word in tales.tiny


@of("losses")
def test_loss_is_a_finite_scalar_with_gradient(entry: Entry, case: Case) -> None:
    import torch

    from edgeforge.models.outputs import run

    loss, batch, student = made(entry), case.batch(), case.model()
    with torch.no_grad():
        # The same model on other samples answers differently enough to be a teacher.
        others = {name: value.flip(0) for name, value in model_inputs(batch).items()}
        taught = run(student, others, loss.outputs) if loss.needs_teacher else None
    answer = run(student, model_inputs(batch), loss.outputs)
    try:
        modules = loss.modules(answer, taught, Training(samples=8, seed=0))
        value = loss.compute(answer, taught, batch, modules)
    except ModelError as error:
        pytest.skip(f"{entry.word} refuses {case.family}: {error}")
    assert value.shape == ()
    assert torch.isfinite(value)
    value.backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert any(bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@of("students")
def test_student_answers_for_the_same_labels(entry: Entry, case: Case) -> None:
    teacher, interface = case.model(), case.bench.data.interface
    try:
        made(entry).check(teacher.config)
        student = made(entry).build(teacher, case.bench.task, interface)
    except EdgeForgeError as error:
        pytest.skip(f"{entry.word} refuses {case.family}: {error}")
    check_answers(student, case)


def check_answers(model: PreTrainedModel, case: Case) -> None:
    """The model answers every sample with a finite number for each label."""
    import torch

    with torch.no_grad():
        logits = model.eval()(**model_inputs(case.batch())).logits
    assert logits.shape == (8, len(case.bench.data.interface.labels))
    assert bool(torch.isfinite(logits).all())


PAIRS = [
    (entry, criterion)
    for entry in KINDS
    for criterion in KINDS
    if (entry.axis, criterion.axis) == ("structures", "criteria")
    # A structure that asks no criterion is tried once.
    and (criterion.word == "random" if entry.word == "vocabulary" else entry.spec.removes in criterion.spec.judges)
]


@pytest.mark.parametrize(("entry", "criterion"), PAIRS, ids=[f"{entry.word}-{by.word}" for entry, by in PAIRS])
def test_structure_and_criterion_make_a_smaller_model_that_runs(
    entry: Entry, criterion: Entry, case: Case, tmp_path: Path
) -> None:
    judge, model = made(criterion), case.model()
    before = sum(parameter.numel() for parameter in model.parameters())
    job = replace(case.job(tmp_path), model=case.bench.torch(case.family).path)
    try:
        judge.check(model)
        made(entry).prune(model, judge, job)
    except EdgeForgeError as error:
        pytest.skip(f"{criterion.word} with {entry.word} refuses {case.family}: {error}")
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    if entry.word != "vocabulary":  # whose ids are others now
        check_answers(model, case)


@pytest.mark.slow
@of("exporters")
@pytest.mark.parametrize(
    "quantizer",
    [None, *(entry for entry in KINDS if entry.axis == "quantizers")],
    ids=lambda entry: entry and entry.word,
)
def test_every_file_that_can_be_written_can_be_run(
    entry: Entry, quantizer: Entry | None, case: Case, sealed: Callable[..., Artifact], tmp_path: Path
) -> None:
    exporter = made(entry)
    if "sample" not in exporter.answers_per:
        pytest.skip(f"{entry.word} holds no classifiers")
    chosen = made(quantizer) if quantizer else None
    if chosen is not None and entry.word not in chosen.writes:
        pytest.skip(f"{chosen.kind} does not end in {entry.word}")
    model = case.bench.torch(case.family)
    job = replace(case.job(tmp_path), model=model.path)
    try:
        if chosen is not None and "torch" in chosen.accepts:
            model = sealed("torch", lambda folder: chosen.quantize(model, replace(job, folder=folder)))
        file = sealed(entry.word, lambda folder: exporter.export(model, replace(job, folder=folder)))
        if chosen is not None and "torch" not in chosen.accepts:
            file = sealed(entry.word, lambda folder: chosen.quantize(file, replace(job, folder=folder)))
    except IncompatiblePlanError as error:
        pytest.skip(f"{chosen and chosen.kind} refuses {case.family}: {error}")
    runtime = runtime_for(entry.word, timed=False)
    assert runtime is not None
    assert runtime.available() is None
    logits = runtime.open(file.path).run({name: value.numpy() for name, value in model_inputs(case.batch()).items()})
    assert logits.shape == (8, len(case.bench.data.interface.labels))
    assert bool(np.isfinite(logits).all())


@pytest.fixture
def sealed(tmp_path: Path) -> Callable[..., Artifact]:
    """(format, what writes into a folder and returns facts) -> the sealed artifact."""
    store = Store(tmp_path / "store")

    def seal(made: str, write: Callable[[Path], Any]) -> Artifact:
        draft = store.draft(
            digest_of([made, len(list((store.root / "sealed").iterdir()))]), "test", parents={}, recipe={}
        )
        return store.seal(draft, made, write(draft.path), 0.0)

    return seal
