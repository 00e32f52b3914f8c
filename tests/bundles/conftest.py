"""Folders as finished runs leave them, of tiny models with random weights: images, texts, and a language model."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from edgeforge.bundles import bundle_for
from edgeforge.bundles._contract import NAME, Contract
from edgeforge.bundles._source import open_source
from edgeforge.bundles._writing import write_bundle
from edgeforge.core.artifact import Artifact, digest_files
from edgeforge.exporters.coreml import Coreml
from edgeforge.exporters.gguf import Gguf
from edgeforge.verification import _golden

if TYPE_CHECKING:
    Digits = Any
    Mails = Any
    Tales = Any

ENVIRONMENT = {"cpu": "a CPU", "cores": 2, "ram_gb": 8.0, "os": "Linux", "python": "3.11", "packages": {"torch": "2"}}
LOADED = {"onnx": "model.onnx", "coreml": "model.mlpackage", "gguf": "model.gguf"}


class Run:
    """A run's folder in the making."""

    def __init__(self, folder: Path, name: str, bench: Digits) -> None:
        self.folder, self.name, self.bench = folder, name, bench
        self.rows: list[dict[str, Any]] = []

    def ship(self, row: str, artifact: Artifact, model: Artifact, **facts: Any) -> None:
        """Copy the artifact, record its answers, and write a row for the report."""
        home = self.folder / "artifacts" / row
        shutil.copytree(artifact.path, home)
        loaded = LOADED[artifact.format]
        inside = {
            name.removeprefix(f"{loaded}/"): digest
            for name, digest in artifact.files.items()
            if name.startswith(loaded)
        }
        golden = _golden.write({"file": artifact, "model": model}, self.bench.job(self.folder / "draft"))
        if golden is not None:
            (self.folder / "golden").mkdir(exist_ok=True)
            (self.folder / "draft" / _golden.NAME).rename(self.folder / "golden" / f"{row}.npz")
        self.rows.append(
            {
                "name": row,
                "status": "shipped",
                "format": artifact.format,
                "path": f"artifacts/{row}/{loaded}",
                "bytes": sum(
                    (artifact.path / name).stat().st_size for name in artifact.files if name.startswith(loaded)
                ),
                "sha256": inside[loaded] if loaded in inside else digest_files(inside),
                "files": dict(artifact.files),
                "metrics": {"accuracy": 0.9},
                "lineage": {"steps": [{"step": "train", "kind": "train", "key": "ab" * 32}]},
                "golden": {"path": f"golden/{row}.npz", **golden} if golden else None,
                **facts,
            }
        )

    def finish(self, pipeline: Mapping[str, Any]) -> Path:
        report = {
            "schema": "edgeforge.report/1",
            "pipeline": self.name,
            "run": f"{self.name}-20260102T030405Z",
            "edgeforge": "0.1.0",
            "created": "2026-01-02T03:04:05+00:00",
            "environment": ENVIRONMENT,
            "stages": [],
            "artifacts": self.rows,
            "task": self.bench.task.kind,
            "seed": 0,
        }
        (self.folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
        (self.folder / "pipeline.yaml").write_text(yaml.safe_dump(dict(pipeline)), encoding="utf-8")
        shutil.rmtree(self.folder / "draft", ignore_errors=True)
        return self.folder


def coreml(bench: Digits, family: str) -> Artifact:
    job = bench.job(bench.root / f"{family}.coreml")
    facts = Coreml().export(bench.torch(family), job)
    return bench.artifact(job.folder, "coreml", facts)


@pytest.fixture(scope="session")
def image_run(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`baseline` and `phone` (ONNX), `ios` (Core ML), and a `broken` one that was set aside."""
    run = Run(tmp_path_factory.mktemp("images"), "digits-demo", digits)
    model = digits.torch("resnet")
    run.ship("baseline", digits.onnx("resnet"), model)
    run.ship("phone", digits.onnx("resnet"), model)
    run.ship("ios", coreml(digits, "resnet"), model)
    run.rows.append({"name": "broken", "status": "quarantined", "reason": "it answers nonsense", "format": "onnx"})
    return run.finish(
        {
            "name": "digits-demo",
            "task": {"kind": "image_classification", "data": {"kind": "sklearn_digits"}},
            "model": {"kind": "config", "architecture": "resnet"},
            "stages": [{"kind": "train", "epochs": 2}],
            "targets": [{"name": "phone", "export": {"kind": "onnx"}}, {"name": "ios", "export": {"kind": "coreml"}}],
        }
    )


@pytest.fixture(scope="session")
def text_run(mails: Mails, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`phone` (ONNX) and `ios` (Core ML), of a pretrained model with a card, taught by another one."""
    run = Run(tmp_path_factory.mktemp("texts"), "mails", mails)
    model = mails.torch("bert")
    run.ship("phone", mails.onnx("bert"), model)
    run.ship("ios", coreml(mails, "bert"), model)
    teacher = tmp_path_factory.mktemp("private") / "big-teacher"
    teacher.mkdir()
    (teacher / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A teacher\n", encoding="utf-8")
    (teacher / "LICENSE.txt").write_text("not for sale\n", encoding="utf-8")
    return run.finish(
        {
            "name": "mails",
            "task": {
                "kind": "text_classification",
                "data": {"kind": "jsonl", "train": str(mails.root / "train.jsonl")},
            },
            "model": {"kind": "pretrained", "path": "nobody/some-model", "revision": "main"},
            "stages": [
                {"kind": "distill", "teacher": {"kind": "model", "model": {"kind": "pretrained", "path": str(teacher)}}}
            ],
            "targets": [{"name": "phone", "export": {"kind": "onnx"}}],
        }
    )


@pytest.fixture(scope="session")
def prompt_run(tales: Tales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`phone` (GGUF)."""
    run = Run(tmp_path_factory.mktemp("prompts"), "tales", tales)
    job = tales.job(tales.root / "llama.gguf")
    facts = Gguf().export(tales.torch("llama"), job)
    run.ship("phone", tales.artifact(job.folder, "gguf", facts), tales.torch("llama"))
    return run.finish({"name": "tales", "model": {"kind": "config"}, "task": {"data": {"kind": "jsonl"}}})


Bundled = Callable[..., tuple[Path, Contract]]


@pytest.fixture(scope="session")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Bundled:
    """(run, target, artifact) -> a bundle's folder and its contract, each made once. They are not to be changed."""
    made: dict[tuple[Path, str, str], Path] = {}
    out = tmp_path_factory.mktemp("bundles")

    def make(run: Path, target: str, artifact: str = "phone") -> tuple[Path, Contract]:
        key = (run, target, artifact)
        if key not in made:
            kind = bundle_for(target)
            made[key], _ = write_bundle(open_source(run, artifact, kind), kind, out / run.name)
        return made[key], contract_of(made[key])

    return make


def contract_of(folder: Path) -> Contract:
    (path,) = folder.rglob(NAME)
    return Contract.model_validate_json(path.read_bytes())


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Names of npm packages -> the `node_modules` they were installed into, each set once."""
    made: dict[tuple[str, ...], Path] = {}

    def install(*names: str) -> Path:
        if names not in made:
            folder = tmp_path_factory.mktemp("npm")
            command = [
                program("npm"),
                "install",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--prefix",
                str(folder),
            ]
            done = subprocess.run([*command, *names], cwd=folder, capture_output=True, encoding="utf-8", timeout=400)
            assert done.returncode == 0, done.stderr[-2000:]
            made[names] = folder / "node_modules"
        return made[names]

    return install


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Images and texts with what Python makes of them; see samples.py."""
    spec = importlib.util.spec_from_file_location("samples_of_bundles", Path(__file__).with_name("samples.py"))
    assert spec is not None and spec.loader is not None
    samples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(samples)
    return {"images": samples.image_cases(), "texts": samples.text_cases(tmp_path_factory.mktemp("tokenizers"))}
