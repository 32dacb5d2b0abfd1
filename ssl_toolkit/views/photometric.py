"""Photometric operations on ``(H, W, C)`` arrays with values from 0 to 255, with PIL's semantics at OpenCV's speed.

Arrays are uint8, or float32 for data of 16 bits, which PIL has not: there nothing is rounded. Each operation returns a
new array. ``factor`` 1 leaves an image as it is, 0 is black, flat grey or colourless, as in torchvision.
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


def _is_bytes(image: Pixels) -> bool:
    return image.dtype == np.uint8


def _lookup(image: Pixels, table: Pixels) -> Pixels:
    return cv2.LUT(image, table).reshape(image.shape)


def _clipped(image: Pixels) -> Pixels:
    return np.clip(image, 0, 255, out=image)


def _blend_with(image: Pixels, level: float, factor: float) -> Pixels:
    if not _is_bytes(image):
        return _clipped(image * np.float32(factor) + np.float32(level - factor * level))
    table = factor * _LEVELS + (level - factor * level)
    np.maximum(table, 0, out=table)
    np.minimum(table, 255, out=table)
    return _lookup(image, table.astype(np.uint8))


def luma(image: Pixels) -> Pixels:
    """ITU-R 601 luma ``(H, W)`` of RGB; of any other number of channels their mean."""
    channels = image.shape[-1]
    if channels == 3:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return image[..., 0] if channels == 1 else image.mean(axis=-1, dtype=np.float32)


def brightness(image: Pixels, factor: float) -> Pixels:
    """Blend with black."""
    return _blend_with(image, 0.0, factor)


def contrast(image: Pixels, factor: float) -> Pixels:
    """Blend with the mean luma of the image, rounded as PIL rounds it where values are whole."""
    mean = cv2.mean(luma(image))[0]
    return _blend_with(image, float(int(mean + 0.5)) if _is_bytes(image) else mean, factor)


def saturation(image: Pixels, factor: float) -> Pixels:
    """Blend with the luma of each pixel: one 3 x 3 matrix. RGB only."""
    result = cv2.transform(image, factor * _IDENTITY + (1 - factor) * _LUMA)
    return result if _is_bytes(image) else _clipped(result)


def hue(image: Pixels, turns: float) -> Pixels:
    """Rotate the hue of HSV by ``turns`` of the circle; bytes in 256 steps as PIL does. RGB only."""
    if not _is_bytes(image):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in degrees
        hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turns)) % np.float32(360)
        return _clipped(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(hue_steps(turns))  # wraps around, as wanted
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def hue_steps(turns: float) -> int:
    """The shift of an 8-bit hue that PIL makes of ``turns`` of the circle, 0 to 255."""
    return int(turns * 255) % 256


def grayscale(image: Pixels) -> Pixels:
    """Luma in all three channels. RGB only."""
    return cv2.cvtColor(luma(image), cv2.COLOR_GRAY2RGB)


def gaussian_blur(image: Pixels, sigma: float) -> Pixels:
    """Gaussian blur with standard deviation ``sigma`` in pixels, edges reflected."""
    side = blur_side(sigma)
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def blur_side(sigma: float) -> int:
    """Side of the blur's window in pixels: three standard deviations either way."""
    return 2 * max(1, round(3 * sigma)) + 1


def solarize(image: Pixels, threshold: int = 128) -> Pixels:
    """Invert the values of ``threshold`` and above."""
    if not _is_bytes(image):
        return np.where(image < threshold, image, 255 - image)
    table = np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS).astype(np.uint8)
    return _lookup(image, table)
