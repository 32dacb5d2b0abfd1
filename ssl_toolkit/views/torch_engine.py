"""The ``torch`` engine: views made on the CPU, on every platform.

Every view is a function of (seed, epoch, image): a batch does not depend on the number of workers, and a stopped run
finds the same views again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_toolkit.errors import UserError
from ssl_toolkit.views import photometric as ops
from ssl_toolkit.views.batch import View, ViewBatch
from ssl_toolkit.views.geometry import Window, random_window
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


def resized_crop(image: Tensor, window: Window, size: int, interpolation: str) -> Tensor:
    """``window`` of ``image`` ``(C, H, W)`` uint8 at ``size`` pixels square, antialiased, in uint8 throughout."""
    top, left, height, width = window
    crop = image[None, :, top : top + height, left : left + width]
    return F.interpolate(crop, size=(size, size), mode=interpolation, antialias=True)[0]


def jitter(image: ops.Pixels, group: ViewGroup, rng: np.random.Generator) -> ops.Pixels:
    """Brightness, contrast, saturation and hue in random order; the last two need three channels."""
    strengths = (group.brightness, group.contrast, group.saturation)
    factors = [rng.uniform(max(0.0, 1 - s), 1 + s) for s in strengths]
    turns = rng.uniform(-group.hue, group.hue)
    coloured = image.shape[-1] == 3
    for step in rng.permutation(4):
        if step == 0 and group.brightness:
            image = ops.brightness(image, factors[0])
        elif step == 1 and group.contrast:
            image = ops.contrast(image, factors[1])
        elif step == 2 and group.saturation and coloured:
            image = ops.saturation(image, factors[2])
        elif step == 3 and group.hue and coloured:
            image = ops.hue(image, turns)
    return image


def photometric(image: ops.Pixels, group: ViewGroup, position: int, rng: np.random.Generator) -> ops.Pixels:
    """The group's chain in VICReg's order: jitter, gray, blur, solarize."""
    chance = rng.random(4)
    if chance[0] < group.jitter:
        image = jitter(image, group, rng)
    if chance[1] < group.gray and image.shape[-1] == 3:
        image = ops.grayscale(image)
    if chance[2] < group.at(group.blur, position):
        image = ops.gaussian_blur(image, rng.uniform(group.blur_sigma[0], group.blur_sigma[1]))
    if chance[3] < group.at(group.solarize, position):
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
            rng = np.random.default_rng((self.seed, epoch, index))
            for view in range(len(self.positions)):
                pixels[view][row], boxes[view, row], flips[view, row] = self._view(image, view, rng)
        views = tuple(
            View(torch.from_numpy(p).permute(0, 3, 1, 2), torch.from_numpy(b), torch.from_numpy(f))
            for p, b, f in zip(pixels, boxes, flips)
        )
        label = None if self.images.classes is None else torch.tensor([self.images.label(i) for _, i in keys])
        positions = torch.tensor([i for _, i in keys])
        return ViewBatch(views, self.config.num_large, torch.from_numpy(sizes), positions, label)

    def _view(
        self, image: ops.Pixels, view: int, rng: np.random.Generator
    ) -> tuple[ops.Pixels, tuple[float, float, float, float], bool]:
        group, position = self.positions[view]
        height, width = image.shape[:2]
        window = random_window(rng, height, width, group.scale, group.ratio)
        flip = bool(rng.random() < group.flip)
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        crop = resized_crop(tensor, window, group.size, group.interpolation).permute(1, 2, 0).numpy()
        crop = np.ascontiguousarray(crop[:, ::-1] if flip else crop)
        box = (window.left, window.top, window.left + window.width, window.top + window.height)
        return photometric(crop, group, position, rng), box, flip


def single_threaded(_: int = 0) -> None:
    """Worker start-up: one thread each, since the workers are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
