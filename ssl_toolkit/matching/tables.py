"""Every cell's match, by location and by feature, as plain tables: for pictures and examples."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.matching.grid import CellAxes
from ssl_toolkit.matching.neighbours import Nearest, nearest_features, nearest_locations, squared_distances, top_gamma


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
def match_tables(query: CellAxes, key: CellAxes, vectors: tuple[Tensor, Tensor], gamma: int) -> dict[str, MatchTable]:
    """The tables ``location`` and ``feature`` of two views.

    Args:
        query, key: where the cells of both lie.
        vectors: ``(B, cells, D)`` of both, compared by squared distance.
        gamma: matches that are kept of each image, at most its cells.
    """
    found = {
        "location": nearest_locations(query, key),
        "feature": nearest_features(squared_distances(*vectors)),
    }
    return {name: _table(nearest, min(gamma, nearest.key.shape[1])) for name, nearest in found.items()}


def _table(nearest: Nearest, gamma: int) -> MatchTable:
    kept = torch.zeros_like(nearest.key, dtype=torch.bool).scatter_(1, top_gamma(nearest, gamma).query, True)
    return MatchTable(nearest.key, nearest.distance.float(), kept)
