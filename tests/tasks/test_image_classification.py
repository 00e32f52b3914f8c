"""The image classification task: batches, splits, augmentation, metrics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgeforge.core.errors import DataError, ModelError
from edgeforge.tasks._classification import calibration_error, stratified_split
from edgeforge.tasks.image_classification import ImageClassification

COUNT, SIDE = 40, 7
RNG = np.random.default_rng(0)
X = RNG.integers(1, 256, (COUNT, SIDE, SIDE), dtype=np.uint8)
"""No pixel is 0, so that zeros in a batch can only come from padding."""
Y = np.arange(COUNT) % 4


@pytest.fixture
def path(tmp_path: Path) -> str:
    np.savez(tmp_path / "d.npz", x_train=X, y_train=Y, x_test=X[:8], y_test=Y[:8])
    return str(tmp_path / "d.npz")


def task(path: str, **fields: Any) -> ImageClassification:
    data = {"kind": "npz", "path": path}
    return ImageClassification.model_validate({"kind": "image_classification", "data": data, **fields})


def levels(pixels: torch.Tensor) -> np.ndarray:
    """Pixels of the default normalisation as the 256 levels they came from, shape (N, H, W)."""
    found = (pixels[:, 0].double().numpy() / 2 + 0.5) * 255
    assert np.abs(found - np.rint(found)).max() < 1e-4
    return np.rint(found).astype(np.uint8)


# -- what a batch holds


def test_the_default_is_scikit_learns_digits() -> None:
    data = ImageClassification().open()
    assert data.interface.image_shape == (1, 8, 8)
    assert data.interface.labels == tuple("0123456789")
    assert sum(data.size(split) for split in ("train", "validation", "test")) == 1797  # type: ignore[arg-type]


def test_a_batch_is_normalised_images_and_labels(path: str) -> None:
    data = task(path).open()
    batch = data.batch("test", [5, 0, 5])
    assert batch["pixel_values"].shape == (3, 1, SIDE, SIDE)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"].is_contiguous()
    assert batch["labels"].tolist() == Y[[5, 0, 5]].tolist()
    assert batch["labels"].dtype == torch.int64
    expected = (X[[5, 0, 5]] / 255 - 0.5) / 0.5
    np.testing.assert_allclose(batch["pixel_values"][:, 0].numpy(), expected, atol=1e-6)


def test_interface(path: str) -> None:
    interface = task(path).open().interface
    assert ([value.name for value in interface.inputs], interface.output_name) == (["pixel_values"], "logits")
    assert interface.image_shape == (1, SIDE, SIDE)
    assert interface.labels == ("0", "1", "2", "3")
    assert (interface.pixels.mean, interface.pixels.std) == ((0.5,), (0.5,))


def test_channels_are_normalised_one_by_one(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)
    np.savez(tmp_path / "rgb.npz", x_train=x, y_train=Y, x_test=x, y_test=Y)
    mean, std = (0.48, 0.45, 0.4), (0.22, 0.23, 0.25)
    data = task(str(tmp_path / "rgb.npz"), normalize={"mean": mean, "std": std}).open()
    expected = ((x[:4] / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(data.batch("test", range(4))["pixel_values"].numpy(), expected, atol=1e-5)
    assert (data.interface.pixels.mean, data.interface.pixels.std) == (mean, std)
    with pytest.raises(DataError, match="std has 2 values but the images have 3 channels"):
        task(str(tmp_path / "rgb.npz"), normalize={"std": [0.5, 0.5]}).open()


def test_no_normalisation_and_one_number_for_all_channels(path: str) -> None:
    plain = task(path, normalize=None).open()
    np.testing.assert_allclose(plain.batch("test", [1])["pixel_values"][0, 0].numpy(), X[1] / 255, atol=1e-6)
    assert (plain.interface.pixels.mean, plain.interface.pixels.std) == ((0.0,), (1.0,))
    assert task(path, normalize={"mean": 0.3, "std": 0.2}) == task(path, normalize={"mean": [0.3], "std": [0.2]})


# -- splits


def test_validation_is_cut_from_training_and_never_overlaps(path: str) -> None:
    data = task(path, validation=0.2).open()
    assert [data.size(split) for split in ("train", "validation", "test")] == [32, 8, 8]  # type: ignore[arg-type]
    parts = [levels(data.batch(split, range(data.size(split)))["pixel_values"]) for split in ("train", "validation")]  # type: ignore[arg-type]
    together = sorted(image.tobytes() for part in parts for image in part)
    assert together == sorted(image.tobytes() for image in X)
    assert np.bincount(data.batch("validation", range(8))["labels"]).tolist() == [2, 2, 2, 2]


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=6), share=st.floats(0.01, 0.5))
def test_splits_are_stratified(counts: list[int], share: float) -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    kept, held = stratified_split(labels, share)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert len(held) == max(1, round(share * len(labels)))
    for label, count in enumerate(counts):
        assert abs((labels[held] == label).sum() - share * count) <= 1.5


def test_a_class_with_one_sample_trains() -> None:
    labels = np.array([0] * 50 + [1])
    kept, _ = stratified_split(labels, 0.4)
    assert 1 in labels[kept]


def test_the_split_is_the_same_forever() -> None:
    """These numbers are NumPy's frozen RandomState stream; a changed split would mix old and new results."""
    kept, held = stratified_split(np.arange(12) % 3, 0.25)
    assert held.tolist() == [4, 6, 11]
    assert kept.tolist() == [0, 1, 2, 3, 5, 7, 8, 9, 10]


# -- augmentation


def test_without_a_seed_or_outside_training_nothing_is_augmented(path: str) -> None:
    data = task(path, augment={"crop": 2, "flip": True}).open()
    plain = task(path).open()
    for split in ("validation", "test"):
        same = data.batch(split, [0, 1, 2], augment_seed=5)["pixel_values"]  # type: ignore[arg-type]
        assert torch.equal(same, plain.batch(split, [0, 1, 2])["pixel_values"])  # type: ignore[arg-type]
    assert torch.equal(data.batch("train", [3])["pixel_values"], plain.batch("train", [3])["pixel_values"])
    assert torch.equal(
        plain.batch("train", [3], augment_seed=1)["pixel_values"], plain.batch("train", [3])["pixel_values"]
    )


def test_an_augmented_image_is_a_shift_and_mirror_of_itself(path: str) -> None:
    crop = 2
    data = task(path, augment={"crop": crop, "flip": True}).open()
    plain = levels(data.batch("train", range(data.size("train")))["pixel_values"])
    padded = np.pad(plain, ((0, 0), (crop, crop), (crop, crop)))
    seen = set()
    for seed in range(30):
        changed = levels(data.batch("train", range(len(plain)), augment_seed=seed)["pixel_values"])
        for index, image in enumerate(changed):
            found = [
                (top, left, mirrored)
                for top in range(2 * crop + 1)
                for left in range(2 * crop + 1)
                for mirrored in (False, True)
                if np.array_equal(
                    padded[index, top : top + SIDE, left : left + SIDE][:, :: -1 if mirrored else 1], image
                )
            ]
            assert len(found) == 1
            seen.add(found[0])
    assert len(seen) == (2 * crop + 1) ** 2 * 2


def test_shifts_and_mirrors_are_uniform_and_independent(path: str) -> None:
    from scipy.stats import chisquare

    from edgeforge.tasks.image_classification import _random_bits

    bits = np.concatenate([_random_bits(np.arange(2000), seed) for seed in (0, 1, 2, 2**31 - 1)])
    for places in (2, 3, 5, 9):
        top, left, mirrored = (bits >> 1) % places, (bits >> 32) % places, bits & 1
        cells = np.bincount((top * places + left) * 2 + mirrored, minlength=places**2 * 2)
        assert chisquare(cells).pvalue > 1e-4
    assert len(set(bits.tolist())) == len(bits)


def test_an_image_is_augmented_the_same_wherever_it_stands(path: str) -> None:
    data = task(path, augment={"crop": 3, "flip": True}).open()
    together = data.batch("train", range(20), augment_seed=9)["pixel_values"]
    for index in (0, 7, 19):
        assert torch.equal(data.batch("train", [index], augment_seed=9)["pixel_values"][0], together[index])
    assert torch.equal(data.batch("train", range(20), augment_seed=9)["pixel_values"], together)
    assert not torch.equal(data.batch("train", range(20), augment_seed=10)["pixel_values"], together)


def test_a_batch_can_be_changed_without_changing_the_data(path: str) -> None:
    data = task(path, normalize=None).open()
    first = data.batch("test", [0])
    first["pixel_values"].zero_()
    first["labels"].fill_(3)
    again = data.batch("test", [0])
    assert again["pixel_values"].min() > 0
    assert again["labels"].item() == Y[0]


def test_batches_are_fast(tmp_path: Path) -> None:
    """The brief for the training loop: 128 images of 28 x 28, augmented, well under a millisecond."""
    x = RNG.integers(0, 256, (2000, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "big.npz", x_train=x, y_train=np.arange(2000) % 10, x_test=x[:10], y_test=np.arange(10))
    data = task(str(tmp_path / "big.npz"), augment={"crop": 2, "flip": True}).open()
    indices = RNG.permutation(1500)[:128].tolist()
    seconds = []
    for seed in range(40):
        start = time.perf_counter()
        data.batch("train", indices, augment_seed=seed)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1e-3


# -- loss and metrics


def test_loss_is_cross_entropy_in_full_precision() -> None:
    logits = torch.randn(6, 10, dtype=torch.bfloat16)
    labels = torch.arange(6)
    found = ImageClassification().loss(logits, {"labels": labels})
    expected = -logits.double().log_softmax(dim=1)[range(6), range(6)].mean()
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def naive_ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, equation 3, sample by sample."""
    total = 0.0
    for index in range(bins):
        low, high = index / bins, (index + 1) / bins
        inside = [i for i, p in enumerate(probabilities) if low < p.max() <= high]
        if inside:
            accuracy = np.mean([probabilities[i].argmax() == labels[i] for i in inside])
            total += len(inside) / len(labels) * abs(accuracy - np.mean([probabilities[i].max() for i in inside]))
    return total


def test_calibration_error_is_the_papers() -> None:
    logits = RNG.normal(scale=3, size=(500, 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = RNG.integers(0, 10, 500)
    assert calibration_error(probabilities, labels) == pytest.approx(naive_ece(probabilities, labels), abs=1e-12)


def test_calibration_error_by_hand() -> None:
    sure = np.array([[1.0, 0.0]] * 4)
    assert calibration_error(sure, np.zeros(4, int)) == 0
    assert calibration_error(sure, np.ones(4, int)) == 1
    assert calibration_error(sure, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
    # 0.6 is the upper edge of bin 9 of 15 and belongs to it; 0.61 lies in bin 10: |1 - 0.6| / 2 + |0 - 0.61| / 2.
    edge = np.array([[0.6, 0.4], [0.61, 0.39]])
    assert calibration_error(edge, np.array([0, 1])) == pytest.approx(0.4 / 2 + 0.61 / 2)


def test_metrics(path: str) -> None:
    predicted = np.array([0, 0, 1, 2, 2, 2, 0, 1])
    truth = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
    logits = torch.full((8, 4), -20.0)
    logits[range(8), predicted] = 20
    found = task(path).metrics(logits, truth)
    assert list(found) == ["accuracy", "expected_calibration_error", "per_class_accuracy"]
    assert found["accuracy"] == pytest.approx(5 / 8)
    assert found["expected_calibration_error"] == pytest.approx(3 / 8, abs=1e-6)
    assert found["per_class_accuracy"] == {"0": 1.0, "1": 0.5, "2": 0.5, "3": None}
    with pytest.raises(ModelError, match="answers for 5 labels and the data has 4"):
        task(path).metrics(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))


def test_half_precision_logits_are_measured(path: str) -> None:
    found = task(path).metrics(torch.randn(8, 4).bfloat16(), torch.arange(8) % 4)
    assert 0 <= found["expected_calibration_error"] <= 1


# -- the spec


def test_the_digest_knows_the_content_and_the_choices_but_not_the_place(path: str, tmp_path: Path) -> None:
    digest = task(path).digest()
    elsewhere = tmp_path / "elsewhere.npz"
    elsewhere.write_bytes(Path(path).read_bytes())
    assert task(str(elsewhere)).digest() == digest
    for change in ({"image_size": 9}, {"validation": 0.2}, {"augment": {"flip": True}}, {"normalize": None}):
        assert task(path, **change).digest() != digest
    np.savez(path, x_train=X, y_train=(Y + 1) % 4, x_test=X[:8], y_test=Y[:8])
    assert task(path).digest() != digest


def test_opening_again_is_free_until_the_file_changes(path: str) -> None:
    first = task(path).open()
    assert task(path).open() is first
    np.savez(path, x_train=X, y_train=(Y + 1) % 4, x_test=X[:8], y_test=Y[:8])
    again = task(path).open()
    assert again is not first
    assert again.batch("train", [0])["labels"].item() == (first.batch("train", [0])["labels"].item() + 1) % 4


def test_image_size_resizes(path: str) -> None:
    data = task(path, image_size=14).open()
    assert data.interface.image_shape == (1, 14, 14)
    assert data.batch("train", [0])["pixel_values"].shape == (1, 1, 14, 14)


def test_a_missing_file_is_a_data_error_with_the_path(tmp_path: Path) -> None:
    for access in (ImageClassification.digest, ImageClassification.open):
        with pytest.raises(DataError) as caught:
            access(task(str(tmp_path / "none.npz")))
        assert caught.value.where == str(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation": 0},
        {"validation": 0.6},
        {"image_size": 0},
        {"augment": {"crop": -1}},
        {"normalize": {"std": 0}},
        {"normalize": {"std": []}},
        {"normalize": {"mean": [float("nan")]}},
        {"data": "no_such_kind"},
    ],
    ids=str,
)
def test_wrong_choices_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImageClassification.model_validate({"kind": "image_classification", **wrong})
