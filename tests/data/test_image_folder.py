"""Image files in folders: what is read, and how each mistake is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeforge.core.errors import DataError
from edgeforge.data.image_folder import ImageFolder

RNG = np.random.default_rng(0)


def picture(height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    image = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return image[..., 0] if channels == 1 else image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three training images and one test image each, RGB, 6 x 5."""
    for part, count in (("train", 3), ("test", 1)):
        for name in ("dog", "cat"):
            place = tmp_path / "pets" / part / name
            place.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(picture()).save(place / f"{index}.png")
    return tmp_path / "pets"


def test_classes_are_folders_in_alphabetical_order(folder: Path) -> None:
    parts = ImageFolder(path=str(folder)).images(None)
    assert parts.label_names == ("cat", "dog")
    assert parts.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert parts.image_shape == (6, 5, 3)
    assert len(parts.test.images) == 2
    expected = [np.asarray(Image.open(folder / "train" / name)) for name in ("dog/2.png", "cat/0.png")]
    assert (parts.train.images[[5, 0]] == np.stack(expected)).all()


def test_many_file_formats_and_nested_folders(folder: Path) -> None:
    deeper = folder / "train" / "cat" / "more"
    deeper.mkdir()
    for suffix in ("bmp", "GIF", "jpeg", "JPG", "pgm", "ppm", "tif", "webp"):
        Image.fromarray(picture()).save(deeper / f"image.{suffix}")
    (deeper / "notes.txt").write_text("no image")
    (deeper / ".hidden.png").write_bytes(b"no image")
    parts = ImageFolder(path=str(folder)).images(None)
    assert np.bincount(parts.train.labels).tolist() == [11, 3]
    assert parts.train.images[range(14)].shape == (14, 6, 5, 3)


def test_the_first_image_decides_gray_or_colour(folder: Path) -> None:
    Image.fromarray(picture(channels=1)).save(folder / "train" / "cat" / "0.png")
    source = ImageFolder(path=str(folder))
    parts = source.images(None)
    assert parts.image_shape == (6, 5, 1)
    colour = Image.open(folder / "train" / "dog" / "1.png")
    assert (parts.train.images[[4]][0, ..., 0] == np.asarray(colour.convert("L"))).all()
    rgb = ImageFolder(path=str(folder), channels="rgb")
    assert rgb.images(None).image_shape == (6, 5, 3)
    assert rgb.digest() != source.digest()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_colour_modes_are_converted(folder: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Image.fromarray(picture()).convert(mode).save(folder / "test" / "cat" / f"0.{suffix}")
    if suffix == "tif":
        (folder / "test" / "cat" / "0.png").unlink()
    image = ImageFolder(path=str(folder)).images(None).test.images[[0]]
    expected = Image.open(folder / "test" / "cat" / f"0.{suffix}").convert("RGB")
    assert (image[0] == np.asarray(expected)).all()


def test_photographs_are_turned_upright(folder: Path) -> None:
    upright = picture(6, 5)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    lying = Image.fromarray(np.rot90(upright, 1).copy())
    lying.save(folder / "train" / "cat" / "0.png", exif=exif)
    parts = ImageFolder(path=str(folder)).images(None)
    assert parts.image_shape == (6, 5, 3)
    assert (parts.train.images[[0]][0] == upright).all()


def test_sizes_may_differ_where_images_are_resized(folder: Path) -> None:
    odd = folder / "train" / "dog" / "1.png"
    Image.fromarray(picture(9, 7)).save(odd)
    source = ImageFolder(path=str(folder))
    with pytest.raises(DataError, match=r"has 7 x 9 pixels, the first one 5 x 6") as caught:
        source.images(None)
    assert caught.value.where == str(odd)
    assert "image_size" in str(caught.value.remedy)
    parts = source.images(8)
    assert parts.image_shape == (8, 8, 3)
    expected = np.asarray(Image.open(odd).resize((8, 8), Image.Resampling.BILINEAR))
    assert (parts.train.images[[4]][0] == expected).all()


def test_a_broken_image_is_named_when_it_is_met(folder: Path) -> None:
    victim = folder / "train" / "dog" / "2.png"
    whole = victim.read_bytes()
    for content in (b"", b"not an image", whole[:-30], whole[:40], whole[:60] + bytes(20) + whole[80:]):
        victim.write_bytes(content)
        with pytest.raises(DataError, match="cannot be decoded") as caught:
            parts = ImageFolder(path=str(folder)).images(None)
            parts.train.images[range(6)]
        assert caught.value.where == str(victim)
        with pytest.raises(DataError, match="cannot be decoded"):
            ImageFolder(path=str(folder)).images(8).train.images[[5]]


def test_deep_images_are_refused_rather_than_clipped(folder: Path) -> None:
    deep = RNG.integers(0, 65536, (6, 5)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "test" / "dog" / "0.png")
    with pytest.raises(DataError, match="more than 8 bits per channel"):
        ImageFolder(path=str(folder)).images(None)


def test_a_decompression_bomb_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="decompression bomb"):
        ImageFolder(path=str(folder)).images(None)


def test_missing_folders_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(DataError, match="there is no such folder") as caught:
        ImageFolder(path="cats").digest()
    assert caught.value.where == str(folder.parent / "cats")
    shutil.rmtree(folder / "test")
    for access in (ImageFolder.digest, lambda source: source.images(None)):
        with pytest.raises(DataError, match="there is no folder 'test'"):
            access(ImageFolder(path="pets"))


def test_classes_must_be_the_same_in_both_parts(folder: Path) -> None:
    (folder / "test" / "owl").mkdir()
    with pytest.raises(DataError, match="class 'owl' has a folder in test but none in train"):
        ImageFolder(path=str(folder)).images(None)
    (folder / "train" / "owl").mkdir()
    with pytest.raises(DataError, match="the training part has no image of class 'owl'"):
        ImageFolder(path=str(folder)).images(None)


def test_one_class_or_no_image_at_all_is_refused(folder: Path) -> None:
    for part in ("train", "test"):
        shutil.rmtree(folder / part / "dog")
    with pytest.raises(DataError, match="there are 1 classes; at least two are needed"):
        ImageFolder(path=str(folder)).images(None)
    for part in ("train", "test"):
        shutil.rmtree(folder / part / "cat")
    with pytest.raises(DataError, match="there are no training images"):
        ImageFolder(path=str(folder)).images(None)


def test_the_digest_follows_the_content_not_the_place(folder: Path, tmp_path: Path) -> None:
    digest = ImageFolder(path=str(folder)).digest()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "readme.txt").write_text("no image")
    assert ImageFolder(path=str(copy)).digest() == digest
    (copy / "train" / "cat" / "1.png").rename(copy / "train" / "dog" / "9.png")
    moved = ImageFolder(path=str(copy)).digest()
    assert moved != digest
    Image.fromarray(picture()).save(copy / "train" / "dog" / "9.png")
    assert ImageFolder(path=str(copy)).digest() not in (digest, moved)
