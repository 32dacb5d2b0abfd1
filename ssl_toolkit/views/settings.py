"""Every random choice of a view, drawn from (seed, epoch, image) alone and the same for every engine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ssl_toolkit.views.geometry import DRAWS, Window, random_window
from ssl_toolkit.views.spec import ViewGroup

NUMBERS = DRAWS + 14
"""Uniform numbers that a view takes, whatever its chain does."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NEEDS_COLOUR = (SATURATION, HUE)


class Settings(NamedTuple):
    """What is done to the pixels of one view, in this order.

    Attributes:
        window: the crop, in pixels of the seed image.
        flip: whether it is mirrored left to right.
        jitter: ``(operation, value)`` in the order they are done: factors, and turns of the colour circle for hue.
        gray: whether colour is dropped.
        sigma: of the Gaussian blur in pixels; 0 where there is none.
        solarize: whether values of 128 and above are inverted.
    """

    window: Window
    flip: bool
    jitter: tuple[tuple[int, float], ...]
    gray: bool
    sigma: float
    solarize: bool

    def box(self) -> tuple[int, int, int, int]:
        """``x0, y0, x1, y1``, half open."""
        top, left, height, width = self.window
        return left, top, left + width, top + height


def random_numbers(seed: int, epoch: int, index: int, views: int) -> list[list[float]]:
    """`NUMBERS` uniform numbers for each view of an image; a counter-based generator needs no warm-up or state."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, index, epoch, 0]))
    numbers: list[list[float]] = generator.random((views, NUMBERS)).tolist()
    return numbers


def settings_of(
    numbers: list[float], group: ViewGroup, position: int, height: int, width: int, colour: bool
) -> Settings:
    """The choices that `NUMBERS` uniform numbers mean for a view of an image of ``height`` x ``width`` pixels.

    Args:
        position: of the view in its group.
        colour: whether the image is RGB; without, what needs colour is left out.
    """
    flip, jitter, gray, blur, solarize, *rest = numbers[DRAWS:]
    low, high = group.blur_sigma
    return Settings(
        window=random_window(numbers, height, width, group.scale, group.ratio),
        flip=flip < group.flip,
        jitter=_jitter(rest[:4], rest[4:8], group, colour) if jitter < group.jitter else (),
        gray=colour and gray < group.gray,
        sigma=low + rest[8] * (high - low) if blur < group.at(group.blur, position) else 0.0,
        solarize=solarize < group.at(group.solarize, position),
    )


def _jitter(
    strengths: list[float], order: list[float], group: ViewGroup, colour: bool
) -> tuple[tuple[int, float], ...]:
    steps = []
    for step in sorted(range(4), key=order.__getitem__):
        strength = (group.brightness, group.contrast, group.saturation, group.hue)[step]
        if not strength or (step in NEEDS_COLOUR and not colour):
            continue
        low = -strength if step == HUE else max(0.0, 1 - strength)
        high = strength if step == HUE else 1 + strength
        steps.append((step, low + strengths[step] * (high - low)))
    return tuple(steps)
