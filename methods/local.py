"""The local criterion that VICRegL and SimCLR-L share: match cells between views, compare what was matched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.criteria import Criterion, Terms, full_precision, no_autocast
from ssl_toolkit.errors import unknown
from ssl_toolkit.matching import (
    CellAxes,
    Matches,
    cell_axes,
    feature_matches,
    location_matches,
    matched_vectors,
    squared_distances,
)
from ssl_toolkit.views.batch import ViewBatch

MATCHINGS = ("both", "location", "feature", "none")


@dataclass
class LocalConfig:
    """Options of the local criterion; None takes the value of the preset.

    Attributes:
        matching: ``location`` (L_s, Eq. 2), ``feature`` (L_d, Eq. 3), ``both`` or ``none``.
        location_weight, feature_weight: factors on L_s and L_d.
        gamma: pairs that location matching keeps, by [large, small] view: a number of pairs, a share of the cells
            where it is below 1, or 0 for all.
        feature_gamma: the same for feature matching.
        gamma_by: ``size`` takes gamma by the size of the query view, ``argument`` gives the first value to the first
            view of a pair and the second to the other, as the published code does whatever their sizes.
        flip_aware: whether the location grid of a flipped view runs from right to left.
        sum_directions: True adds the two directions of a match (Eq. 4), False averages them.
        order: slots in ``raster`` or ``distance`` order; variance and covariance are computed per slot.
    """

    matching: str = "both"
    location_weight: float = 1.0
    feature_weight: float = 1.0
    gamma: list[float] | None = None
    feature_gamma: list[float] | None = None
    gamma_by: str | None = None
    flip_aware: bool | None = None
    sum_directions: bool | None = None
    order: str | None = None

    def __post_init__(self) -> None:
        for key, valid in (
            ("matching", MATCHINGS),
            ("gamma_by", ("size", "argument")),
            ("order", ("raster", "distance")),
        ):
            value = getattr(self, key)
            if value is not None and value not in valid:
                raise unknown(f"local.{key}", value, valid)
        for key in ("gamma", "feature_gamma"):
            value = getattr(self, key)
            if value is not None and (len(value) != 2 or any(v < 0 or (v > 1 and v % 1) for v in value)):
                raise ValueError(
                    f"local.{key} must be two numbers [large, small], each a count, a share below 1, or 0 for all, "
                    f"not {list(value)}"
                )


PRESETS: dict[str, dict[str, Any]] = {
    # Flip-aware; gamma the paper's share of any map (20 of 7 x 7, 4 of 3 x 3); feature matches unfiltered, which
    # measured
    # better than top-gamma.
    "ours": {
        "gamma": [0.41, 0.41],
        "feature_gamma": [0.0, 0.0],
        "gamma_by": "size",
        "flip_aware": True,
        "sum_directions": False,
        "order": "raster",
    },
    # The equations: both matchings filtered, both directions added, both sides' variance and covariance added.
    "paper": {
        "gamma": [20.0, 4.0],
        "feature_gamma": [20.0, 4.0],
        "gamma_by": "size",
        "flip_aware": True,
        "sum_directions": True,
        "order": "raster",
    },
    # The published code at its defaults: grid not flipped, feature matches unfiltered, gamma by argument position.
    "official": {
        "gamma": [20.0, 4.0],
        "feature_gamma": [0.0, 0.0],
        "gamma_by": "argument",
        "flip_aware": False,
        "sum_directions": False,
        "order": "raster",
    },
}


def sums_sides(preset: str) -> bool:
    """Whether ``preset`` adds (``paper``, Eq. 1) or averages the variance and covariance of a pair's two sides."""
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return preset == "paper"


def resolve(config: LocalConfig, preset: str) -> LocalConfig:
    """``config`` with every None replaced by the preset's value."""
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    missing = {f.name for f in fields(config) if getattr(config, f.name) is None}
    return replace(config, **{k: v for k, v in PRESETS[preset].items() if k in missing})


@dataclass(frozen=True)
class CellMap:
    """Embedded cells of one view: ``vectors`` ``(B, H * W, D)`` and where they lie."""

    vectors: Tensor
    axes: CellAxes
    large: bool


class LocalCriterion:
    """Compares matched local vectors of every pair of views by the criterion it is given.

    A pair's loss is, for each kind of matching, the criterion on (x, its matches in y) and on (y, its matches in x),
    averaged or added by ``sum_directions``. Pairs of a large view with any other view are averaged, which for two
    views gives Eq. 4 exactly (Eq. 5 as printed counts the two large views twice).

    Args:
        config: fully resolved (`resolve`).
        criterion: VICReg or NT-Xent, on groups ``(G, B, D)``.
    """

    def __init__(self, config: LocalConfig, criterion: Criterion) -> None:
        self.config = config
        self.criterion = criterion

    def locate(self, batch: ViewBatch, view: int, size: tuple[int, int]) -> CellAxes:
        """Cell centres of a view's feature map of ``size`` (height, width)."""
        chosen = batch.views[view]
        flip = chosen.flip if self.config.flip_aware else None
        return cell_axes(chosen.box, size[0], size[1], flip)

    def kept_pairs(self, kind: str, query_large: bool, argument: int, cells: int) -> int | None:
        """How many pairs to keep when matching from a view of this size, at this position of the pair; None for all."""
        gamma = self.config.gamma if kind == "location" else self.config.feature_gamma
        assert gamma is not None
        first = query_large if self.config.gamma_by == "size" else argument == 0
        value = gamma[0 if first else 1]
        if value == 0:
            return None
        return max(1, round(value * cells)) if value < 1 else int(value)

    def matches(self, x: CellMap, y: CellMap, kind: str) -> tuple[Matches, Matches]:
        """Matches from ``x`` to ``y`` and from ``y`` to ``x``, ``kind`` being ``location`` or ``feature``."""
        forward = self.kept_pairs(kind, x.large, 0, x.vectors.shape[1])
        backward = self.kept_pairs(kind, y.large, 1, y.vectors.shape[1])
        order = str(self.config.order)
        if kind == "location":
            return (
                location_matches(x.axes, y.axes, forward, order),
                location_matches(y.axes, x.axes, backward, order),
            )
        with no_autocast(x.vectors):
            squared = squared_distances(full_precision(x.vectors), full_precision(y.vectors))
        return feature_matches(squared, forward, order), feature_matches(squared.mT, backward, order)

    def _kinds(self) -> Iterator[tuple[str, float]]:
        if self.config.matching in ("both", "location"):
            yield "location", self.config.location_weight
        if self.config.matching in ("both", "feature"):
            yield "feature", self.config.feature_weight

    def _pairs(self, maps: Sequence[CellMap]) -> list[tuple[int, int, float]]:
        """Pairs with their weight; (m, n) and (n, m) are one pair of weight two unless gamma depends on the order."""
        num_large = sum(m.large for m in maps)
        ordered = [(m, n) for m in range(num_large) for n in range(len(maps)) if n != m]
        if self.config.gamma_by == "argument":
            return [(m, n, 1 / len(ordered)) for m, n in ordered]
        return [(m, n, (2 if n < num_large else 1) / len(ordered)) for m, n in ordered if m < n]

    def __call__(self, maps: Sequence[CellMap]) -> Terms:
        """Terms of all views, large ones first, named ``location_<term>`` and ``feature_<term>``, weighted."""
        terms: Terms = {}
        directions = 1.0 if self.config.sum_directions else 0.5
        for m, n, pair_weight in self._pairs(maps):
            x, y = maps[m], maps[n]
            for kind, weight in self._kinds():
                forward, backward = self.matches(x, y, kind)
                for a, b, match in ((x, y, forward), (y, x, backward)):
                    values = self.criterion.pair(
                        matched_vectors(a.vectors, match.query), matched_vectors(b.vectors, match.key)
                    )
                    for name, value in values.items():
                        key = f"{kind}_{name}"
                        scaled = pair_weight * weight * directions * value
                        terms[key] = terms[key] + scaled if key in terms else scaled
        return terms


def total(terms: Terms) -> Tensor:
    """Sum of weighted terms."""
    return torch.stack(list(terms.values())).sum()
