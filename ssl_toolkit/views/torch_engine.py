"""The ``torch`` engine: views made on the CPU, on every platform.

Every view is a function of (seed, epoch, image): a batch does not depend on the number of workers, and a stopped run
finds the same views again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from ssl_toolkit.views import photometric as ops
from ssl_toolkit.views.batch import View, ViewBatch
from ssl_toolkit.views.geometry import Window
from ssl_toolkit.views.reading import BatchDataset, read_or_replace, read_pixels
from ssl_toolkit.views.settings import Settings, random_numbers, settings_of

_RESIZE = {
    # What F.interpolate calls with antialias, without its 50 microseconds of argument checks.
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
_JITTER = (ops.brightness, ops.contrast, ops.saturation, ops.hue)


def resized_crop(image: Tensor, window: Window, interpolation: str, out: Tensor) -> None:
    """Write ``window`` of an image at the size of ``out``, antialiased, in its own type throughout.

    Args:
        image: ``(1, C, H, W)``.
        out: ``(1, C, S, S)``; pixels as they lie in `Pixels` (channels last) save two copies.
    """
    top, left, height, width = window
    crop = image[:, :, top : top + height, left : left + width]
    _RESIZE[interpolation](crop, list(out.shape[2:]), False, None, None, out=out)
    if out.dtype.is_floating_point:
        out.clamp_(0, 255)


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


class ViewDataset(BatchDataset[ViewBatch]):
    """Makes the views of a whole batch."""

    def batch(self, keys: Sequence[tuple[int, int]]) -> ViewBatch:
        """The views of ``(epoch, index)`` keys."""
        count = len(keys)
        pixels: list[Tensor] = []
        boxes = np.empty((len(self.positions), count, 4), np.float32)
        flips = np.empty((len(self.positions), count), bool)
        sizes = np.empty((count, 2), np.float32)
        indices: list[int] = []
        unreadable: list[str] = []
        for row, key in enumerate(keys):
            image, index = read_or_replace(self._image, key, self.seed, len(self.images), unreadable)
            tensor = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
            pixels = pixels or [self._empty(count, group.size, tensor) for group, _ in self.positions]
            indices.append(index)
            sizes[row] = image.shape[:2]
            for view, settings in enumerate(self._settings(key, image)):
                self._view(tensor, view, settings, pixels[view][row : row + 1])
                boxes[view, row], flips[view, row] = settings.box(), settings.flip
        views = tuple(View(p, torch.from_numpy(b), torch.from_numpy(f)) for p, b, f in zip(pixels, boxes, flips))
        label = None if self.images.classes is None else torch.tensor([self.images.label(i) for i in indices])
        return ViewBatch(
            views,
            self.config.num_large,
            torch.from_numpy(sizes),
            torch.tensor(indices),
            label,
            tuple(unreadable),
        )

    def _image(self, index: int) -> ops.Pixels:
        return read_pixels(self.images, index, "uint8", "float32")

    @staticmethod
    def _empty(count: int, size: int, image: Tensor) -> Tensor:
        return torch.empty((count, size, size, image.shape[1]), dtype=image.dtype).permute(0, 3, 1, 2)

    def _settings(self, key: tuple[int, int], image: ops.Pixels) -> Iterator[Settings]:
        height, width, channels = image.shape
        numbers = random_numbers(self.seed, *key, len(self.positions))
        for drawn, (group, position) in zip(numbers, self.positions):
            yield settings_of(drawn, group, position, height, width, channels == 3)

    def _view(self, image: Tensor, view: int, settings: Settings, out: Tensor) -> None:
        resized_crop(image, settings.window, self.positions[view][0].interpolation, out)
        pixels = out[0].permute(1, 2, 0).numpy()
        flipped = ops.mirror(pixels) if settings.flip else pixels
        done = photometric(flipped, settings)
        if done is not pixels:
            pixels[:] = done


def single_threaded(_: int = 0) -> None:
    """Worker start-up: one thread each, since the workers are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
