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
from edgeforge.core.stage import Job
from edgeforge.core.task import Task
from edgeforge.data.npz import Npz
from edgeforge.runtimes import runtime_for
from edgeforge.store import Store
from edgeforge.tasks.image_classification import ImageClassification

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

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
)


def of(axis: str) -> Any:
    """A test parameter for each kind of one axis."""
    found = [entry for entry in KINDS if entry.axis == axis]
    return pytest.mark.parametrize("entry", found, ids=[entry.word for entry in found])


EXAMPLES: dict[str, dict[str, Any]] = {
    "data.hub": {"path": "owner/name"},
    "data.image_folder": {"path": "folder"},
    "data.npz": {"path": "file.npz"},
    "models.config": {"architecture": "resnet"},
    "models.pretrained": {"path": "folder"},
    "stages.benchmark": {"device": "host_cpu"},
    "stages.export": {"exporter": "onnx"},
    "stages.initialize": {"model": {"kind": "config", "architecture": "resnet"}},
    "stages.prune": {"structure": {"kind": "channels", "ratio": 0.25}},
    "stages.quantize": {"quantizer": "int8_dynamic"},
    "structures.channels": {"ratio": 0.25},
    "students.width": {"multiple": 0.5},
    "students.layers": {"every": 2},
    "students.config": {"architecture": "resnet"},
    "quantizers.int8_static": {"samples": 16},
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


def _images(count: int = 8) -> dict[str, torch.Tensor]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(count, 1, 16, 16, generator=generator),
        "labels": torch.arange(count) % 4,
    }


def test_every_family_has_a_tiny_model_here(tiny_model: Callable[[str], PreTrainedModel]) -> None:
    for entry in catalog.entries("architectures"):
        tiny_model(entry.word)


@of("losses")
def test_loss_is_a_finite_scalar_with_gradient(
    entry: Entry, family: str, tiny_model: Callable[[str], PreTrainedModel]
) -> None:
    import torch

    loss = made(entry)
    batch = _images()
    flags = {f"output_{name}": True for name in loss.outputs}
    student = tiny_model(family)
    if "attentions" in loss.outputs:
        student.set_attn_implementation("eager")
    with torch.no_grad():
        # The same model on other images answers differently enough to be a teacher.
        taught = student(pixel_values=batch["pixel_values"].flip(0), **flags) if loss.needs_teacher else None
    answer = student(pixel_values=batch["pixel_values"], **flags)
    try:
        modules = loss.modules(answer, taught)
        value = loss.compute(answer, taught, batch, modules)
    except ModelError as error:
        pytest.skip(f"{entry.word} refuses {family}: {error}")
    assert value.shape == ()
    assert torch.isfinite(value)
    value.backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert any(bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@of("students")
def test_student_answers_for_the_same_labels(
    entry: Entry, family: str, tiny_model: Callable[[str], PreTrainedModel], task: Task
) -> None:
    import torch

    teacher = tiny_model(family)
    try:
        made(entry).check(teacher.config)
        student = made(entry).build(teacher, task, task.open().interface)
    except EdgeForgeError as error:
        pytest.skip(f"{entry.word} refuses {family}: {error}")
    with torch.no_grad():
        logits = student(pixel_values=_images()["pixel_values"]).logits
    assert logits.shape == (8, 4)
    assert bool(torch.isfinite(logits).all())


@of("structures")
@pytest.mark.parametrize(
    "criterion", [entry for entry in KINDS if entry.axis == "criteria"], ids=lambda entry: entry.word
)
def test_structure_and_criterion_make_a_smaller_model_that_runs(
    entry: Entry, criterion: Entry, family: str, tiny_model: Callable[[str], PreTrainedModel], job: Job
) -> None:
    import torch

    model = tiny_model(family)
    before = sum(parameter.numel() for parameter in model.parameters())
    try:
        made(criterion).check(model)
        made(entry).prune(model, made(criterion), job)
    except EdgeForgeError as error:
        pytest.skip(f"{criterion.word} with {entry.word} refuses {family}: {error}")
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    with torch.no_grad():
        logits = model.eval()(pixel_values=_images()["pixel_values"]).logits
    assert logits.shape == (8, 4)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.slow
@of("exporters")
@pytest.mark.parametrize(
    "quantizer",
    [None, *(entry for entry in KINDS if entry.axis == "quantizers")],
    ids=lambda entry: entry and entry.word,
)
def test_every_file_that_can_be_written_can_be_run(
    entry: Entry,
    quantizer: Entry | None,
    family: str,
    tiny_model: Callable[[str], PreTrainedModel],
    job: Job,
    sealed: Callable[..., Artifact],
) -> None:
    exporter = made(entry)
    chosen = made(quantizer) if quantizer else None
    if chosen is not None and entry.word not in chosen.writes:
        pytest.skip(f"{chosen.kind} does not end in {entry.word}")
    model = sealed("torch", lambda folder: loading().save(tiny_model(family), folder) or {})
    try:
        if chosen is not None and "torch" in chosen.accepts:
            model = sealed("torch", lambda folder: chosen.quantize(model, replace(job, folder=folder)))
        file = sealed(entry.word, lambda folder: exporter.export(model, replace(job, folder=folder)))
        if chosen is not None and "torch" not in chosen.accepts:
            file = sealed(entry.word, lambda folder: chosen.quantize(file, replace(job, folder=folder)))
    except IncompatiblePlanError as error:
        pytest.skip(f"{chosen and chosen.kind} refuses {family}: {error}")
    runtime = runtime_for(entry.word)
    assert runtime is not None
    if runtime.available() is not None:
        return
    logits = runtime.open(file.path).run({job.task.open().interface.input_name: _images()["pixel_values"].numpy()})
    assert logits.shape == (8, 4)
    assert bool(np.isfinite(logits).all())


def loading() -> Any:
    from edgeforge.models import loading

    return loading


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Four labels, 16x16 gray images, 64 to train and 32 to test on."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("contracts") / "data.npz"
    np.savez(
        path,
        x_train=rng.integers(0, 256, (64, 16, 16), np.uint8),
        y_train=np.arange(64) % 4,
        x_test=rng.integers(0, 256, (32, 16, 16), np.uint8),
        y_test=np.arange(32) % 4,
    )
    return ImageClassification(data=Npz(path=str(path)))


class _Silent:
    def update(self, done: int, total: int, note: str = "") -> None:
        pass

    def warn(self, message: str) -> None:
        pass


@pytest.fixture
def job(task: Task, tmp_path: Path) -> Job:
    def accelerator() -> Any:
        from accelerate import Accelerator

        return Accelerator(cpu=True)

    return Job(task, tmp_path, 0, accelerator, _Silent())


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
