"""The ``torch`` engine: views made on the CPU, on every platform.

Every view is a function of (seed, epoch, image): a batch does not depend on the number of workers, and a stopped run
finds the same views again.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.views import photometric as ops
from ssl_toolkit.views.batch import View, ViewBatch
from ssl_toolkit.views.geometry import Window
from ssl_toolkit.views.reading import Images, read_or_replace
from ssl_toolkit.views.settings import Settings, random_numbers, settings_of
from ssl_toolkit.views.spec import ViewsConfig

_RESIZE = {
    # What F.interpolate calls with antialias, without its 50 microseconds of argument checks.
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}
_JITTER = (ops.brightness, ops.contrast, ops.saturation, ops.hue)


def resized_crop(image: Tensor, window: Window, size: int, interpolation: str) -> Tensor:
    """``window`` of ``image`` ``(C, H, W)`` at ``size`` pixels square, antialiased, in its own type throughout."""
    top, left, height, width = window
    crop = image[None, :, top : top + height, left : left + width]
    resized: Tensor = _RESIZE[interpolation](crop, [size, size], False)[0]
    return resized if resized.dtype == torch.uint8 else resized.clamp_(0, 255)


def photometric(image: ops.Pixels, settings: Settings) -> ops.Pixels:
    """The chain in VICReg's order: jitter, gray, blur, solarize."""
    for operation, value in settings.jitter:
        image = _JITTER[operation](image, value)
    if settings.gray:
        image = ops.grayscale(image)
    if settings.sigma:
        image = ops.gaussian_blur(image, settings.sigma)
    if settings.solarize:
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
        self.positions = config.positions()

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> ViewBatch | UserError:
        """The batch of ``(epoch, index)`` keys; an error is returned, so that it leaves a worker process as it is."""
        try:
            return self._batch(keys)
        except UserError as error:
            return error

    def _batch(self, keys: Sequence[tuple[int, int]]) -> ViewBatch:
        count = len(keys)
        pixels: list[ops.Pixels] = []
        boxes = np.empty((len(self.positions), count, 4), np.float32)
        flips = np.empty((len(self.positions), count), bool)
        sizes = np.empty((count, 2), np.float32)
        indices, unreadable = [], []  # type: ignore[var-annotated]
        for row, key in enumerate(keys):
            image, index = read_or_replace(self.images.image, key, self.seed, len(self.images), unreadable)
            pixels = pixels or [self._empty(count, group.size, image) for group, _ in self.positions]
            indices.append(index)
            sizes[row] = height, width = image.shape[:2]
            tensor = torch.from_numpy(image).permute(2, 0, 1)
            colour = image.shape[2] == 3
            numbers = random_numbers(self.seed, *key, len(self.positions))
            for view, (group, position) in enumerate(self.positions):
                settings = settings_of(numbers[view], group, position, height, width, colour)
                crop = resized_crop(tensor, settings.window, group.size, group.interpolation).permute(1, 2, 0).numpy()
                crop = np.ascontiguousarray(crop[:, ::-1] if settings.flip else crop)
                pixels[view][row] = photometric(crop, settings)
                boxes[view, row], flips[view, row] = settings.box(), settings.flip
        views = tuple(
            View(torch.from_numpy(p).permute(0, 3, 1, 2), torch.from_numpy(b), torch.from_numpy(f))
            for p, b, f in zip(pixels, boxes, flips)
        )
        label = None if self.images.classes is None else torch.tensor([self.images.label(i) for i in indices])
        return ViewBatch(
            views,
            self.config.num_large,
            torch.from_numpy(sizes),
            torch.tensor(indices),
            label,
            tuple(unreadable),
        )

    def _empty(self, count: int, size: int, image: ops.Pixels) -> ops.Pixels:
        return np.empty((count, size, size, image.shape[2]), image.dtype)


def single_threaded(_: int = 0) -> None:
    """Worker start-up: one thread each, since the workers are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
