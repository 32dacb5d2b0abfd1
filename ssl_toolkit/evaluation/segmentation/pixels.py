"""Logits of linear heads at pixels, from maps of one or several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.evaluation.heads import Heads


def interpolation(cells: int, pixels: int) -> Tensor:
    """``(pixels, cells)``: the weight of each cell in each pixel of bilinear resizing along one side, as
    `torch.nn.functional.interpolate` does it with ``align_corners=False``."""
    return F.interpolate(torch.eye(cells)[None], size=pixels, mode="linear", align_corners=False)[0].T.contiguous()


def upsample(cells: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``(..., H, W)`` to ``(..., R, S)`` by `interpolation` ``(R, H)`` and ``(S, W)``.

    Two products with small matrices, one for each side; interpolate and einsum were slower.
    """
    height, width = cells.shape[-2:]
    lines = (cells.reshape(-1, width) @ columns.T).view(-1, height, len(columns))
    return (rows @ lines).view(*cells.shape[:-2], len(rows), len(columns))


def resized(cells: Tensor, height: int, width: int) -> Tensor:
    """``(..., H, W)`` to ``(..., height, width)``, bilinear."""
    if cells.shape[-2:] == (height, width):
        return cells
    rows, columns = (_weights(n, size, cells.device) for n, size in zip(cells.shape[-2:], (height, width)))
    return upsample(cells, rows, columns)


@lru_cache(maxsize=64)  # a transfer each time would make the host wait for the device
def _weights(cells: int, pixels: int, device: torch.device) -> Tensor:
    return interpolation(cells, pixels).to(device)


def cell_logits(heads: Heads, levels: Sequence[Tensor]) -> Tensor:
    """Logits on the grid of the finest of several maps, as if all were upsampled to it and joined.

    A linear head on joined maps is the sum of its parts on each of them, and a part comes before the upsampling, which
    is linear too: the joined map (1920x128x128 for an image of 512 pixels, VICRegL appendix) is never built.

    Args:
        heads: of D = the sum of C_i features.
        levels: from fine to coarse, each ``(B, C_i, H_i, W_i)``.

    Returns:
        ``(K, L, B, H_0, W_0)``: classes and heads first.
    """
    weight = torch.stack(list(heads.weights), 1).flatten(0, 1)
    bias = torch.stack(list(heads.biases), 1)
    batch, _, height, width = levels[0].shape
    total = bias[:, :, None, None, None]
    for part, maps in zip(torch.split(weight, [maps.shape[1] for maps in levels], 1), levels):
        cells = part @ maps.transpose(0, 1).flatten(1)
        cells = cells.view(heads.classes, -1, batch, *maps.shape[2:])
        total = total + resized(cells, height, width)
    return total


def pixel_logits(heads: Heads, levels: Sequence[Tensor], rows: Tensor, columns: Tensor) -> Tensor:
    """Logits at some pixels: the heads on each cell, then bilinear upsampling (both linear, so in this order).

    Args:
        levels: as in `cell_logits`.
        rows: ``(R, H_0)`` rows of `interpolation`; ``columns`` ``(S, W_0)`` likewise.

    Returns:
        ``(K, L, B, R, S)``.
    """
    return upsample(cell_logits(heads, levels), rows, columns)
