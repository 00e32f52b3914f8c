"""What an .npz file may hold, and how each mistake in one is named."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeforge.core.errors import DataError
from edgeforge.data.npz import Npz

RNG = np.random.default_rng(0)


def arrays(**changes: Any) -> dict[str, Any]:
    """A sound data set of 12 training and 6 test images, three classes, with some arrays replaced."""
    sound = {
        "x_train": RNG.integers(0, 256, (12, 5, 4), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {name: value for name, value in {**sound, **changes}.items() if value is not None}


def written(folder: Path, **changes: Any) -> Npz:
    path = folder / "data.npz"
    np.savez(path, **arrays(**changes))
    return Npz(path=str(path))


def test_gray_images_get_a_channel_and_keep_every_pixel(tmp_path: Path) -> None:
    sound = arrays()
    parts = written(tmp_path, **sound).images(None)
    assert parts.image_shape == (5, 4, 1)
    assert parts.label_names == ("0", "1", "2")
    assert (parts.train.images[[3, 0]] == sound["x_train"][[3, 0], :, :, None]).all()
    assert parts.test.images[range(6)].dtype == np.uint8
    assert parts.train.labels.tolist() == sound["y_train"].tolist()
    assert parts.train.labels.dtype == np.int64


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_colour_images_stay_as_they_are(tmp_path: Path, channels: int) -> None:
    x = RNG.integers(0, 256, (12, 5, 4, channels), dtype=np.uint8)
    parts = written(tmp_path, x_train=x, x_test=x[:6]).images(None)
    assert parts.image_shape == (5, 4, channels)
    assert (parts.train.images[range(12)] == x).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_of_0_to_1_become_the_nearest_of_256_levels(tmp_path: Path, dtype: type) -> None:
    levels = np.arange(240, dtype=np.uint8).reshape(12, 5, 4)
    levels[0, 0, 0] = 255
    parts = written(tmp_path, x_train=(levels / 255).astype(dtype), x_test=levels[:6]).images(None)
    assert (parts.train.images[range(12)][..., 0] == levels).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float32])
def test_labels_of_any_whole_number_type(tmp_path: Path, dtype: type) -> None:
    parts = written(tmp_path, y_train=(np.arange(12) % 3).astype(dtype)).images(None)
    assert parts.train.labels.tolist() == [0, 1, 2] * 4


def test_names_of_labels(tmp_path: Path) -> None:
    assert written(tmp_path, labels=np.array(["ant", "bee", "cat"])).images(None).label_names == ("ant", "bee", "cat")


def test_resizing_matches_pillow(tmp_path: Path) -> None:
    from PIL import Image

    x = RNG.integers(0, 256, (12, 9, 9, 3), dtype=np.uint8)
    parts = written(tmp_path, x_train=x, x_test=x[:6]).images(6)
    assert parts.image_shape == (6, 6, 3)
    expected = np.asarray(Image.fromarray(x[4]).resize((6, 6), Image.Resampling.BILINEAR))
    assert (parts.train.images[[4]][0] == expected).all()


def test_resizing_lets_parts_differ_in_size(tmp_path: Path) -> None:
    source = written(tmp_path, x_test=RNG.integers(0, 256, (6, 7, 7), dtype=np.uint8))
    assert source.images(8).image_shape == (8, 8, 1)
    with pytest.raises(DataError, match=r"training images are 5 x 4 x 1 but test images 7 x 7 x 1.*\n.*image_size"):
        source.images(None)


X = arrays()["x_train"]
NAN = X / 255.0
NAN[7, 2, 2] = np.nan
INFINITE = X / 255.0
INFINITE[2, 0, 0] = np.inf

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an array is missing": ({"y_test": None}, r"no array 'y_test' \(it has: x_test, x_train, y_train\)"),
    "a NaN image": ({"x_train": NAN}, r"image 7 holds NaN or infinite values \(1 such images\)"),
    "an infinite image": ({"x_train": INFINITE}, "image 2 holds NaN or infinite"),
    "floats up to 255": ({"x_train": X.astype(np.float32)}, r"must lie in \[0, 1\]"),
    "normalised floats": ({"x_train": X / 127.5 - 1}, r"must lie in \[0, 1\]"),
    "integers of another type": ({"x_train": X.astype(np.int32)}, "images are int32"),
    "complex images": ({"x_train": X.astype(np.complex64)}, "images are complex64"),
    "two axes": ({"x_train": X[0]}, r"shape \(5, 4\)"),
    "channels first": ({"x_train": np.zeros((12, 3, 8, 8), np.uint8)}, r"shape \(12, 3, 8, 8\).*\n.*channels last"),
    "an empty image": ({"x_train": np.zeros((12, 0, 4), np.uint8)}, r"shape \(12, 0, 4, 1\)"),
    "no training images": ({"x_train": X[:0], "y_train": np.arange(0)}, "there are no images"),
    "no test images": ({"x_test": X[:0], "y_test": np.arange(0)}, "x_test: there are no images"),
    "fewer labels than images": ({"y_train": np.arange(11) % 3}, r"12 images but labels of shape \(11,\)"),
    "one-hot labels": ({"y_train": np.eye(3)[np.arange(12) % 3]}, r"labels of shape \(12, 3\)"),
    "fractional labels": ({"y_train": np.arange(12) / 3}, r"not integers \(float64\)"),
    "NaN labels": ({"y_train": np.full(12, np.nan)}, r"not integers \(float64\)"),
    "labels that are text": ({"y_train": np.array(["a", "b", "c"] * 4)}, "not integers"),
    "labels that are true or false": ({"y_train": np.arange(12) % 2 == 0}, r"not integers \(bool\)"),
    "a negative label": (
        {"y_train": np.arange(12) % 3 - 1},
        r"label -1 of training image 0 is outside 0 to 2 \(4 such",
    ),
    "a huge label": ({"y_train": np.array([10**12, 1, 2] * 4)}, "label 1000000000000 of training image 0 is outside"),
    "a label without a name": ({"labels": np.array(["a", "b"])}, "label 2 of training image 2 is outside 0 to 1"),
    "a name without images": ({"labels": np.array(["a", "b", "c", "d"])}, "training part has no image of class 'd'"),
    "an empty class": (
        {"y_train": np.arange(12) % 3 * 2, "y_test": np.arange(6) % 3 * 2},
        "no image of class '1', '3'",
    ),
    "a class that is not tested": ({"y_test": np.arange(6) % 2}, "the test part has no image of class '2'"),
    "a class that is not trained": ({"y_test": np.arange(6) % 4}, "the training part has no image of class '3'"),
    "one class": ({"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}, "there are 1 classes; at least two"),
    "two classes of one name": ({"labels": np.array(["a", "b", "a"])}, "two classes have the same name"),
    "names that are numbers": ({"labels": np.array([1, 2, 3])}, "`labels` has type int64"),
    "names of several axes": ({"labels": np.array([["a", "b", "c"]])}, r"`labels` has type <U1 and shape \(1, 3\)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(tmp_path: Path, mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    source = written(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        source.images(None)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert str(tmp_path / "data.npz") in str(caught.value.where)


# -- files


def test_a_missing_file_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for access in (Npz.digest, lambda source: source.images(None)):
        with pytest.raises(DataError, match="there is no such file") as caught:
            access(Npz(path="data/x.npz"))
        assert caught.value.where == str(tmp_path / "data" / "x.npz")
    with pytest.raises(DataError, match="not a file"):
        Npz(path=".").digest()


def test_relative_paths_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(Npz(path="data.npz").images(None).train.images) == 12


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["x_train", "y_test", "labels"])
def test_a_pickle_inside_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    trap = np.array([Trap(tmp_path / "sprung")] * 12, dtype=object)
    source = written(tmp_path, **{name: trap})
    with pytest.raises(DataError, match="plain arrays"):
        source.images(None)
    assert not (tmp_path / "sprung").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "data.npz"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError, match="plain arrays"):
        Npz(path=str(path)).images(None)
    assert not (tmp_path / "sprung").exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = (written(tmp_path), tmp_path / "data.npz")[1].read_bytes()
    damaged = {
        "empty": b"",
        "no archive": b"hello",
        "cut in half": whole[: len(whole) // 2],
        "without its directory": whole[:-60],
        "one byte changed": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
    }
    for name, content in damaged.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            Npz(path=str(path)).images(None)
        assert str(path) in str(caught.value.where), name


def test_a_single_array_and_a_foreign_archive_are_refused(tmp_path: Path) -> None:
    single = tmp_path / "single.npz"
    with single.open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(DataError, match="a single array"):
        Npz(path=str(single)).images(None)
    foreign = tmp_path / "foreign.npz"
    with zipfile.ZipFile(foreign, "w") as file:
        for name in arrays():
            file.writestr(f"{name}.npy", b"not an array")
    with pytest.raises(DataError):
        Npz(path=str(foreign)).images(None)


def test_the_digest_follows_the_content_not_the_place(tmp_path: Path) -> None:
    first = written(tmp_path)
    digest = first.digest()
    elsewhere = tmp_path / "elsewhere.npz"
    elsewhere.write_bytes((tmp_path / "data.npz").read_bytes())
    assert Npz(path=str(elsewhere)).digest() == digest
    written(tmp_path, y_train=np.arange(12)[::-1] % 3)
    assert first.digest() != digest
