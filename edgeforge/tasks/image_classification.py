"""Image classification: one label per image."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from edgeforge.core.errors import DataError
from edgeforge.core.kinds import OneOf
from edgeforge.core.spec import Spec, digest_of
from edgeforge.core.task import NO_LABEL, Batch, Input, Interface, Pixels, Places, Samples, Split
from edgeforge.data import DataSource, LabelledImages, _probe
from edgeforge.data.sklearn_digits import SklearnDigits
from edgeforge.tasks._classification import (
    Classification,
    calibration_error,
    check_label_count,
    per_class_accuracy,
    stratified_split,
)

if TYPE_CHECKING:
    import torch

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


class ImageClassification(Classification):
    """Images to one of several labels. Metrics: accuracy, expected calibration error, accuracy per class."""

    kind: Literal["image_classification"] = "image_classification"
    data: Annotated[DataSource, OneOf("edgeforge.data")] = Field(
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
    reads: ClassVar[Literal["images", "texts"]] = "images"
    uses: ClassVar[tuple[str, ...]] = ("edgeforge.tasks._classification",)

    def digest(self) -> str:
        self.data.check_holds("images")
        choices = self.model_dump(mode="json", exclude={"data"})
        return digest_of({"task": choices, "data": {"kind": self.data.kind, "content": self.data.digest()}})

    def augments(self) -> bool:
        return self.augment != Augment()

    def open(self, model: Path | None = None) -> ImageData:
        return _open(self, self.data.digest())

    def tested(self) -> Samples:
        images = self.open().parts["test"].images
        return Samples(len(images), self.data.column, images=images)

    def open_probe(self, path: str, model: Path | None = None) -> ImageData:
        data = self.open(model)
        channels, height, width = data.interface.image_shape
        images = _probe.images(path, (height, width, channels))
        part = LabelledImages(images, np.full(len(images), NO_LABEL, dtype=np.int64))
        return ImageData(data.interface, {"test": part}, {"test": np.arange(len(images))}, data.augment)

    def metrics(self, logits: torch.Tensor, labels: torch.Tensor) -> Mapping[str, Any]:
        """`accuracy`, `expected_calibration_error` (15 equal bins; Guo et al. 2017), `per_class_accuracy` by label.

        logits: shape (N, labels); labels: int64, shape (N,). A class without samples has accuracy None.
        """
        from sklearn.metrics import accuracy_score

        names = self.open().interface.labels
        check_label_count(logits, names)
        truth = labels.cpu().numpy()
        predicted = logits.argmax(dim=-1).cpu().numpy()
        return {
            "accuracy": float(accuracy_score(truth, predicted)),
            "expected_calibration_error": calibration_error(logits.double().softmax(dim=-1).cpu().numpy(), truth),
            "per_class_accuracy": per_class_accuracy(truth, predicted, names),
        }


@dataclass
class ImageData:
    """Opened images. `rows` maps each split to positions in the part of the data it is cut from."""

    interface: Interface
    parts: Mapping[Split, LabelledImages]
    rows: Mapping[Split, np.ndarray]
    augment: Augment

    def size(self, split: Split) -> int:
        return len(self.rows[split])

    def places(self, split: Split) -> Places:
        """See Placed."""
        rows, labels = self.rows[split], self.parts[split].labels
        return Places(rows, labels[rows], len(labels))

    def for_model(self, folder: Path) -> Callable[[Batch], Batch]:
        """See TaskData. Every model of a task takes the same images."""
        return lambda batch: batch

    def write_reader(self, folder: Path) -> None:
        """See TaskData. Images need nothing: every exporter writes how pixels are scaled."""

    def batch(self, split: Split, indices: Sequence[int], *, augment_seed: int | None = None) -> Batch:
        """``pixel_values``: float32, (N, C, H, W), normalised; ``labels`` and ``rows``: int64, (N,).

        Only training images are augmented, each by `augment_seed` and its own index, whatever else is in the batch.
        """
        import torch

        part = self.parts[split]
        rows = self.rows[split][np.asarray(indices, dtype=np.int64)]
        images = part.images[rows.tolist()]
        if split in ("train", "transfer") and augment_seed is not None:
            images = augmented(images, rows, augment=self.augment, seed=augment_seed)
        scale, shift = self._affine
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return {
            "pixel_values": pixels.mul_(scale).add_(shift),
            "labels": torch.from_numpy(part.labels[rows]),
            "rows": torch.tensor(indices, dtype=torch.int64),
        }

    @functools.cached_property
    def _affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 value * scale + shift = (value / 255 - mean) / std; both float32, shape (C, 1, 1)."""
        import torch

        pixels = self.interface.pixels
        assert pixels is not None
        mean, std = np.asarray(pixels.mean), np.asarray(pixels.std)
        scale = torch.tensor(1 / (255 * std), dtype=torch.float32)
        shift = torch.tensor(-mean / std, dtype=torch.float32)
        return scale[:, None, None], shift[:, None, None]


@functools.lru_cache(maxsize=OPENED_AT_ONCE)
def _open(task: ImageClassification, data_digest: str) -> ImageData:
    # The digest is in the cache's key, so data that changed on disk is read again.
    parts = task.data.images(task.image_size)
    height, width, channels = parts.image_shape
    mean, std = _per_channel(task.normalize, channels)
    train, validation = stratified_split(parts.train.labels, task.validation)
    interface = Interface(
        inputs=(Input("pixel_values", (channels, height, width)),),
        output_name="logits",
        labels=parts.label_names,
        pixels=Pixels(mean, std),
    )
    return ImageData(
        interface,
        parts={"train": parts.train, "validation": parts.train, "test": parts.test, "transfer": parts.train},
        rows={"train": train, "validation": validation, "test": np.arange(len(parts.test.labels)), "transfer": train},
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
