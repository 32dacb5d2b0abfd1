"""Random crops of images and their masks, with the steps and strengths of mmsegmentation's default pipelines: resize at
a random scale, crop, flip, photometric distortion, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import VOID, Image, ImageDataset
from ssl_toolkit.evaluation.live import Key, Samples
from ssl_toolkit.evaluation.reading import checked_mask
from ssl_toolkit.views.photometric import mirror

Mask = NDArray[np.uint8]

CROP_TRIES = 10
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 36
"""Of `distort`: added to pixels at most, factors of pixels, factors of saturation, degrees of hue at most."""


@dataclass(frozen=True)
class CropSpec:
    """What a random crop is.

    Attributes:
        resize: the longer and the shorter side in pixels of the box that images are fitted into before ``scale``.
        scale: the range of the factor of that box, drawn uniformly.
        crop: height and width of the crop in pixels.
        cat_max_ratio: share of the scored pixels of a crop that one class may have; after 10 tries any is taken.
        flip: whether half of the crops are mirrored.
        photometric: whether to `distort`.
        fill: by channel, the value of pixels outside the image; outside it the mask is void.
    """

    resize: tuple[int, int]
    scale: tuple[float, float]
    crop: tuple[int, int]
    cat_max_ratio: float
    flip: bool
    photometric: bool
    fill: tuple[float, ...]


def fitted(height: int, width: int, resize: Sequence[float]) -> tuple[int, int]:
    """``(height, width)`` of an image made as large as fits the box ``resize`` (longer side, shorter side), either way
    up, its ratio kept."""
    factor = min(resize[0] / max(height, width), resize[1] / min(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_image(image: Image, height: int, width: int) -> Image:
    """Bilinear, without antialiasing."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, image.shape[2])


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """The nearest pixel, centres on the grid of `resize_image`."""
    if mask.shape == (height, width):
        return mask
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[return-value]


def crop_corner(mask: Mask, spec: CropSpec, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a crop, drawn uniformly; again where one class fills more than ``cat_max_ratio`` of it."""
    (height, width), (crop_height, crop_width) = mask.shape, spec.crop
    top = left = 0
    for _ in range(CROP_TRIES):
        top = int(rng.integers(max(height - crop_height, 0) + 1))
        left = int(rng.integers(max(width - crop_width, 0) + 1))
        if spec.cat_max_ratio >= 1:
            break
        part = mask[top : top + crop_height, left : left + crop_width]
        counts = np.bincount(part.ravel(), minlength=VOID + 1)[:VOID]
        if 0 < counts.max() < spec.cat_max_ratio * counts.sum():
            break
    return top, left


def pad(image: Image, mask: Mask, spec: CropSpec) -> tuple[Image, Mask]:
    """Both at ``spec.crop``: ``fill`` and void at the right and the bottom."""
    height, width = mask.shape
    if (height, width) == spec.crop:
        return image, mask
    fill = np.asarray(spec.fill)
    full = np.empty((*spec.crop, image.shape[2]), dtype=image.dtype)
    full[:] = np.rint(fill) if image.dtype == np.uint8 else fill
    void = np.full(spec.crop, VOID, dtype=np.uint8)
    full[:height, :width], void[:height, :width] = image, mask
    return full, void


def random_crop(image: Image, mask: Mask, spec: CropSpec, rng: np.random.Generator) -> tuple[Image, Mask]:
    """``(H, W, C)`` and ``(H, W)`` to a crop of both, the same pixels of the scene in the same places."""
    scale = rng.uniform(*spec.scale)
    height, width = fitted(mask.shape[0], mask.shape[1], [side * scale for side in spec.resize])
    image, mask = resize_image(image, height, width), resize_mask(mask, height, width)
    top, left = crop_corner(mask, spec, rng)
    rows, columns = slice(top, top + spec.crop[0]), slice(left, left + spec.crop[1])
    image, mask = np.ascontiguousarray(image[rows, columns]), np.ascontiguousarray(mask[rows, columns])
    if spec.flip and rng.random() < 0.5:
        image, mask = mirror(image), np.ascontiguousarray(mask[:, ::-1])
    if spec.photometric:
        image = distort(image, rng)
    return pad(image, mask, spec)


def distort(image: Image, rng: np.random.Generator) -> Image:
    """Photometric distortion (SSD, Liu et al. 2016, as in mmsegmentation): each with probability 0.5, brightness
    (-32 to 32 added), contrast (times 0.5 to 1.5, before or after the next two), saturation of HSV (times 0.5 to 1.5)
    and its hue (-36 to 36 degrees added). Values stay in 0 to 255; of images that are not RGB only the first two."""
    if rng.random() < 0.5:
        image = _linear(image, 1.0, rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast = rng.uniform(*CONTRAST) if rng.random() < 0.5 else 1.0
    first = rng.random() < 0.5
    if first:
        image = _linear(image, contrast, 0.0)
    if image.shape[2] == 3:
        saturation = rng.uniform(*SATURATION) if rng.random() < 0.5 else 1.0
        hue = rng.uniform(-HUE, HUE) if rng.random() < 0.5 else 0.0
        image = _hsv(image, saturation, hue)
    return image if first else _linear(image, contrast, 0.0)


def _linear(image: Image, factor: float, offset: float) -> Image:
    if factor == 1 and offset == 0:
        return image
    values = np.arange(256, dtype=np.float32) if image.dtype == np.uint8 else image
    changed = np.clip(values * np.float32(factor) + np.float32(offset), 0, 255).astype(image.dtype)
    if image.dtype != np.uint8:
        return changed
    return cv2.LUT(image.reshape(len(image), -1), changed).reshape(image.shape)


def _hsv(image: Image, saturation: float, degrees: float) -> Image:
    if saturation == 1 and degrees == 0:
        return image
    if image.dtype != np.uint8:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # degrees, 0 to 1, 0 to 255
        hsv[..., 0] = (hsv[..., 0] + np.float32(degrees)) % np.float32(360)
        hsv[..., 1] = np.minimum(hsv[..., 1] * np.float32(saturation), 1)
        return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 255)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in 180 steps of 2 degrees
    tables = np.arange(256)[:, None].repeat(3, 1)
    tables[:180, 0] = (tables[:180, 0] + round(degrees / 2)) % 180
    tables[:, 1] = np.minimum(tables[:, 1] * saturation, 255)
    return cv2.cvtColor(cv2.LUT(hsv, tables.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB)


def read_masked(dataset: ImageDataset, index: int) -> tuple[Image, Mask]:
    """Image ``index`` and its mask.

    Raises:
        UserError: a mask of another size than its image, or with values that are neither a class nor void.
    """
    image = dataset.image(index)
    return image, checked_mask(dataset, index, image.shape[:2])


class CropBatch(NamedTuple):
    """Crops of B images.

    Attributes:
        images: ``(B, C, h, w)``, values 0 to 255.
        masks: ``(B, h, w)`` uint8.
        seeds: ``(B,)`` int64, for what else is random about each.
    """

    images: Tensor
    masks: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class MaskedCrops(Samples[CropBatch]):
    """Random crops of the images of ``dataset`` and their masks."""

    dataset: ImageDataset
    spec: CropSpec
    seed: int

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, keys: Sequence[Key]) -> CropBatch:
        parts = [self._crop(key) for key in keys]
        images, masks, seeds = (list(part) for part in zip(*parts))
        pixels: NDArray[Any] = np.stack(images).transpose(0, 3, 1, 2)
        return CropBatch(
            torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(np.stack(masks)), torch.tensor(seeds)
        )

    def _crop(self, key: Key) -> tuple[Image, Mask, int]:
        rng = np.random.default_rng((self.seed, *key))
        image, mask = random_crop(*read_masked(self.dataset, key[1]), self.spec, rng)
        return image, mask, int(rng.integers(2**62))
