"""Where each cell of a feature map lies in the seed image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class CellAxes(NamedTuple):
    """Cells of B feature maps of H rows and W columns, in pixels of the seed image.

    The centres form a product of two axes, so only the axes are kept.

    Attributes:
        y: ``(B, H)``, centres of the rows.
        x: ``(B, W)``, centres of the columns.
        box: ``(B, 4)``, ``x0, y0, x1, y1`` of the crop.
    """

    y: Tensor
    x: Tensor
    box: Tensor

    @property
    def cells(self) -> int:
        """How many cells a map has, H * W."""
        return self.y.shape[1] * self.x.shape[1]

    def points(self) -> Tensor:
        """All centres in raster order, ``(B, H * W, 2)`` as (row, column)."""
        h, w = self.y.shape[1], self.x.shape[1]
        grid = torch.stack((self.y[:, :, None].expand(-1, h, w), self.x[:, None, :].expand(-1, h, w)), dim=-1)
        return grid.flatten(1, 2)

    def centres(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column, ``(B, G)`` each, of the centres of ``cells`` ``(B, G)``, raster positions."""
        w = self.x.shape[1]
        return self.y.gather(1, cells // w), self.x.gather(1, cells % w)

    def cell_diagonal(self) -> Tensor:
        """Diagonal of one cell, ``(B,)`` pixels."""
        x0, y0, x1, y1 = self.box.unbind(dim=-1)
        return torch.hypot((y1 - y0) / self.y.shape[1], (x1 - x0) / self.x.shape[1])

    def inside(self, box: Tensor) -> Tensor:
        """Which centres lie in ``box`` ``(B, 4)``, half open: ``(B, H * W)`` bool in raster order."""
        x0, y0, x1, y1 = box[:, :, None].unbind(dim=1)
        rows = (self.y >= y0) & (self.y < y1)
        columns = (self.x >= x0) & (self.x < x1)
        return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def check_axes(query: CellAxes, key: CellAxes) -> None:
    """Refuse axes that are not those of maps of the same images.

    Raises:
        ValueError: naming the shapes that disagree.
    """
    batch = query.y.shape[0] if query.y.ndim else 0
    for name, axes in (("query", query), ("key", key)):
        grids = axes.y.ndim == axes.x.ndim == 2
        if not grids or axes.y.shape[0] != batch or axes.x.shape[0] != batch or axes.box.shape != (batch, 4):
            shapes = f"y {tuple(axes.y.shape)}, x {tuple(axes.x.shape)}, box {tuple(axes.box.shape)}"
            raise ValueError(f"{name} cells: {shapes}; expected (B, H), (B, W), (B, 4) with B {batch}, that of query.y")


def _centres(start: Tensor, end: Tensor, count: int) -> Tensor:
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    return start[:, None] + steps * (end - start)[:, None]


@torch.no_grad()
def cell_axes(box: Tensor, height: int, width: int, flip: Tensor | None = None) -> CellAxes:
    """Centres of the ``height`` x ``width`` rectangles that divide each crop evenly.

    Args:
        box: ``(B, 4)``, ``x0, y0, x1, y1`` in pixels of the seed image. Computed in float32, or in float64 if it is.
        height, width: of the feature map.
        flip: ``(B,)`` bool; where true the crop was mirrored left to right, so columns run from right to left. None
            leaves the grid unflipped, as the published VICRegL code does by default.

    Raises:
        ValueError: shapes that disagree, or a map without cells.

    Source: VICRegL, appendix, "spatial location"; the matrix P is permuted for flipped crops.
    """
    if box.ndim != 2 or box.shape[1] != 4 or (flip is not None and flip.shape != box.shape[:1]):
        given = f"box {tuple(box.shape)}" + ("" if flip is None else f", flip {tuple(flip.shape)}")
        raise ValueError(f"{given}; expected box (B, 4) and flip (B,)")
    if height < 1 or width < 1:
        raise ValueError(f"a feature map of height {height} and width {width} has no cells")
    box = box if box.dtype == torch.float64 else box.float()
    x0, y0, x1, y1 = box.unbind(dim=-1)
    columns = _centres(x0, x1, width)
    if flip is not None:
        columns = torch.where(flip[:, None], columns.flip(-1), columns)
    return CellAxes(_centres(y0, y1, height), columns, box)
