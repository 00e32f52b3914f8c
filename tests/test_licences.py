"""What files say of their licence, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeforge import licences

CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n"


def test_a_card_names_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    (tmp_path / "train.csv").write_text("text,label\n", encoding="utf-8")
    assert licences.of(tmp_path) == ("apache-2.0", "README.md")
    assert licences.of(tmp_path / "train.csv") == ("apache-2.0", "README.md")


def test_a_config_names_it_where_no_card_does(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# no header\nlicense: mit\n", encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"license": "cc-by-4.0"}), encoding="utf-8")
    assert licences.of(tmp_path) == ("cc-by-4.0", "config.json")


def test_several_are_listed(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense:\n- mit\n- apache-2.0\n---\n", encoding="utf-8")
    assert licences.of(tmp_path) == ("mit, apache-2.0", "README.md")


def test_a_gguf_file_names_its_own(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\n", encoding="utf-8")
    assert licences.of(path) == ("apache-2.0", "m.gguf")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", "---\n{broken: [yaml\n---\n"),
        ("README.md", "---\n- a list\n---\n"),
        ("README.md", "---\nlicense: {a: b}\n---\n"),
        ("README.md", "---\nlicense: ''\n---\n"),
        ("config.json", "{not json"),
        ("config.json", "[]"),
        ("m.gguf", "GGUFnonsense"),
    ],
)
def test_what_cannot_be_read_says_nothing(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert licences.of(path) == ("unknown", None)


def test_a_text_beside_it_is_pointed_to(tmp_path: Path) -> None:
    (tmp_path / "LICENSE.txt").write_text("All rights reserved\n", encoding="utf-8")
    assert licences.of(tmp_path) == ("see LICENSE.txt", "LICENSE.txt")
    assert licences.named(tmp_path) is None


def test_places_of_this_machine_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "big").mkdir(parents=True)
    assert licences.shown_place(str(tmp_path / "models" / "big")) == "big"
    assert licences.shown_place("models/big") == "big"
    assert licences.shown_place("./gone/file.csv") == "file.csv"
    assert licences.shown_place("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
