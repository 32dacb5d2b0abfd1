"""Random crop windows, drawn as torchvision's RandomResizedCrop draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 2
"""Uniform numbers that a window takes."""


class Window(NamedTuple):
    """A crop in whole pixels: ``top``, ``left``, ``height``, ``width``."""

    top: int
    left: int
    height: int
    width: int


def random_window(
    uniform: Sequence[float], height: int, width: int, scale: Sequence[float], ratio: Sequence[float]
) -> Window:
    """A window of a random share of the area and a random aspect ratio (log-uniform).

    After `ATTEMPTS` draws that do not fit, the largest central window within ``ratio`` is taken. The same distribution
    as ``torchvision.transforms.RandomResizedCrop``. Plain numbers: for two or three of them, arrays cost more.

    Args:
        uniform: independent numbers in [0, 1), of which the first `DRAWS` are used.
        height, width: of the image in pixels.
        scale, ratio: ranges of the share of the area and of width / height.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        area = height * width * (scale[0] + uniform[2 * attempt] * (scale[1] - scale[0]))
        aspect = math.exp(low + uniform[2 * attempt + 1] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Window(
                int(uniform[2 * ATTEMPTS] * (height - h + 1)), int(uniform[2 * ATTEMPTS + 1] * (width - w + 1)), h, w
            )
    if width < ratio[0] * height:
        w, h = width, max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w, h = max(1, round(height * ratio[1])), height
    else:
        w, h = width, height
    return Window((height - h) // 2, (width - w) // 2, h, w)
