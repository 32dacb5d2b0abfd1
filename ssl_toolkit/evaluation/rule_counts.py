"""What the pairs of cells are that a rule of matching chooses: counts of one direction of pairs of views, by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import VOID
from ssl_toolkit.evaluation.match_counts import PAIR_NUMBERS, Crop, places, standard_error
from ssl_toolkit.matching import (
    CellAxes,
    Matches,
    Nearest,
    cell_axes,
    mutual,
    nearest_features,
    nearest_locations,
    ratios,
    spread_out,
    squared_distances,
    top_gamma,
    within,
)

RADII = (0, 1)
"""Cells from the right one within which a pair counts as right."""

GROUPS = ("", "_objects", "_background")
"""Of all pairs, of those whose query cell lies on an object, and on background."""

RIGHT = tuple(f"right_{radius}{group}" for group in GROUPS for radius in RADII)
CHANCE = tuple(name.replace("right", "chance") for name in RIGHT)

COUNTS = (
    "cells",
    "pairs",
    "known",
    "objects",
    "background",
    "inside",
    *RIGHT,
    *CHANCE,
    "known_ends",
    "same_class",
    "known_views",
    "chance_same_class",
)
"""The columns of `rule_counts`: cells, pairs, and sums over pairs."""

SHARES = {
    "kept": ("pairs", "cells"),
    "on_objects": ("objects", "known"),
    "inside": ("inside", "pairs"),
    **{name: (name, name.partition("_")[2][2:] or "pairs") for name in (*RIGHT, *CHANCE)},
    "same_class": ("same_class", "known_ends"),
    "chance_same_class": ("chance_same_class", "known_views"),
}
"""Percentages: which column of `COUNTS` they are of which other."""


class Pairs(NamedTuple):
    """What a rule chooses from the P cells of one view.

    Attributes:
        key: ``(B, P)`` int64, the cell of the other view that each goes with.
        kept: ``(B, P)`` bool, which of these pairs the rule keeps.
    """

    key: Tensor
    kept: Tensor


class Cells(NamedTuple):
    """The cells of one view.

    Attributes:
        crop: where they lie.
        classes: ``(B, P)`` int64, the mask's class at their centres, `VOID` of none.
    """

    crop: Crop
    classes: Tensor

    @property
    def axes(self) -> CellAxes:
        """As `ssl_toolkit.matching` takes them, mirrored where the view is."""
        return cell_axes(self.crop.box, self.crop.height, self.crop.width, self.crop.flip)


def cell_classes(masks: Sequence[NDArray[np.uint8]], crop: Crop) -> Tensor:
    """The class ``(B, P)`` int64 of the pixel that contains each cell's centre, in raster order.

    In whole numbers: a centre on the border of two pixels belongs to the one that begins there.

    Args:
        masks: of the seed images, ``(H, W)`` each.
    """
    x0, y0, x1, y1 = crop.box.cpu().round().long().T
    rows, columns = _pixels(y0, y1, crop.height), _pixels(x0, x1, crop.width)
    columns = torch.where(crop.flip.cpu()[:, None], columns.flip(1), columns)
    found = [mask[np.ix_(r, c)].ravel() for mask, r, c in zip(masks, rows.numpy(), columns.numpy())]
    return torch.from_numpy(np.stack(found).astype(np.int64))


def _pixels(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """``(B, steps)``: the pixels that the centres of ``steps`` parts of start..end lie in."""
    part = 2 * torch.arange(steps) + 1
    return start[:, None] + torch.div(part * (end - start)[:, None], 2 * steps, rounding_mode="floor")


def location_pairs(query: Cells, key: Cells, gamma: int) -> dict[str, Pairs]:
    """The pairs of L_s: of every cell, and the ``gamma`` of each image whose centres are closest."""
    nearest = nearest_locations(query.axes, key.axes)
    return {"all": _every(nearest), "top gamma": _top(nearest, gamma)}


def feature_pairs(
    vectors: tuple[Tensor, Tensor], cells: tuple[Cells, Cells], gamma: int, max_distance: float
) -> tuple[dict[str, Pairs], dict[str, Pairs]]:
    """The pairs of L_d by each rule, from the first view to the second and back.

    Args:
        vectors: ``(B, P, D)`` and ``(B, Q, D)``, compared by their l2 distance.
        gamma: pairs of an image that the rules ``top gamma``, ``by ratio`` and ``spread`` keep.
        max_distance: in cell diagonals, of the rules named ``near``.
    """
    x, y = vectors
    each = max(1, PAIR_NUMBERS // (x.shape[1] * y.shape[1]))
    parts = [_neighbours(*part) for part in zip(torch.split(x, each), torch.split(y, each))]
    there, back = (
        _Neighbours(*(torch.cat(column) for column in zip(*(part[way] for part in parts)))) for way in range(2)
    )
    return tuple(  # type: ignore[return-value]
        _by_rule(one, other, query, key, gamma, max_distance)
        for one, other, query, key in ((there, back, *cells), (back, there, *cells[::-1]))
    )


class _Neighbours(NamedTuple):
    """The nearest vector of each: `Nearest`, and its `ratios`."""

    key: Tensor
    distance: Tensor
    ratio: Tensor

    @property
    def nearest(self) -> Nearest:
        return Nearest(self.key, self.distance)


def _neighbours(x: Tensor, y: Tensor) -> tuple[_Neighbours, _Neighbours]:
    squared = squared_distances(x, y)
    ways = (squared, squared.mT)
    there, back = (_Neighbours(*(t.cpu() for t in (*nearest_features(way), ratios(way)))) for way in ways)
    return there, back


def _by_rule(
    found: _Neighbours, back: _Neighbours, query: Cells, key: Cells, gamma: int, max_distance: float
) -> dict[str, Pairs]:
    nearest = found.nearest
    certain = mutual(nearest, back.nearest)
    near = within(top_gamma(nearest), query.axes, key.axes, max_distance)
    return {
        "all": _every(nearest),
        "top gamma": _top(nearest, gamma),
        "by ratio": _top(nearest, gamma, found.ratio),
        "spread": _top(nearest, gamma, spread_out(nearest.distance, query.crop.width)),
        "mutual": Pairs(nearest.key, certain),
        "near": Pairs(nearest.key, near),
        "mutual, near": Pairs(nearest.key, certain & near),
    }


def _every(nearest: Nearest) -> Pairs:
    return Pairs(nearest.key, torch.ones_like(nearest.key, dtype=torch.bool))


def _top(nearest: Nearest, gamma: int, score: Tensor | None = None) -> Pairs:
    kept: Matches = top_gamma(nearest, gamma, score=score)
    return Pairs(nearest.key, torch.zeros_like(nearest.key, dtype=torch.bool).scatter_(1, kept.query, True))


def rule_counts(pairs: Pairs, query: Cells, key: Cells, classes: int, background: int) -> NDArray[np.float64]:
    """Sums over the pairs of each image, ``(B, len(COUNTS))``.

    Whether a pair is right is known for all: its key cell lies at most ``r`` rows and ``r`` columns from the cell that
    contains the query's centre, which a centre outside the key's view never has. Whether it lies on an object is known
    where the pixel at its centre is not void.

    ``chance_*`` is what the same query cells would give with a random cell of the key's view.

    Args:
        classes: in the masks.
        background: the class that is no object, -1 where every class is one.
    """
    kept, known = pairs.kept, query.classes != VOID
    objects = kept & known & (query.classes != background)
    groups = (kept, objects, kept & known & ~objects)
    columns = [torch.ones_like(kept), kept, kept & known, *groups[1:]]
    right, chance = _right(pairs, query, key)
    columns.append(kept & right.inside)
    columns += [found & group for group in groups for found in right.within]
    columns += [share * group for group in groups for share in chance]
    ends = key.classes.gather(1, pairs.key)
    columns += [objects & (ends != VOID), objects & (ends == query.classes)]
    known_views, share = _class_share(query.classes, key.classes, classes)
    columns += [objects & known_views, share * objects]
    return torch.stack([column.double().sum(1) for column in columns], 1).numpy()


class _Right(NamedTuple):
    """Of each cell: whether its centre lies in the other view, and whether its pair is right within each radius."""

    inside: Tensor
    within: list[Tensor]


def _right(pairs: Pairs, query: Cells, key: Cells) -> tuple[_Right, list[Tensor]]:
    """And the share of the key's cells that would be right, by radius."""
    height, width = key.crop.height, key.crop.width
    true = places(query.crop, key.crop)
    rows, columns = (true.row - pairs.key // width).abs(), (true.column - pairs.key % width).abs()
    apart = torch.maximum(rows, columns)
    chance = []
    for radius in RADII:
        high, wide = (
            (place + radius).clamp_max(side - 1) - (place - radius).clamp_min(0) + 1
            for place, side in ((true.row, height), (true.column, width))
        )
        chance.append((high * wide).double() / (height * width) * true.inside)
    return _Right(true.inside, [(apart <= radius) & true.inside for radius in RADII]), chance


def _class_share(query: Tensor, key: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Whether any cell of the key's view has a class, and which share of those that do has the class of each query
    cell, ``(B, P)``; 0 where there is none."""
    counts = torch.zeros(len(key), VOID + 1, dtype=torch.float64)
    counts.scatter_add_(1, key, torch.ones_like(key, dtype=torch.float64))
    total = counts[:, :classes].sum(1, keepdim=True)
    return (total > 0).expand_as(query), counts.gather(1, query) / total.clamp_min(1)


def shares(rows: NDArray[np.float64]) -> dict[str, float | int | None]:
    """Of some images' rows of `rule_counts`: number of pairs, then the percentages of `SHARES`, each with its standard
    error over images. None where there is nothing to take a share of."""
    column: Mapping[str, NDArray[np.float64]] = dict(zip(COUNTS, rows.T))
    result: dict[str, float | int | None] = {"pairs": round(column["pairs"].sum())}
    for name, (part, whole) in SHARES.items():
        total = column[whole].sum()
        result[name] = float(100 * column[part].sum() / total) if total else None
        result[f"{name}_error"] = standard_error(column[part], column[whole])
    return result
