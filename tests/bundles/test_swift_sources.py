"""Swift in the bundles parses. Types are not checked: that takes Apple's compiler."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from edgeforge.core.report import ArtifactRow, Environment, MeasurementRow, Report

tree_sitter = pytest.importorskip("tree_sitter")
tree_sitter_swift = pytest.importorskip("tree_sitter_swift")

Bundled = Callable[..., tuple[Path, Any]]


def mistakes(source: bytes) -> list[str]:
    """Where a text is no Swift."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))

    def walk(node: Any) -> Iterator[str]:
        if node.type == "ERROR" or node.is_missing:
            yield f"line {node.start_point[0] + 1}: {source[node.start_byte : node.end_byte][:60]!r}"
        for child in node.children:
            yield from walk(child)

    return list(walk(parser.parse(source).root_node))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_every_source_parses(kind: str, image_run: Path, text_run: Path, bundled: Bundled) -> None:
    folder, _ = bundled(image_run if kind == "image" else text_run, "ios", "ios")
    sources = sorted(folder.rglob("*.swift"))
    assert len(sources) == 8
    assert {path.name: mistakes(path.read_bytes()) for path in sources} == {path.name: [] for path in sources}


def test_the_sources_of_a_language_model_parse(prompt_run: Path, bundled: Bundled) -> None:
    folder, _ = bundled(prompt_run, "ios")
    sources = sorted(folder.rglob("*.swift"))
    assert [path.name for path in sources] == ["Package.swift", "ModelFile.swift", "SelfTest.swift"]
    assert [mistakes(path.read_bytes()) for path in sources] == [[], [], []]
    assert not [path for path in sources if "{%" in path.read_text(encoding="utf-8")]


def test_the_parser_finds_a_mistake(text_run: Path, bundled: Bundled) -> None:
    folder, _ = bundled(text_run, "ios", "ios")
    source = next(folder.rglob("WordPiece.swift")).read_bytes()
    assert mistakes(source.replace(b"func encode(", b"func encode((", 1))
    assert mistakes(source.replace(b"-> [Int] {", b"-> [Int {", 1))


def test_no_template_is_left_in_a_source(text_run: Path, image_run: Path, bundled: Bundled) -> None:
    for run in (text_run, image_run):
        folder, _ = bundled(run, "ios", "ios")
        texts = [path.read_text(encoding="utf-8") for path in folder.rglob("*.swift")]
        assert not [text for text in texts if any(mark in text for mark in ("{%", "{{", "contract.identifier"))]


def test_the_sources_read_the_keys_that_edgeforge_json_has(text_run: Path, bundled: Bundled) -> None:
    """A misspelt coding key would fail on the phone, and nowhere else."""
    folder, _ = bundled(text_run, "ios", "ios")
    (path,) = folder.rglob("edgeforge.json")
    said = json.loads(path.read_text(encoding="utf-8"))
    known = {*said["input"], *said["input"]["tokenizer"], *said["golden"]}
    source = next(folder.rglob("Contract.swift")).read_text(encoding="utf-8")
    keys = set(re.findall(r'case \w+ = "(\w+)"', source))
    assert keys == {
        "max_length", "pad_id", "strip_accents", "clean_text", "handle_chinese_chars", "longest_word", "max_abs_error"
    }  # fmt: skip
    assert keys <= known


@pytest.mark.parametrize(
    ("struct", "part"),
    [("Row", MeasurementRow), ("Artifact", ArtifactRow), ("Report", Report), ("Machine", Environment)],
)
def test_the_benchmark_writes_what_a_report_needs(
    image_run: Path, bundled: Bundled, struct: str, part: type[BaseModel]
) -> None:
    folder, _ = bundled(image_run, "ios", "ios")
    source = next(folder.rglob("Benchmark.swift")).read_text(encoding="utf-8")
    (body,) = re.findall(rf"struct {struct}: Encodable \{{(.*?)\n    \}}", source, re.DOTALL)
    renamed = dict(re.findall(r'case (\w+) = "(\w+)"', body))
    written = {renamed.get(name, name) for name in re.findall(r"^ {8}let (\w+)", body, re.MULTILINE)}
    fields = {field.alias or name: field for name, field in part.model_fields.items()}
    assert {name for name, field in fields.items() if field.is_required()} <= written <= fields.keys()
