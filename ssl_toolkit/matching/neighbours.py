"""Nearest neighbours between the cells of two feature maps, by location and by feature, and which of them to keep.

No function here builds a graph: a match is a choice of indices, and gradients flow through the vectors picked by it.
"""

from __future__ import annotations

import numbers
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.matching.grid import CellAxes, check_axes

ORDERS = ("raster", "distance")
_CHUNK = 2**20
"""Numbers of both maps that each thread of a CPU works on at once: 4 MiB stay in its cache."""


class Nearest(NamedTuple):
    """For each of the P cells of a map its nearest cell of the other map.

    Attributes:
        key: ``(B, P)`` int64, raster position in the other map.
        distance: ``(B, P)``, in pixels of the seed image by location, in the embedding space by feature.
    """

    key: Tensor
    distance: Tensor


class Matches(NamedTuple):
    """G pairs for each image: cell ``query[b, g]`` of one map goes with cell ``key[b, g]`` of the other.

    Attributes:
        query, key: ``(B, G)`` int64, raster positions.
        distance: ``(B, G)``, as in `Nearest`.
    """

    query: Tensor
    key: Tensor
    distance: Tensor


@torch.no_grad()
def nearest_locations(query: CellAxes, key: CellAxes) -> Nearest:
    """For each cell of ``query`` the cell of ``key`` whose centre is closest in the seed image.

    Rows and columns are searched apart, which is exact because squared distances add over the axes, and costs
    H * H' + W * W' instead of their product. Nothing is matrix-multiplied: that shortcut is off by up to two pixels
    in an image of 4000. Ties go to the earlier cell in raster order.

    Raises:
        ValueError: shapes that disagree.

    Source: VICRegL Eq. 2.
    """
    check_axes(query, key)
    rows = (query.y[:, :, None] - key.y[:, None, :]).abs_().min(dim=2)
    columns = (query.x[:, :, None] - key.x[:, None, :]).abs_().min(dim=2)
    width = key.x.shape[1]
    nearest = (rows.indices[:, :, None] * width + columns.indices[:, None, :]).flatten(1)
    return Nearest(nearest, torch.hypot(rows.values[:, :, None], columns.values[:, None, :]).flatten(1))


@torch.no_grad()
def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared l2 distances ``(B, P, Q)`` of the vectors ``(B, P, C)`` and ``(B, Q, C)``; both directions use them.

    Computed in float32 whatever autocast says (float64 where an input is), as norms plus a product. The mean of ``y``
    is taken off first, so that the product loses no more than the spread of an image's vectors.

    Raises:
        ValueError: shapes that disagree.
    """
    if x.ndim != 3 or y.ndim != 3 or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise ValueError(f"vectors {tuple(x.shape)} and {tuple(y.shape)}; expected (B, P, C) and (B, Q, C)")
    if y.shape[1] == 0:
        raise ValueError(f"vectors {tuple(y.shape)} of a map without cells: nothing to match with")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    result = torch.empty(x.shape[0], x.shape[1], y.shape[1], dtype=dtype, device=x.device)
    images = x.shape[0]
    if x.device.type == "cpu":
        # Temporaries of the whole batch cost more than the product itself: each is fresh memory.
        images = _CHUNK * torch.get_num_threads() // ((x.shape[1] + y.shape[1]) * x.shape[2] + 1)
    images = max(1, images)
    # Autocast leaves products in place alone already; this keeps it so whatever the lines it covers become.
    with torch.autocast(x.device.type, enabled=False):
        for part in zip(*(torch.split(t, images) for t in (x, y, result))):
            _squared_distances_into(*part)
    return result


def _squared_distances_into(x: Tensor, y: Tensor, result: Tensor) -> None:
    x, y = x.to(result.dtype), y.to(result.dtype)
    centre = y.mean(dim=1, keepdim=True)
    x, y = x - centre, y - centre
    x_norms, y_norms = (torch.linalg.vector_norm(v, dim=2).square_() for v in (x, y))
    torch.add(x_norms[:, :, None], y_norms[:, None, :], out=result)
    result.baddbmm_(x, y.mT, alpha=-2).clamp_min_(0)


@torch.no_grad()
def nearest_features(squared: Tensor) -> Nearest:
    """For each query cell the key cell with the closest vector.

    Args:
        squared: `squared_distances` ``(B, P, Q)``; pass ``squared.mT``, which needs no copy, for the other direction.

    Raises:
        ValueError: not three dimensions, or no key cell.

    Source: VICRegL Eq. 3.
    """
    if squared.ndim != 3 or squared.shape[2] == 0:
        raise ValueError(f"squared distances {tuple(squared.shape)}; expected (B, P, Q) with Q at least 1")
    best = squared.min(dim=2)
    return Nearest(best.indices, best.values.sqrt())


@torch.no_grad()
def top_gamma(
    nearest: Nearest, gamma: int | None = None, order: str = "raster", score: Tensor | None = None
) -> Matches:
    """The ``gamma`` closest of the P pairs of each image, ties to the earlier query cell.

    Args:
        gamma: how many pairs to keep; None keeps all. Above P it is clamped to P with a warning.
        order: of the kept pairs: ``raster`` by query cell, ``distance`` best first. Criteria whose statistics are
            per slot depend on it.
        score: ``(B, P)``, what is low for the pairs to keep; None takes the distance.

    Raises:
        ValueError: a gamma that is no whole number or below 1, an unknown order, shapes that disagree.

    Source: VICRegL, Section 3.2 (top-gamma) and Algorithm 1.
    """
    key, distance = nearest
    if key.ndim != 2 or key.shape != distance.shape:
        raise ValueError(f"nearest key {tuple(key.shape)}, distance {tuple(distance.shape)}; expected (B, P) both")
    if score is not None and score.shape != key.shape:
        raise ValueError(f"score {tuple(score.shape)}; expected {tuple(key.shape)}, that of the pairs")
    if order not in ORDERS:
        raise ValueError(f"order must be {' or '.join(map(repr, ORDERS))}, not {order!r}")
    cells = key.shape[1]
    if gamma is not None and (isinstance(gamma, bool) or not isinstance(gamma, numbers.Integral) or gamma < 1):
        raise ValueError(f"gamma must be a whole number of at least 1, not {gamma!r}; nearest is {tuple(key.shape)}")
    if gamma is not None and gamma > cells:
        # Reported from this line whoever calls, so that Python shows each text once.
        warnings.warn(f"gamma {gamma} is above the {cells} cells of the map; all {cells} are kept", stacklevel=1)
    if order == "raster" and (gamma is None or gamma >= cells):
        everything = torch.arange(cells, device=key.device).expand_as(key)
        return Matches(everything, key, distance)
    kept = (distance if score is None else score).argsort(dim=1, stable=True)[:, :gamma]
    if order == "raster":
        kept = kept.sort(dim=1).values
    return Matches(kept, key.gather(1, kept), distance.gather(1, kept))


def check_matches(matches: Matches, batch: int) -> None:
    """Refuse matches that are not of ``batch`` images.

    Raises:
        ValueError: naming the shapes.
    """
    shape = matches.query.shape
    if len(shape) != 2 or shape[0] != batch or matches.key.shape != shape or matches.distance.shape != shape:
        shapes = f"query {tuple(shape)}, key {tuple(matches.key.shape)}, distance {tuple(matches.distance.shape)}"
        raise ValueError(f"matches {shapes}; expected (B, G) each with B {batch}, that of the cells")


@torch.no_grad()
def pixel_distances(matches: Matches, query: CellAxes, key: CellAxes) -> Tensor:
    """Distance ``(B, G)``, in pixels of the seed image, between the two centres of each pair.

    Raises:
        ValueError: shapes that disagree.
    """
    check_axes(query, key)
    check_matches(matches, query.y.shape[0])
    rows, columns = query.centres(matches.query)
    key_rows, key_columns = key.centres(matches.key)
    return torch.hypot(rows - key_rows, columns - key_columns)


@torch.no_grad()
def within(matches: Matches, query: CellAxes, key: CellAxes, max_distance: float) -> Tensor:
    """Which pairs ``(B, G)`` have centres no farther apart than ``max_distance`` cell diagonals, the larger view's.

    A pair of disjoint crops is then never kept, unlike by gamma alone.

    Args:
        matches: of either kind.
        max_distance: in diagonals of a cell; PixPro uses 0.7.

    Raises:
        ValueError: ``max_distance`` that is not above 0, or shapes that disagree.

    Source: PixPro (Xie et al., CVPR 2021), Eq. 1: distances are divided by the diagonal of a cell, its code says of
    the larger of the two. The comparison is the equation's, its code leaves out equality.
    """
    if not max_distance > 0:
        raise ValueError(f"max_distance must be above 0 cell diagonals, not {max_distance!r}")
    distances = pixel_distances(matches, query, key)
    limit = max_distance * torch.maximum(query.cell_diagonal(), key.cell_diagonal())
    return distances <= limit[:, None]
