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

_IDENTITY = np.eye(3, dtype=np.float32)
_LUMA = np.array([[0.299, 0.587, 0.114]], dtype=np.float32).repeat(3, axis=0)
_DOWN = 0.4999
"""Subtracted before OpenCV rounds, so that a value is cut off to the whole number below, as in PIL."""

MOST_CHANNELS = 128
"""That OpenCV 5 takes for channels; with more it sees another dimension."""


def _is_bytes(image: Pixels) -> bool:
    return image.dtype == np.uint8


def _clipped(image: Pixels) -> Pixels:
    return np.clip(image, 0, 255, out=image)


def _blend_with(image: Pixels, level: float, factor: float) -> Pixels:
    offset = level - factor * level
    channels = image.shape[-1]
    if not _is_bytes(image) or channels > 4:
        blended = _clipped(image * np.float32(factor) + np.float32(offset))
        return blended.astype(image.dtype, copy=False)
    matrix = np.zeros((channels, channels + 1), np.float32)  # OpenCV's fastest way to scale bytes, and it saturates
    matrix[:, -1] = offset - _DOWN
    matrix.flat[:: channels + 2] = factor
    return cv2.transform(image, matrix).reshape(image.shape)


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
    matrix = np.zeros((3, 4), np.float32)
    matrix[:, :3] = factor * _IDENTITY + (1 - factor) * _LUMA
    if not _is_bytes(image):
        return _clipped(cv2.transform(image, matrix))
    matrix[:, 3] = -_DOWN
    return cv2.transform(image, matrix)


def hue(image: Pixels, turns: float) -> Pixels:
    """Rotate the hue of HSV by ``turns`` of the circle; bytes in 256 steps as PIL does. RGB only."""
    if not _is_bytes(image):
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue in degrees
        hsv[..., 0] = (hsv[..., 0] + np.float32(360 * turns)) % np.float32(360)
        return _clipped(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    row = np.zeros((hsv.shape[1], 3), np.uint8)
    row[:, 0] = hue_steps(turns)
    flat = hsv.reshape(len(hsv), -1)
    np.add(flat, row.reshape(1, -1), out=flat)  # bytes wrap around, as wanted; whole rows vectorise
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def hue_steps(turns: float) -> int:
    """The shift of an 8-bit hue that PIL makes of ``turns`` of the circle, 0 to 255."""
    return int(turns * 255) % 256


def grayscale(image: Pixels) -> Pixels:
    """Luma in all three channels. RGB only."""
    return cv2.cvtColor(luma(image), cv2.COLOR_GRAY2RGB)


def mirror(image: Pixels) -> Pixels:
    """Left to right."""
    if image.shape[-1] > MOST_CHANNELS:
        return np.ascontiguousarray(image[:, ::-1])
    return cv2.flip(image, 1).reshape(image.shape)


def gaussian_blur(image: Pixels, sigma: float) -> Pixels:
    """Gaussian blur with standard deviation ``sigma`` in pixels, edges reflected."""
    if image.shape[-1] > MOST_CHANNELS:
        parts = np.split(image, range(MOST_CHANNELS, image.shape[-1], MOST_CHANNELS), axis=-1)
        return np.concatenate([gaussian_blur(np.ascontiguousarray(part), sigma) for part in parts], axis=-1)
    kernel = cv2.getGaussianKernel(blur_side(sigma), sigma, cv2.CV_32F)
    # Twice as fast as cv2.GaussianBlur, which computes bytes in fixed point, and closer to the Gaussian.
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def blur_side(sigma: float) -> int:
    """Side of the blur's window in pixels: three standard deviations either way."""
    return 2 * max(1, round(3 * sigma)) + 1


def solarize(image: Pixels) -> Pixels:
    """Invert the values of 128 and above."""
    if _is_bytes(image):
        return cv2.min(image, cv2.bitwise_not(image)).reshape(image.shape)
    return np.where(image < 128, image, 255 - image)
