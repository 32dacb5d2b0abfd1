"""Images with boxes to train detectors on, augmented anew each pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import Image, ImageDataset, Objects
from ssl_toolkit.evaluation.detection.objects import (
    cropped,
    flipped_boxes,
    read_instance_masks,
    read_objects,
    resized,
    resized_masks,
    scaled_boxes,
)
from ssl_toolkit.evaluation.live import Key, Samples


class Example(NamedTuple):
    """``pixels`` ``(C, H, W)``, values 0 to 255, uint8 or float32, and the objects in them.

    ``masks`` ``(n, H, W)`` uint8 are those of the objects, where they are trained on.
    """

    pixels: Tensor
    objects: Objects
    masks: Tensor | None = None


@dataclass(frozen=True)
class AugmentedImages(Samples[list[Example]]):
    """Images of a split, flipped with probability one half.

    Attributes:
        rows: which images are trained on; a key's image is a position among them.
        flip: whether images are flipped.
        seed: of what is random.
    """

    dataset: ImageDataset
    rows: Sequence[int]
    flip: bool
    seed: int

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, keys: Sequence[Key]) -> list[Example]:
        return [self.example(key) for key in keys]

    def example(self, key: Key) -> Example:
        """The augmented image of ``key``."""
        rng = np.random.default_rng((self.seed, *key))
        index = self.rows[key[1]]
        image = self.dataset.image(index)
        pixels, objects = self.geometry(image, read_objects(self.dataset, index, image), rng)
        masks = self.masks_in(index, image, pixels)
        if self.flip and rng.random() < 0.5:
            pixels = pixels.flip(2)
            objects = objects._replace(boxes=flipped_boxes(objects.boxes, pixels.shape[2]))
            masks = None if masks is None else masks.flip(2)
        return Example(pixels, objects, masks)

    def masks_in(self, index: int, image: Image, pixels: Tensor) -> Tensor | None:
        """The masks of the objects that ``geometry`` kept, in ``pixels`` that it made of ``image``."""
        return None

    @abstractmethod
    def geometry(self, image: Image, objects: Objects, rng: np.random.Generator) -> tuple[Tensor, Objects]:
        """Scale, and perhaps crop, an image with its objects."""


@dataclass(frozen=True)
class SquareCrops(AugmentedImages):
    """Random squares of randomly scaled images; where an image is smaller, the rest has the mean colour.

    Attributes:
        size: side of the square in pixels.
        scales: the shorter side before the crop is ``size`` times a number between these two.
        mean: of each channel, in [0, 1] units.
    """

    size: int
    scales: tuple[float, float]
    mean: Sequence[float]

    def geometry(self, image: Image, objects: Objects, rng: np.random.Generator) -> tuple[Tensor, Objects]:
        pixels, scale = resized(image, self.size * rng.uniform(*self.scales))
        objects = objects._replace(boxes=scaled_boxes(objects.boxes, scale))
        height, width = pixels.shape[1:]
        left, top = (int(rng.integers(max(side - self.size, 0) + 1)) for side in (width, height))
        cut = pixels[:, top : top + self.size, left : left + self.size]
        square = _filled(self.mean, self.size, pixels.dtype)
        square[:, : cut.shape[1], : cut.shape[2]] = cut
        return square, cropped(objects, left, top, self.size)


def _filled(colour: Sequence[float], size: int, dtype: torch.dtype) -> Tensor:
    values = torch.tensor(list(colour)) * 255
    values = values.round() if dtype == torch.uint8 else values
    return values.to(dtype)[:, None, None].repeat(1, size, size)


@dataclass(frozen=True)
class RandomShortSide(AugmentedImages):
    """Whole images whose shorter side is one of ``sides``, the longer at most ``longest`` pixels.

    Attributes:
        train_ignored: whether objects to be ignored (difficult ones) are trained on like others, or left out.
        masks: whether the masks of objects come along.
    """

    sides: Sequence[int]
    longest: int
    train_ignored: bool
    masks: bool = False

    def geometry(self, image: Image, objects: Objects, rng: np.random.Generator) -> tuple[Tensor, Objects]:
        pixels, scale = resized(image, self.sides[int(rng.integers(len(self.sides)))], self.longest)
        kept = self._kept(objects)
        boxes = scaled_boxes(objects.boxes[kept], scale)
        return pixels, Objects(boxes, objects.labels[kept], objects.ignore[kept])

    def masks_in(self, index: int, image: Image, pixels: Tensor) -> Tensor | None:
        if not self.masks:
            return None
        masks = read_instance_masks(self.dataset, index, image.shape[:2])
        return resized_masks(masks[self._kept(self.dataset.objects(index))], (pixels.shape[1], pixels.shape[2]))

    def _kept(self, objects: Objects) -> NDArray[np.bool_]:
        return np.ones(len(objects.labels), bool) if self.train_ignored else ~objects.ignore
