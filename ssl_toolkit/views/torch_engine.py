"""The ``torch`` engine: views made on the CPU, on every platform.

Every view is a function of (seed, epoch, image): a batch does not depend on the number of workers, and a stopped run
finds the same views again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.views import photometric as ops
from ssl_toolkit.views.batch import View, ViewBatch
from ssl_toolkit.views.geometry import DRAWS, Window, random_window
from ssl_toolkit.views.spec import ViewGroup, ViewsConfig


class Images(Protocol):
    """What the engine needs of a data set."""

    classes: tuple[str, ...] | None
    in_channels: int

    def __len__(self) -> int: ...

    def image(self, index: int) -> ops.Pixels:
        """Image ``index``, ``(H, W, C)`` uint8."""
        ...

    def label(self, index: int) -> int:
        """Class of image ``index``."""
        ...


_RESIZE = {
    # What F.interpolate calls for uint8 with antialias, without its 50 microseconds of argument checks.
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}


class Draws(NamedTuple):
    """The uniform numbers of one view, each with its use: a view takes the same ones whatever its chain does."""

    window: list[float]
    flip: float
    jitter: float
    gray: float
    blur: float
    solarize: float
    strengths: list[float]
    order: list[float]
    sigma: float

    @classmethod
    def split(cls, numbers: list[float]) -> Draws:
        """From `NUMBERS` uniform numbers."""
        flip, jitter, gray, blur, solarize, *rest = numbers[DRAWS:]
        return cls(numbers[:DRAWS], flip, jitter, gray, blur, solarize, rest[:4], rest[4:8], rest[8])


NUMBERS = DRAWS + 14


def random_numbers(seed: int, epoch: int, index: int, views: int) -> list[list[float]]:
    """`NUMBERS` uniform numbers for each view of an image; a counter-based generator needs no warm-up or state."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, index, epoch, 0]))
    numbers: list[list[float]] = generator.random((views, NUMBERS)).tolist()
    return numbers


def resized_crop(image: Tensor, window: Window, size: int, interpolation: str) -> Tensor:
    """``window`` of ``image`` ``(C, H, W)`` uint8 at ``size`` pixels square, antialiased, in uint8 throughout."""
    top, left, height, width = window
    crop = image[None, :, top : top + height, left : left + width]
    return _RESIZE[interpolation](crop, [size, size], False)[0]


def jitter(image: ops.Pixels, group: ViewGroup, draws: Draws) -> ops.Pixels:
    """Brightness, contrast, saturation and hue in random order; the last two need three channels."""
    coloured = image.shape[-1] == 3
    for step in sorted(range(4), key=draws.order.__getitem__):
        strength = (group.brightness, group.contrast, group.saturation, group.hue)[step]
        if not strength or (step >= 2 and not coloured):
            continue
        low = -strength if step == 3 else max(0.0, 1 - strength)
        high = strength if step == 3 else 1 + strength
        value = low + draws.strengths[step] * (high - low)
        image = (ops.brightness, ops.contrast, ops.saturation, ops.hue)[step](image, value)
    return image


def photometric(image: ops.Pixels, group: ViewGroup, position: int, draws: Draws) -> ops.Pixels:
    """The group's chain in VICReg's order: jitter, gray, blur, solarize."""
    if draws.jitter < group.jitter:
        image = jitter(image, group, draws)
    if draws.gray < group.gray and image.shape[-1] == 3:
        image = ops.grayscale(image)
    if draws.blur < group.at(group.blur, position):
        low, high = group.blur_sigma
        image = ops.gaussian_blur(image, low + draws.sigma * (high - low))
    if draws.solarize < group.at(group.solarize, position):
        image = ops.solarize(image)
    return image


class ViewDataset(torch.utils.data.Dataset[ViewBatch]):
    """Makes the views of a whole batch at once, for `torch.utils.data.DataLoader`.

    Args:
        images: the data set.
        config: the recipe.
        seed: of all randomness.
    """

    def __init__(self, images: Images, config: ViewsConfig, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed
        self.positions = [(group, i) for group in config.groups for i in range(group.count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> ViewBatch | UserError:
        """The batch of ``(epoch, index)`` keys. An unreadable image is returned as the error, so that it crosses from a
        worker process as it is."""
        try:
            return self._batch(keys)
        except UserError as error:
            return error

    def _batch(self, keys: Sequence[tuple[int, int]]) -> ViewBatch:
        count, channels = len(keys), self.images.in_channels
        pixels = [np.empty((count, group.size, group.size, channels), np.uint8) for group, _ in self.positions]
        boxes = np.empty((len(self.positions), count, 4), np.float32)
        flips = np.empty((len(self.positions), count), bool)
        sizes = np.empty((count, 2), np.float32)
        for row, (epoch, index) in enumerate(keys):
            image = self.images.image(index)
            sizes[row] = image.shape[:2]
            tensor = torch.from_numpy(image).permute(2, 0, 1)
            for view, numbers in enumerate(random_numbers(self.seed, epoch, index, len(self.positions))):
                draws = Draws.split(numbers)
                pixels[view][row], boxes[view, row], flips[view, row] = self._view(tensor, view, draws)
        views = tuple(
            View(torch.from_numpy(p).permute(0, 3, 1, 2), torch.from_numpy(b), torch.from_numpy(f))
            for p, b, f in zip(pixels, boxes, flips)
        )
        label = None if self.images.classes is None else torch.tensor([self.images.label(i) for _, i in keys])
        positions = torch.tensor([i for _, i in keys])
        return ViewBatch(views, self.config.num_large, torch.from_numpy(sizes), positions, label)

    def _view(
        self, image: Tensor, view: int, draws: Draws
    ) -> tuple[ops.Pixels, tuple[float, float, float, float], bool]:
        group, position = self.positions[view]
        window = random_window(draws.window, image.shape[1], image.shape[2], group.scale, group.ratio)
        flip = draws.flip < group.flip
        crop = resized_crop(image, window, group.size, group.interpolation).permute(1, 2, 0).numpy()
        crop = np.ascontiguousarray(crop[:, ::-1] if flip else crop)
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        return photometric(crop, group, position, draws), box, flip


def single_threaded(_: int = 0) -> None:
    """Worker start-up: one thread each, since the workers are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
