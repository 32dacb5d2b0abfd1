"""Nearest neighbours between the cells of two feature maps, by location and by feature.

No function here builds a graph: a match is a choice of indices, and gradients flow through the vectors picked with
    them.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.matching.grid import CellAxes


class Matches(NamedTuple):
    """G pairs for each image: cell ``query[b, g]`` of one map goes with cell ``key[b, g]`` of the other.

    Indices are raster positions ``(B, G)`` int64; ``distance`` is ``(B, G)``, in pixels of the seed image for location
    matches and in the embedding space for feature matches.
    """

    query: Tensor
    key: Tensor
    distance: Tensor


def _keep_best(nearest: Tensor, distance: Tensor, gamma: int | None, order: str) -> Matches:
    """The ``gamma`` closest of all P pairs, ties to the earlier cell; None keeps every pair."""
    cells = distance.shape[1]
    if gamma is not None and gamma < 1:
        raise ValueError(f"gamma must be at least 1, not {gamma}")
    if gamma is not None and gamma > cells:
        warnings.warn(f"gamma {gamma} is above the {cells} cells of the map; all are kept", stacklevel=3)
    if (gamma is None or gamma >= cells) and order == "raster":
        everything = torch.arange(cells, device=distance.device).expand_as(nearest)
        return Matches(everything, nearest, distance)
    kept = distance.argsort(dim=1, stable=True)[:, :gamma]
    if order == "raster":
        kept = kept.sort(dim=1).values
    return Matches(kept, nearest.gather(1, kept), distance.gather(1, kept))


@torch.no_grad()
def location_matches(query: CellAxes, key: CellAxes, gamma: int | None = None, order: str = "raster") -> Matches:
    """Match each cell of ``query`` to the cell of ``key`` whose centre is closest in the seed image.

    Rows and columns are searched apart, which is exact because squared distances add over the axes, and costs H * H' +
    W * W' instead of their product. Nothing is matrix-multiplied: that shortcut loses up to 0.1 pixel in float32.

    Args:
        gamma: how many of the closest pairs to keep; None keeps all.
        order: of the kept pairs: ``raster`` by query cell, ``distance`` closest first. Statistics per slot depend on
            it.

    Source: VICRegL Eq. 2.
    """
    rows = (query.y[:, :, None] - key.y[:, None, :]).square().min(dim=2)
    columns = (query.x[:, :, None] - key.x[:, None, :]).square().min(dim=2)
    width = key.x.shape[1]
    nearest = (rows.indices[:, :, None] * width + columns.indices[:, None, :]).flatten(1)
    distance = (rows.values[:, :, None] + columns.values[:, None, :]).flatten(1).sqrt()
    return _keep_best(nearest, distance, gamma, order)


@torch.no_grad()
def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared l2 distances ``(B, P, Q)`` of the vectors ``(B, P, C)`` and ``(B, Q, C)``; both directions use them.

    The mean of ``y`` is taken off first, so that the product form loses no more than the spread of the vectors.
    """
    centre = y.mean(dim=1, keepdim=True)
    x, y = x - centre, y - centre
    norms = x.square().sum(dim=2)[:, :, None] + y.square().sum(dim=2)[:, None, :]
    return torch.baddbmm(norms, x, y.mT, alpha=-2).clamp_min_(0)


@torch.no_grad()
def feature_matches(squared: Tensor, gamma: int | None = None, order: str = "raster") -> Matches:
    """Match each query cell to the key cell with the closest vector.

    Args:
        squared: `squared_distances` ``(B, P, Q)``; pass its transpose for the other direction.
        gamma, order: as for `location_matches`.

    Source: VICRegL Eq. 3. The published code keeps all pairs by default (``l2_all_matches=1``).
    """
    best = squared.min(dim=2)
    return _keep_best(best.indices, best.values.sqrt(), gamma, order)


def matched_vectors(vectors: Tensor, cells: Tensor) -> Tensor:
    """Pick ``cells`` ``(B, G)`` of ``vectors`` ``(B, P, C)`` as groups ``(G, B, C)``, with gradients."""
    batch, positions, channels = vectors.shape
    offsets = torch.arange(batch, device=cells.device)[:, None] * positions
    flat = (cells + offsets).t().reshape(-1)
    picked = vectors.reshape(batch * positions, channels).index_select(0, flat)
    return picked.view(cells.shape[1], batch, channels)
