"""What `edgeforge verify` does on a Mac, Core ML played by a stand-in: no Mac ran this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("coremltools")

import coremltools

from edgeforge.commands import verify as command
from edgeforge.exporters.coreml import Coreml
from edgeforge.runtimes import coreml as runtime
from edgeforge.runtimes.coreml_reference import open_model
from edgeforge.verification import Check
from edgeforge.verification._on_a_mac import ABSENT, NAME

PARITY, IN_CORE_ML = "parity with torch", "parity with torch, in Core ML"


class MLModel:
    """Answers as coremltools' MLModel on a Mac does, in float16; `fault` says what is wrong with it."""

    fault: ClassVar[str | None] = None
    asked: ClassVar[int] = 0

    def __init__(self, model: str) -> None:
        if self.fault == "does not compile":
            raise RuntimeError("Failed to build the model execution plan with error code: -14.")
        self._model = open_model(Path(model), precision="float16")
        self._path = model
        self.user_defined_metadata = self._model.metadata

    def get_spec(self) -> Any:
        return coremltools.utils.load_spec(self._path)

    def make_state(self) -> Any:
        return self._model.make_state()

    def predict(self, data: Any, state: Any = None) -> Any:
        type(self).asked += 1
        if self.fault == "does not run":
            raise RuntimeError("Unable to compute the prediction using ML Program.")
        if isinstance(data, list):
            return [self._answer(one, None) for one in data]
        if self._model.make_state() and state is None:
            raise RuntimeError("The state argument is needed.")
        return self._answer(data, state)

    def _answer(self, data: Any, state: Any) -> Any:
        if self.fault == "forgets":
            state = self._model.make_state()
        answer = self._model.predict(data, state)
        for name, value in answer.items():
            if isinstance(value, dict):
                labels = list(value)
                if self.fault == "other labels":
                    answer[name] = dict(zip(labels[1:] + labels[:1], value.values(), strict=True))
                elif self.fault == "a little off":
                    answer[name] = {label: number + 1e-4 for label, number in value.items()}
                elif self.fault == "no numbers":
                    answer[name] = dict.fromkeys(labels, float("nan"))
            elif isinstance(value, np.ndarray) and self.fault == "other numbers":
                answer[name] = value + 1
        return answer


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[MLModel]]:
    monkeypatch.setattr(runtime, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(coremltools.models, "MLModel", MLModel)
    monkeypatch.setattr(MLModel, "fault", None)
    monkeypatch.setattr(MLModel, "asked", 0)
    yield MLModel
    assert MLModel.asked or MLModel.fault == "does not compile"


@pytest.fixture(scope="module")
def package(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mac") / "file"
    Coreml().export(digits.torch("resnet"), digits.job(folder))
    return folder / runtime.PACKAGE


@pytest.fixture(scope="module")
def decoder(tales: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mac") / "file"
    Coreml(context=96).export(tales.torch("llama"), tales.job(folder))
    return folder / runtime.PACKAGE


def checked(path: Path, against: Path | None = None) -> dict[str, Check]:
    (found,) = command.check(path, against=against)
    return {check.name: check for check in found.checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


@pytest.mark.parametrize("fault", [None, "a little off"])
def test_core_ml_agrees(
    fault: str | None, package: Path, digits: Any, apple: type[MLModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apple, "fault", fault)
    checks = checked(package, digits.torch("resnet").path)
    assert not failed(checks)
    assert ABSENT not in checks
    for name in (NAME, PARITY, IN_CORE_ML):
        assert checks[name].passed is True, name
    assert "same label on 100%" in checks[NAME].detail


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("other labels", "they differ by"),
        ("no numbers", "not all numbers"),
        ("does not run", "Core ML does not run it: Unable to compute"),
        ("does not compile", "Core ML does not open it: Failed to build"),
    ],
)
def test_core_ml_disagrees(
    fault: str, said: str, package: Path, apple: type[MLModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apple, "fault", fault)
    checks = checked(package)
    assert failed(checks) == {NAME}
    assert said in checks[NAME].detail
    assert checks["runs"].passed is True  # the evaluator's answers are reported beside it


def test_which_of_the_two_is_wrong(
    package: Path, digits: Any, apple: type[MLModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside torch, both are reported: here the file is right, and Core ML's answers are not."""
    monkeypatch.setattr(apple, "fault", "other labels")
    checks = checked(package, digits.torch("resnet").path)
    assert checks[PARITY].passed is True
    assert failed(checks) == {NAME, IN_CORE_ML}


def test_a_language_model(decoder: Path, tales: Any, apple: type[MLModel], monkeypatch: pytest.MonkeyPatch) -> None:
    checks = checked(decoder, tales.torch("llama").path)
    assert not failed(checks)
    assert checks[NAME].passed is checks[PARITY].passed is checks[IN_CORE_ML].passed is True
    assert "same next token" in checks[NAME].detail
    monkeypatch.setattr(apple, "fault", "forgets")
    checks = checked(decoder, tales.torch("llama").path)
    assert failed(checks) == {NAME, IN_CORE_ML}
    assert checks[PARITY].passed is True


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 6))], opset_version=coremltools.target.iOS18)
    def program(x: Any) -> Any:
        return mb.relu(x=mb.add(x=x, y=np.float32(0.5)), name="y")

    made = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS18, skip_model_load=True)
    path = tmp_path_factory.mktemp("mac") / "foreign.mlpackage"
    made.save(str(path))
    return path


def test_a_package_of_another_author(foreign: Path, apple: type[MLModel], monkeypatch: pytest.MonkeyPatch) -> None:
    assert checked(foreign)[NAME].passed is True
    monkeypatch.setattr(apple, "fault", "other numbers")
    assert checked(foreign)[NAME].passed is False


def test_in_a_run_too(
    digits: Any, package: Path, tmp_path: Path, apple: type[MLModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate behind every target asks Core ML as well, where there is one."""
    from edgeforge.verification.coreml import verify

    model = digits.torch("resnet")
    inputs = {"file": digits.artifact(package.parent, "coreml"), "reference": model, "model": model}
    facts = verify(inputs, digits.job(tmp_path))
    assert {check["name"]: check["passed"] for check in facts["checks"]}[NAME] is True
    monkeypatch.setattr(apple, "fault", "other labels")
    facts = verify(inputs, digits.job(tmp_path))
    assert facts["passed"] is False
    assert facts["reason"].startswith(NAME)


def test_elsewhere_it_is_said_not_to_be_checked(package: Path) -> None:
    assert checked(package)[ABSENT].passed is None
