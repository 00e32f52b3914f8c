"""The documentation agrees with the code: generated tables, links, and the examples in it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeforge import cli
from edgeforge.pipeline import parse

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def _module(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for tag, block in found if tag == language]


@pytest.mark.parametrize(("page", "written"), [("README.md", "readme"), ("docs/reference.md", "reference")])
def test_generated_tables_are_up_to_date(page: str, written: str) -> None:
    generate = _module(ROOT / "docs" / "generate.py", "generate")
    assert (ROOT / page).read_text(encoding="utf-8") == getattr(generate, written)(), "run python docs/generate.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_pipelines_in_the_readme_load() -> None:
    images, texts, writing = (parse(text.encode(), "README.md") for text in blocks("README.md", "yaml"))
    assert [target.name for target in images.targets] == ["android", "ios"]
    assert [target.name for target in texts.targets] == ["android", "laptop", "ios"]
    assert [target.name for target in writing.targets] == ["gguf", "onnx", "ios"]


def test_the_stages_on_the_page_about_distillation_load(tmp_path: Path) -> None:
    (tmp_path / "lessons.py").write_text("def teach(prompt):\n    return prompt\n", encoding="utf-8")
    task = "task: {kind: image_classification, data: sklearn_digits}"
    head = f"name: page\n{task}\nmodel: {{kind: config, architecture: vit}}\n"
    for text in blocks("docs/distillation.md", "yaml"):
        pipeline = parse(f"{head}stages:\n{text}".encode(), str(tmp_path / "page.yaml"))
        assert len(pipeline.stages) == len(re.findall("^- ", text, re.MULTILINE))


def test_the_mistake_in_the_readme_is_answered_as_it_says() -> None:
    text = blocks("README.md", "yaml")[0]
    shown = next(block for block in blocks("README.md", "") if block.startswith("error my.yaml"))
    with pytest.raises(Exception, match="unknown key") as caught:
        parse(text.replace("ratio:", "ratoi:").encode(), "my.yaml")
    assert f"error {caught.value}".startswith(shown.partition(" Known:")[0])
    assert str(caught.value).splitlines()[1] == shown.splitlines()[1]


def test_the_commands_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"edgeforge ([a-z]+)", text)) & set(re.findall(r"[a-z]+", text))
    listed = {command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback}
    assert listed <= set(re.findall(r"`([a-z]+)[` ]", text)), "every command is in the table"
    assert {word for word in named if CliRunner().invoke(cli.app, [word, "--help"]).exit_code != 0} == set()


def test_the_loss_in_contributing_is_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    code, test = blocks("CONTRIBUTING.md", "python")
    (tmp_path / "mse_logits.py").write_text(code, encoding="utf-8")
    module: Any = _module(tmp_path / "mse_logits.py", "mse_logits")
    monkeypatch.setitem(sys.modules, "mse_logits", module)
    names = {"MseLogits": module.MseLogits, "torch": torch, "ModelOutput": SimpleNamespace}
    exec(test, names)
    names["test_equals_the_mean_of_squared_differences"]()  # type: ignore[operator]
    assert module.MseLogits.model_fields["centred"].description
