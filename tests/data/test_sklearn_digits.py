"""The embedded data set: scikit-learn's digits."""

from __future__ import annotations

import numpy as np

from edgeforge.data.sklearn_digits import SklearnDigits


def test_it_is_the_whole_of_scikit_learns_digits_in_256_levels() -> None:
    from sklearn.datasets import load_digits

    parts = SklearnDigits().images(None)
    found = np.concatenate([parts.train.images[range(1347)], parts.test.images[range(450)]])
    labels = np.concatenate([parts.train.labels, parts.test.labels])
    digits = load_digits()
    assert parts.image_shape == (8, 8, 1)
    assert parts.label_names == tuple("0123456789")
    assert found.max() == 255

    def sets(images: np.ndarray, targets: np.ndarray) -> list[tuple[bytes, int]]:
        return sorted(
            (image.astype(np.uint8).tobytes(), int(target)) for image, target in zip(images, targets, strict=True)
        )

    # 16 levels of 255/16 = 15.94: going back is exact.
    assert sets(np.rint(found[..., 0] / 255 * 16), labels) == sets(digits.images, digits.target)


def test_the_split_is_stratified_and_fixed() -> None:
    parts = SklearnDigits().images(None)
    share = np.bincount(parts.test.labels) / (np.bincount(parts.test.labels) + np.bincount(parts.train.labels))
    assert np.abs(share - 0.25).max() < 0.01
    again = SklearnDigits().images(None)
    assert (again.test.images[range(450)] == parts.test.images[range(450)]).all()
    assert SklearnDigits().digest() == SklearnDigits().digest()


def test_images_are_resized_on_request() -> None:
    parts = SklearnDigits().images(16)
    assert parts.image_shape == (16, 16, 1)
    assert parts.test.images[[0, 5]].shape == (2, 16, 16, 1)
