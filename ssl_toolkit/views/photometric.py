"""Photometric operations on ``(H, W, C)`` uint8 arrays, with PIL's semantics at OpenCV's speed.

Each returns a new array. ``factor`` 1 leaves an image as it is, 0 is black, flat grey or colourless, as in torchvision.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]

_LEVELS = np.arange(256, dtype=np.float32)
_IDENTITY = np.eye(3, dtype=np.float32)
_LUMA = np.array([[0.299, 0.587, 0.114]], dtype=np.float32).repeat(3, axis=0)


def _lookup(image: Pixels, table: Pixels) -> Pixels:
    return cv2.LUT(image, table).reshape(image.shape)


def _blend_with(image: Pixels, level: float, factor: float) -> Pixels:
    table = factor * _LEVELS + (level - factor * level)
    np.maximum(table, 0, out=table)
    np.minimum(table, 255, out=table)
    return _lookup(image, table.astype(np.uint8))


def luma(image: Pixels) -> Pixels:
    """ITU-R 601 luma ``(H, W)``; a one-channel image is its own."""
    return image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Blend with black."""
    return _blend_with(image, 0.0, factor)


def contrast(image: Pixels, factor: float) -> Pixels:
    """Blend with the mean luma of the image, rounded as PIL rounds it."""
    return _blend_with(image, float(int(cv2.mean(luma(image))[0] + 0.5)), factor)


def saturation(image: Pixels, factor: float) -> Pixels:
    """Blend with the luma of each pixel: one 3 x 3 matrix."""
    return cv2.transform(image, factor * _IDENTITY + (1 - factor) * _LUMA)


def hue(image: Pixels, turns: float) -> Pixels:
    """Rotate the hue of HSV by ``turns`` of the circle, in 256 steps as PIL does."""
    shift = int(turns * 255) % 256
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(shift)  # wraps around, as wanted
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grayscale(image: Pixels) -> Pixels:
    """Luma in all three channels."""
    return cv2.cvtColor(luma(image), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: Pixels, sigma: float) -> Pixels:
    """Gaussian blur with standard deviation ``sigma`` in pixels, edges reflected."""
    side = 2 * max(1, round(3 * sigma)) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def solarize(image: Pixels, threshold: int = 128) -> Pixels:
    """Invert the values of ``threshold`` and above."""
    table = np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS).astype(np.uint8)
    return _lookup(image, table)
