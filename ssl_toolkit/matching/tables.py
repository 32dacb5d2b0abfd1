"""Every cell's match, by location and by feature, as plain tables: for pictures and examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.matching.grid import CellAxes
from ssl_toolkit.matching.neighbours import (
    Nearest,
    nearest_features,
    nearest_locations,
    squared_distances,
    top_gamma,
)
from ssl_toolkit.matching.rules import mutual


class MatchTable(NamedTuple):
    """For each cell of a view, its match in the other.

    Attributes:
        key: ``(B, cells)`` int64, the matched cell.
        distance: ``(B, cells)`` float32, what the matching minimised.
        kept: ``(B, cells)`` bool, whether the match is among the top gamma of its image.
    """

    key: Tensor
    distance: Tensor
    kept: Tensor


@torch.no_grad()
def match_tables(
    query: CellAxes, key: CellAxes, vectors: tuple[Tensor, Tensor], gamma: int, *, only_mutual: bool = False
) -> dict[str, MatchTable]:
    """The tables ``location`` and ``feature`` of two views.

    Args:
        query, key: where the cells of both lie.
        vectors: ``(B, cells, D)`` of both, compared by squared distance.
        gamma: matches that are kept of each image, at most its cells.
        only_mutual: of the matches by feature, keep only cells that are each other's nearest.
    """
    squared = squared_distances(*vectors)
    there = nearest_features(squared)
    certain = mutual(there, nearest_features(squared.mT)) if only_mutual else None
    return {
        "location": _table(nearest_locations(query, key), gamma),
        "feature": _table(there, gamma, certain),
    }


def _table(nearest: Nearest, gamma: int, certain: Tensor | None = None) -> MatchTable:
    """The ``gamma`` closest are kept, of those that are ``certain`` where that is given."""
    score = nearest.distance if certain is None else nearest.distance.masked_fill(~certain, torch.inf)
    best = top_gamma(nearest, min(gamma, nearest.key.shape[1]), score=score).query
    kept = torch.zeros_like(nearest.key, dtype=torch.bool).scatter_(1, best, True)
    return MatchTable(nearest.key, nearest.distance.float(), kept if certain is None else kept & certain)
