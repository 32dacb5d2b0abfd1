"""How good matches are: overlap, distance in the seed image, duplicates, agreement of location with feature."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_toolkit.matching.grid import CellAxes, check_axes
from ssl_toolkit.matching.neighbours import Matches, Nearest, check_matches, pixel_distances


def _duplicates(matches: Matches, key_cells: int) -> Tensor:
    """Share of kept pairs whose key cell another pair of the image has already."""
    used = torch.zeros(matches.key.shape[0], key_cells, device=matches.key.device)
    distinct = used.scatter_(1, matches.key, 1.0).sum(dim=1)
    return 1 - (distinct / matches.key.shape[1]).mean()


def _agreement(location: Nearest, feature: Nearest, query: CellAxes, key: CellAxes) -> dict[str, Tensor]:
    for name, nearest in (("location", location), ("feature", feature)):
        expected = (query.y.shape[0], query.cells)
        if nearest.key.shape != expected:
            raise ValueError(f"nearest by {name} is {tuple(nearest.key.shape)}; expected {expected}, the query cells")
    counted = query.inside(key.box)
    width = key.x.shape[1]
    rows = (location.key // width - feature.key // width).abs()
    columns = (location.key % width - feature.key % width).abs()
    apart = torch.maximum(rows, columns)
    # Nothing inside gives 0 / 0, nan: no cell could agree or disagree.
    total = counted.sum()
    return {
        "agreement": ((apart == 0) & counted).sum() / total,
        "agreement_1": ((apart <= 1) & counted).sum() / total,
    }


@torch.no_grad()
def match_statistics(
    query: CellAxes,
    key: CellAxes,
    *,
    location: Nearest | None = None,
    feature: Nearest | None = None,
    kept_location: Matches | None = None,
    kept_feature: Matches | None = None,
) -> dict[str, Tensor]:
    """What the matches of one direction of one pair of views are like, over a batch.

    Args:
        query, key: where the cells truly lie, flips included, even if the matching ignored them (preset ``official``).
        location, feature: neighbours of every query cell, for the agreement; left out where either is None.
        kept_location, kept_feature: pairs the criterion compares; the statistics of a kind that is None are left out.

    Returns:
        Scalars without a graph:

        - ``location_overlap``: share of kept location pairs whose query centre lies inside the key's crop. 0 for
          disjoint crops.
        - ``location_pixels``, ``feature_pixels``: mean distance of the two centres of a kept pair, pixels of the seed
          image.
        - ``location_duplicates``, ``feature_duplicates``: 1 - distinct key cells / kept pairs, mean over images.
        - ``agreement``: share of the query cells whose centre lies inside the key's crop that have the same nearest
          cell by feature (L_d) as by location (L_s), over the whole batch.
        - ``agreement_1``: the same within one cell of the key's map, diagonals included.

        A share or mean of nothing is nan: the agreements where no query centre of the batch lies inside the key's
        crop. Leave nan out (``torch.nanmean``) where these are averaged over pairs or steps.

    Raises:
        ValueError: shapes that disagree.
    """
    check_axes(query, key)
    result: dict[str, Tensor] = {}
    if kept_location is not None:
        check_matches(kept_location, query.y.shape[0])
        result["location_overlap"] = query.inside(key.box).gather(1, kept_location.query).float().mean()
    for name, kept in (("location", kept_location), ("feature", kept_feature)):
        if kept is not None:
            result[f"{name}_pixels"] = pixel_distances(kept, query, key).mean()
            result[f"{name}_duplicates"] = _duplicates(kept, key.cells)
    if location is not None and feature is not None:
        result.update(_agreement(location, feature, query, key))
    return result
