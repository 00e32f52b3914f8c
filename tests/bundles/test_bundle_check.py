"""Bundles checked again: what is damaged, missing, added or exchanged is found, and hostile archives are refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeforge.bundles._check import is_bundle, verify_bundle
from edgeforge.bundles._contract import GoldenPrompts
from edgeforge.core.errors import ModelError

Bundled = Callable[..., tuple[Path, Any]]


def failed(path: Path) -> dict[str, str]:
    return {check.name: check.detail for check in verify_bundle(path) if check.passed is False}


def list_again(folder: Path) -> None:
    """As somebody would who changes a bundle and its list of checksums."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def copied(text_run: Path, bundled: Bundled, tmp_path: Path) -> Path:
    folder, _ = bundled(text_run, "web")
    return Path(shutil.copytree(folder, tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("target", "artifact", "checks"), [("android", "phone", 7), ("web", "phone", 5), ("ios", "ios", 5)]
)
def test_a_bundle_is_sound_as_folder_and_as_zip(
    text_run: Path, bundled: Bundled, target: str, artifact: str, checks: int
) -> None:
    folder, _ = bundled(text_run, target, artifact)
    for path in (folder, folder.with_suffix(".zip")):
        assert is_bundle(path)
        found = verify_bundle(path)
        assert [check.passed for check in found] == [True] * checks, found


@pytest.mark.parametrize("target", ["android", "ios"])
def test_a_language_model_s_bundle_is_sound(prompt_run: Path, bundled: Bundled, target: str) -> None:
    folder, _ = bundled(prompt_run, target)
    found = verify_bundle(folder)
    assert [check.passed for check in found] == [True] * 5, found
    assert found[-1].detail.startswith("100% of")


def test_a_language_model_that_answers_otherwise_is_found(prompt_run: Path, bundled: Bundled, tmp_path: Path) -> None:
    """Another model under the same contract, its checksums made to fit."""
    folder, contract = bundled(prompt_run, "ios")
    assert isinstance(contract.golden, GoldenPrompts)
    copied = tmp_path / "bundle"
    shutil.copytree(folder, copied)
    said = next(copied.rglob("edgeforge.json"))
    content = json.loads(said.read_text(encoding="utf-8"))
    for one in content["golden"]["prompts"][: len(contract.golden.prompts) // 2]:
        one["text"] = "something else"
    said.write_text(json.dumps(content), encoding="utf-8")
    assert "prompts go on as recorded" in failed(copied)["gguf: recorded answers"]


def test_other_folders_and_archives_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"not a zip")
    assert not is_bundle(tmp_path) and not is_bundle(tmp_path / "a.zip") and not is_bundle(tmp_path / "missing.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("model.mlpackage/Manifest.json", "{}")
    assert not is_bundle(tmp_path / "b.zip")


def test_one_changed_byte_is_found(copied: Path) -> None:
    model = copied / "model" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    found = failed(copied)
    assert found["sha256"] == "model/model.onnx is not what was listed" and "onnx: sha256" in found


def test_missing_and_added_files_are_found(copied: Path) -> None:
    (copied / "evil.js").write_text("", encoding="utf-8")
    assert failed(copied) == {"sha256": "evil.js is not listed"}
    (copied / "evil.js").unlink()
    (copied / "node_modules" / "x").mkdir(parents=True)
    (copied / "node_modules" / "x" / "index.js").write_text("", encoding="utf-8")
    assert failed(copied) == {}  # what npm installs beside it is no part of it
    (copied / "LICENCES.md").unlink()
    assert failed(copied) == {"sha256": "LICENCES.md is gone"}


def test_another_model_under_new_checksums_is_found(copied: Path, mails: Any) -> None:
    shutil.copyfile(mails.onnx("electra").path / "model.onnx", copied / "model" / "model.onnx")
    list_again(copied)
    found = failed(copied)
    assert found.keys() == {"onnx: sha256", "onnx: recorded answers"}
    assert found["onnx: recorded answers"].startswith("answers move by")


def test_damaged_records_are_found(copied: Path) -> None:
    golden = copied / "model" / "golden.bin"
    whole = golden.read_bytes()
    golden.write_bytes(whole[:-5])
    list_again(copied)
    assert "cannot be read" in failed(copied)["onnx: recorded answers"]
    golden.write_bytes(whole[:-4] + b"\x00\x00\xc0\x7f")  # the last answer is NaN
    list_again(copied)
    assert "onnx: recorded answers" in failed(copied)
    golden.write_bytes(whole)
    contract = copied / "model" / "edgeforge.json"
    said = json.loads(contract.read_text(encoding="utf-8"))
    said["golden"]["texts"][1]["ids"][1] += 1
    contract.write_text(json.dumps(said), encoding="utf-8")
    list_again(copied)
    assert failed(copied) == {"tokenizer": "reads \"Hello, world! It's 3:45pm -- don't be la\" differently"}
    contract.write_text("{}", encoding="utf-8")
    assert "none that this version reads" in failed(copied)["edgeforge.json"]


def test_a_contract_cannot_lead_out_of_the_bundle(copied: Path) -> None:
    contract = copied / "model" / "edgeforge.json"
    said = json.loads(contract.read_text(encoding="utf-8"))
    said["models"][0]["file"] = "../../somewhere/model.onnx"
    contract.write_text(json.dumps(said), encoding="utf-8")
    list_again(copied)
    assert failed(copied) == {"onnx: sha256": "../../somewhere/model.onnx is outside of the bundle"}


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "C:\\evil.txt"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(copied: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(copied / "SHA256SUMS", "bundle/SHA256SUMS")
        archive.writestr(name, "x")
    assert is_bundle(path)
    with pytest.raises(ModelError, match="leads out of the folder"):
        verify_bundle(path)
    assert not list(tmp_path.rglob("evil.txt"))


def test_links_and_damage_in_an_archive_are_refused(copied: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(copied / "SHA256SUMS", "bundle/SHA256SUMS")
        link = zipfile.ZipInfo("bundle/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(ModelError, match="leads out of the folder"):
        verify_bundle(path)
    whole = tmp_path / "whole.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        archive.write(copied / "SHA256SUMS", "bundle/SHA256SUMS")
    content = bytearray(whole.read_bytes())
    content[60] ^= 0xFF
    whole.write_bytes(content)
    with pytest.raises(ModelError, match="not a whole zip"):
        verify_bundle(whole)
