"""Random crop windows, drawn as torchvision's RandomResizedCrop draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ATTEMPTS = 10


class Window(NamedTuple):
    """A crop in whole pixels: ``top``, ``left``, ``height``, ``width``."""

    top: int
    left: int
    height: int
    width: int


def random_window(
    rng: np.random.Generator, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> Window:
    """A window of a random share of the area and a random aspect ratio (log-uniform).

    After `ATTEMPTS` draws that do not fit, the largest central window within ``ratio`` is taken. The same distribution
    as ``torchvision.transforms.RandomResizedCrop``; all draws are made at once.
    """
    areas = height * width * rng.uniform(scale[0], scale[1], ATTEMPTS)
    aspects = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), ATTEMPTS))
    widths = np.rint(np.sqrt(areas * aspects)).astype(int)
    heights = np.rint(np.sqrt(areas / aspects)).astype(int)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    where = rng.random(2)
    if fits.any():
        first = int(fits.argmax())
        h, w = int(heights[first]), int(widths[first])
        return Window(int(where[0] * (height - h + 1)), int(where[1] * (width - w + 1)), h, w)
    if width < ratio[0] * height:
        w, h = width, min(height, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w, h = min(width, round(height * ratio[1])), height
    else:
        w, h = width, height
    return Window((height - h) // 2, (width - w) // 2, h, w)
