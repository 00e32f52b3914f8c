"""Image classification: one label per image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from edgeforge.core.errors import DataError, ModelError
from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import Spec, digest_of
from edgeforge.core.task import Batch, Interface, Split, Task
from edgeforge.data import ImageSource, LabelledImages
from edgeforge.data.sklearn_digits import SklearnDigits

if TYPE_CHECKING:
    import torch

SPLIT_SEED = 0
ECE_BINS = 15
OPENED_AT_ONCE = 4


class Augment(Spec):
    """Random changes of training images; validation and test images are never changed."""

    crop: int = Field(
        default=0, ge=0, description="Black pixels added on every side before cropping back at a random place."
    )
    flip: bool = Field(default=False, description="Mirror every second image, at random, left to right.")


_OneForAll = BeforeValidator(
    lambda value: (value,) if isinstance(value, int | float) else value,
    json_schema_input_type=float | tuple[float, ...],
)


class Normalize(Spec):
    """(value - mean) / std, for values scaled to [0, 1]. One number serves all channels."""

    mean: Annotated[tuple[float, ...], _OneForAll] = Field(
        default=(0.5,), min_length=1, description="Per channel, or one for all."
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], _OneForAll] = Field(
        default=(0.5,), min_length=1, description="Per channel, or one for all."
    )


class ImageClassification(Task):
    """Images to one of several labels. Metrics: accuracy, expected calibration error, accuracy per class."""

    kind: Literal["image_classification"] = "image_classification"
    data: Annotated[ImageSource, OneOf("edgeforge.data")] = Field(
        default=SklearnDigits(), description="Where the images come from."
    )
    image_size: int | None = Field(
        default=None, gt=0, description="Resize images to squares of this many pixels; absent: the data's own size."
    )
    validation: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of the training part kept apart for choices made on the way."
    )
    augment: Augment = Field(default=Augment(), description="Random changes of training images.")
    normalize: Normalize | None = Field(default=Normalize(), description="Null: models see values in [0, 1].")

    auto_class: ClassVar[str] = "AutoModelForImageClassification"

    def digest(self) -> str:
        choices = self.model_dump(mode="json", exclude={"data"})
        return digest_of({"task": choices, "data": {"kind": self.data.kind, "content": self.data.digest()}})

    def open(self) -> ImageData:
        return _open(self, self.data.digest())

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        from torch.nn import functional

        return functional.cross_entropy(logits.float(), batch["labels"])

    def metrics(self, logits: torch.Tensor, labels: torch.Tensor) -> Mapping[str, Any]:
        """`accuracy`, `expected_calibration_error` (15 equal bins; Guo et al. 2017), `per_class_accuracy` by label.

        logits: shape (N, labels); labels: int64, shape (N,). A class without samples has accuracy None.
        """
        from sklearn.metrics import accuracy_score, confusion_matrix

        names = self.open().interface.labels
        if logits.shape[-1] != len(names):
            raise ModelError(
                f"the model answers for {logits.shape[-1]} labels and the data has {len(names)}",
                remedy="use a model with as many labels as the data, or build one with {kind: config}",
            )
        truth = labels.cpu().numpy()
        predicted = logits.argmax(dim=-1).cpu().numpy()
        matrix = confusion_matrix(truth, predicted, labels=np.arange(len(names)))
        return {
            "accuracy": float(accuracy_score(truth, predicted)),
            "expected_calibration_error": calibration_error(logits.double().softmax(dim=-1).cpu().numpy(), truth),
            "per_class_accuracy": {
                name: float(row[index] / row.sum()) if row.sum() else None
                for index, (name, row) in enumerate(zip(names, matrix, strict=True))
            },
        }


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: sum over bins of share * |accuracy - mean confidence|.

    Guo et al., 2017, "On Calibration of Modern Neural Networks": 15 equal-width bins (low, high] of the confidence.
    probabilities: shape (N, labels); labels: shape (N,).
    """
    confidence = probabilities.max(axis=-1)
    correct = probabilities.argmax(axis=-1) == labels
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gaps).sum() / len(labels))


@dataclass
class ImageData:
    """Opened images. `rows` maps each split to positions in the part of the data it is cut from."""

    interface: Interface
    parts: Mapping[Split, LabelledImages]
    rows: Mapping[Split, np.ndarray]
    augment: Augment

    def size(self, split: Split) -> int:
        return len(self.rows[split])

    def batch(self, split: Split, indices: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """``pixel_values``: float32, (N, C, H, W), normalised; ``labels``: int64, (N,).

        Only training images are augmented, each by `augment_seed` and its own index, whatever else is in the batch.
        """
        import torch

        part = self.parts[split]
        rows = self.rows[split][np.asarray(indices, dtype=np.int64)]
        images = part.images[rows.tolist()]
        if split == "train" and augment_seed is not None:
            images = augmented(images, rows, augment=self.augment, seed=augment_seed)
        scale, shift = self._affine
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return {
            "pixel_values": pixels.mul_(scale).add_(shift),
            "labels": torch.from_numpy(part.labels[rows]),
        }

    @functools.cached_property
    def _affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 value * scale + shift = (value / 255 - mean) / std; both float32, shape (C, 1, 1)."""
        import torch

        mean, std = np.asarray(self.interface.mean), np.asarray(self.interface.std)
        scale = torch.tensor(1 / (255 * std), dtype=torch.float32)
        shift = torch.tensor(-mean / std, dtype=torch.float32)
        return scale[:, None, None], shift[:, None, None]


@functools.lru_cache(maxsize=OPENED_AT_ONCE)
def _open(task: ImageClassification, data_digest: str) -> ImageData:
    # The digest is in the cache's key, so data that changed on disk is read again.
    parts = task.data.read(task.image_size)
    height, width, channels = parts.image_shape
    mean, std = _per_channel(task.normalize, channels)
    train, validation = stratified_split(parts.train.labels, task.validation)
    interface = Interface(
        input_name="pixel_values",
        input_shape=(channels, height, width),
        output_name="logits",
        labels=parts.label_names,
        mean=mean,
        std=std,
    )
    return ImageData(
        interface,
        parts={"train": parts.train, "validation": parts.train, "test": parts.test},
        rows={"train": train, "validation": validation, "test": np.arange(len(parts.test.labels))},
        augment=task.augment,
    )


def _per_channel(normalize: Normalize | None, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if normalize is None:
        return (0.0,) * channels, (1.0,) * channels
    for name, values in (("mean", normalize.mean), ("std", normalize.std)):
        if len(values) not in (1, channels):
            raise DataError(
                f"{name} has {len(values)} values but the images have {channels} channels",
                where="task.normalize",
                remedy="give one number per channel, or one for all",
            )
    repeat = {len(values): channels // len(values) for values in (normalize.mean, normalize.std)}
    return normalize.mean * repeat[len(normalize.mean)], normalize.std * repeat[len(normalize.std)]


def stratified_split(labels: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the kept and of the held-out samples; every class gives the same share, always the same ones.

    A class with a single sample keeps it for training.
    """
    # RandomState's streams are frozen by NumPy's policy, Generator's are not: the split must outlive an upgrade.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    rank = np.empty(len(labels))
    rank[by_class] = (np.arange(len(labels)) - starts + 0.5) / np.repeat(counts, counts)
    order = shuffled[np.argsort(rank[shuffled], kind="stable")]
    held = max(1, round(share * len(labels)))
    return np.sort(order[held:]), np.sort(order[:held])


def augmented(images: np.ndarray, rows: np.ndarray, *, augment: Augment, seed: int) -> np.ndarray:
    """Randomly shifted and mirrored copies of images, uint8 (N, H, W, C); each one's chance hangs on its row, (N,)."""
    bits = _random_bits(rows, seed)
    if augment.crop:
        count, height, width, channels = images.shape
        crop, places = augment.crop, 2 * augment.crop + 1
        padded = np.zeros((count, height + 2 * crop, width + 2 * crop, channels), dtype=np.uint8)
        padded[:, crop : crop + height, crop : crop + width] = images
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))  # type: ignore[call-overload]  # stub: one axis
        top, left = (bits >> 1) % places, (bits >> 32) % places
        images = windows[np.arange(count), top, left].transpose(0, 2, 3, 1)
    if augment.flip:
        mirrored = (bits & 1).astype(bool)
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    return images


def _random_bits(rows: np.ndarray, seed: int) -> np.ndarray:
    """62 random bits per row, int64: splitmix64 (Steele, Lea and Flood, 2014) of the seed and the row."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
    with np.errstate(over="ignore"):
        bits = (rows.astype(np.uint64) ^ start) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
        return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(2)).astype(np.int64)
