"""Matching by loops over pairs of cells in Python's floats, and random boxes to try it on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Point = tuple[float, float]


def loop_centres(box: list[float], height: int, width: int, flip: bool) -> list[Point]:
    """Centres (row, column) of the cells of one crop, in raster order."""
    x0, y0, x1, y1 = box
    cells = []
    for row in range(height):
        for column in range(width):
            across = (width - 1 - column) if flip else column
            cells.append((y0 + (row + 0.5) * (y1 - y0) / height, x0 + (across + 0.5) * (x1 - x0) / width))
    return cells


def loop_nearest(query: list[Point], key: list[Point]) -> tuple[list[int], list[float]]:
    """The first of the closest keys of each query, and its distance."""
    cells, distances = [], []
    for place in query:
        to_all = [math.dist(place, other) for other in key]
        cells.append(min(range(len(key)), key=to_all.__getitem__))
        distances.append(min(to_all))
    return cells, distances


def random_boxes(count: int, seed: int, start: float = 100.0, side: tuple[float, float] = (5.0, 80.0)) -> Tensor:
    """``(count, 4)`` float32 boxes, x0, y0, x1, y1, whose corners lie in ``[0, start)``."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * start
    size = side[0] + torch.rand(count, 2, generator=generator) * (side[1] - side[0])
    return torch.cat((corner, corner + size), dim=1)


def random_flips(count: int, seed: int) -> Tensor:
    """``(count,)`` bool."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
