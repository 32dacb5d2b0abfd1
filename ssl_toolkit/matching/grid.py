"""Where each cell of a feature map lies in the seed image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CellAxes(NamedTuple):
    """Centres of the cells of a grid, which is separable: ``y`` is ``(B, H)`` and ``x`` is ``(B, W)``, in pixels of the
    seed image."""

    y: Tensor
    x: Tensor

    def points(self) -> Tensor:
        """All centres in raster order, ``(B, H * W, 2)`` as (row, column)."""
        h, w = self.y.shape[1], self.x.shape[1]
        grid = torch.stack((self.y[:, :, None].expand(-1, h, w), self.x[:, None, :].expand(-1, h, w)), dim=-1)
        return grid.flatten(1, 2)


def _centres(start: Tensor, end: Tensor, count: int) -> Tensor:
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None] + steps * (end - start)[:, None]


def cell_axes(box: Tensor, height: int, width: int, flip: Tensor | None = None) -> CellAxes:
    """Centres of the ``height`` x ``width`` rectangles that divide each crop evenly.

    Args:
        box: ``(B, 4)``, ``x0, y0, x1, y1`` in pixels of the seed image.
        height, width: of the feature map.
        flip: ``(B,)`` bool; where true the crop was mirrored left to right, so columns run from right to left. None
            leaves the grid unflipped, as the published VICRegL code does by default.

    Source: VICRegL, appendix, "spatial location"; the matrix P is permuted for flipped crops.
    """
    box = box if box.dtype == torch.float64 else box.float()
    x0, y0, x1, y1 = box.unbind(dim=-1)
    columns = _centres(x0, x1, width)
    if flip is not None:
        columns = torch.where(flip[:, None], columns.flip(-1), columns)
    return CellAxes(_centres(y0, y1, height), columns)
