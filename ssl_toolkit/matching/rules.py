"""Rules for feature matches beyond the nearest one: which are certain, which are distinctive, which lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_toolkit.matching.neighbours import Nearest

RANKS = ("distance", "ratio", "spread")
"""By what pairs compete for a place among the top gamma."""

_BLOCK = 2


@torch.no_grad()
def mutual(there: Nearest, back: Nearest) -> Tensor:
    """Which query cells ``(B, P)`` are the nearest cell of their own nearest cell.

    Args:
        there: of the P query cells among Q keys.
        back: of the Q keys among the P query cells.

    Raises:
        ValueError: batches that differ, or a key that ``back`` does not have.
    """
    if there.key.ndim != 2 or back.key.ndim != 2 or there.key.shape[0] != back.key.shape[0]:
        raise ValueError(f"nearest {tuple(there.key.shape)} and back {tuple(back.key.shape)}; expected (B, P), (B, Q)")
    cells = torch.arange(there.key.shape[1], device=there.key.device)
    return back.key.gather(1, there.key) == cells


@torch.no_grad()
def ratios(squared: Tensor) -> Tensor:
    """Distance to the nearest key over the distance to the second nearest, ``(B, P)`` in [0, 1]; low is distinctive.

    1 where the two are equal, at a distance of 0 too, and where there is one key alone.

    Args:
        squared: squared distances ``(B, P, Q)``.

    Raises:
        ValueError: not three dimensions, or no key.

    Source: Lowe, "Distinctive image features from scale-invariant keypoints", IJCV 2004, section 7.1.
    """
    if squared.ndim != 3 or squared.shape[2] == 0:
        raise ValueError(f"squared distances {tuple(squared.shape)}; expected (B, P, Q) with Q at least 1")
    if squared.shape[2] == 1:
        return squared.new_ones(squared.shape[:2])
    first, second = squared.topk(2, dim=2, largest=False).values.unbind(2)
    return torch.where(second > 0, first / second, 1.0).sqrt_()


@torch.no_grad()
def spread_out(distance: Tensor, width: int) -> Tensor:
    """Scores ``(B, P)`` that take the closest pair of each block of 2 x 2 query cells before any block's second.

    The whole number is the place in the block, the rest orders places by distance.

    Args:
        distance: ``(B, P)`` of the query cells of a map with rows of ``width`` cells, in raster order.

    Raises:
        ValueError: no whole rows.
    """
    if distance.ndim != 2 or width < 1 or distance.shape[1] % width:
        raise ValueError(f"distances {tuple(distance.shape)} are no rows of {width} cells")
    cells = torch.arange(distance.shape[1], device=distance.device)
    block = cells // width // _BLOCK * width + cells % width // _BLOCK
    by_distance = distance.argsort(dim=1, stable=True)
    by_block = by_distance.gather(1, block[by_distance].argsort(dim=1, stable=True))
    # Every image has the same blocks, so the same turns in order of block.
    ordered = block.sort().values
    turns = cells - torch.searchsorted(ordered, ordered)
    scores = torch.empty_like(distance, dtype=torch.float64)
    scores.scatter_(1, by_block, turns.double().expand_as(distance))
    place = cells.double().expand_as(distance) / len(cells)
    return scores.scatter_add_(1, by_distance, place)
