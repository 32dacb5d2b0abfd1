"""Pixels to network input: evaluation geometry (resize the shorter side, crop the centre) and normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ssl_toolkit.data.base import Image
from ssl_toolkit.errors import UserError


def resized_shape(height: int, width: int, resize: int) -> tuple[int, int]:
    """``(height, width)`` once the shorter side is ``resize`` pixels, the ratio kept."""
    short = min(height, width)
    return max(resize, round(height * resize / short)), max(resize, round(width * resize / short))


def _centre(pixels: Tensor, size: int) -> Tensor:
    top, left = (pixels.shape[-2] - size) // 2, (pixels.shape[-1] - size) // 2
    return pixels[..., top : top + size, left : left + size]


def _check(resize: int, size: int) -> None:
    if not 0 < size <= resize:
        raise ValueError(f"size {size} must be between 1 and resize {resize}")


def eval_batch(images: Sequence[Image], resize: int, size: int) -> Tensor:
    """Images of any shapes as one batch.

    Args:
        images: each ``(H, W, C)``, with one ``C``, uint8 or float32.
        resize: the shorter side in pixels after an antialiased bilinear resize.
        size: side in pixels of the centre crop, at most ``resize``.

    Returns:
        ``(N, C, size, size)`` of their type, contiguous.

    Raises:
        UserError: the images differ in channels, or there are none.
    """
    _check(resize, size)
    channels = {image.shape[2] for image in images}
    if len(channels) != 1:
        raise UserError(f"images of one batch have {sorted(channels) or 'no'} channels: need the same in all")
    out = torch.empty(len(images), channels.pop(), size, size, dtype=torch.from_numpy(images[0][:1]).dtype)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for position, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(position)
    for (height, width, _), positions in by_shape.items():
        group = torch.from_numpy(np.stack([images[p] for p in positions])).permute(0, 3, 1, 2)
        shape = resized_shape(height, width, resize)
        if shape != (height, width):
            group = F.interpolate(group, shape, mode="bilinear", antialias=True)
        out[positions] = _centre(group, size)
    return out


def eval_mask(mask: NDArray[np.uint8], resize: int, size: int) -> Tensor:
    """A mask ``(H, W)`` uint8 under the geometry of `eval_batch`: ``(size, size)`` uint8, nearest pixels."""
    _check(resize, size)
    pixels = torch.from_numpy(np.ascontiguousarray(mask))[None, None]
    shape = resized_shape(mask.shape[0], mask.shape[1], resize)
    if shape != mask.shape:
        # "nearest" samples at corners, off the bilinear grid by half a pixel; "nearest-exact" at centres
        pixels = F.interpolate(pixels, shape, mode="nearest-exact")
    return _centre(pixels, size)[0, 0].contiguous()


def as_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Images ``(..., C)`` of values 0 to 255 to look at: ``(..., 3)`` uint8, three channels or the first as gray."""
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels.astype(np.float32)), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1))


class Normalize(torch.nn.Module):
    """Images of values 0 to 255 to ``(x / 255 - mean) / std`` on their own device, in one multiply and one add."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        m, s = torch.tensor(list(mean)), torch.tensor(list(std))
        self.register_buffer("scale", (1 / (255 * s))[:, None, None], persistent=False)
        self.register_buffer("shift", (-m / s)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 or float32 to float32."""
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
