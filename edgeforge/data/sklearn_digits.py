"""The 1,797 handwritten digits that scikit-learn carries: 8x8 gray images, ten classes, no download."""

from __future__ import annotations

import functools
import hashlib
from typing import ClassVar, Literal

import numpy as np

from edgeforge.data import DataSource, ImageParts, Medium
from edgeforge.data._parts import images_from_array, make_parts

TEST_SHARE = 0.25
SPLIT_SEED = 0


class SklearnDigits(DataSource):
    """Handwritten digits (Alpaydin and Kaynak, 1998; scikit-learn's `load_digits`).

    Values 0 to 16 become 0 to 255. A quarter of the images, stratified and always the same, is the test part.
    """

    kind: Literal["sklearn_digits"] = "sklearn_digits"

    holds: ClassVar[frozenset[Medium]] = frozenset({"images"})
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.data._parts",)

    def digest(self) -> str:
        sha = hashlib.sha256()
        for array in _arrays():
            sha.update(str((array.shape, str(array.dtype))).encode() + array.tobytes())
        return sha.hexdigest()

    def images(self, image_size: int | None) -> ImageParts:
        x_train, y_train, x_test, y_test = _arrays()
        where = "sklearn_digits"
        train = images_from_array(x_train, where=where, image_size=image_size)
        test = images_from_array(x_test, where=where, image_size=image_size)
        height, width, channels = train.array.shape[1:]
        return make_parts(
            (train, y_train), (test, y_test), label_names=None, image_shape=(height, width, channels), where=where
        )


@functools.cache
def _arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, y_train, x_test, y_test; images uint8 (N, 8, 8), labels int64."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    return x_train, y_train, x_test, y_test
