"""The local criterion that VICRegL and SimCLR-L share: match cells between views, compare what was matched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssl_toolkit.criteria import Criterion, Loss, Matching, full_precision, matched_loss, view_pairs
from ssl_toolkit.errors import unknown
from ssl_toolkit.matching import (
    RANKS,
    CellAxes,
    Matches,
    Nearest,
    cell_axes,
    match_statistics,
    mutual,
    nearest_features,
    nearest_locations,
    ratios,
    spread_out,
    squared_distances,
    top_gamma,
    within,
)
from ssl_toolkit.views.batch import ViewBatch

STATISTICS = ("pairs", "maps")
SPACES = ("embeddings", "features")
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
        statistics: of what variance and covariance over the batch are: ``pairs``, the matched vectors of each slot (the
            paper), or ``maps``, each position of each map. A slot of filtered pairs has cells of many positions, so
            that embeddings can tell images apart, and agree between views, by saying where in the view they lie.
        feature_space: what feature pairs are nearest in: the local projector's ``embeddings`` (the paper), or the
            backbone's ``features``. What is compared is the embeddings either way.
        feature_rank: by what feature pairs compete where ``feature_gamma`` keeps some: ``distance`` (the paper),
            ``ratio`` of the nearest to the second nearest distance, or ``spread``: the closest of each block of 2 x 2
            cells before any block's second.
        mutual: feature pairs that are not each other's nearest are not pulled together.
        feature_max_distance: as ``max_distance``, for feature pairs.
        feature_after: share of the training before which feature matching is off.
        max_distance: location pairs whose centres are farther apart are not pulled together, though they still count in
            the statistics of their slot; in diagonals of a cell, the larger of the two views' (PixPro uses 0.7). With 0
            all are, also those of crops that do not overlap, as in the paper.
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
    max_distance: float | None = None
    order: str | None = None
    statistics: str = "pairs"
    feature_space: str | None = None
    feature_rank: str = "distance"
    mutual: bool | None = None
    feature_max_distance: float = 0.0
    feature_after: float = 0.0

    def __post_init__(self) -> None:
        for key, valid in (
            ("matching", MATCHINGS),
            ("gamma_by", ("size", "argument")),
            ("order", ("raster", "distance")),
            ("statistics", STATISTICS),
            ("feature_space", SPACES),
            ("feature_rank", RANKS),
        ):
            value = getattr(self, key)
            if value is not None and value not in valid:
                raise unknown(f"local.{key}", value, valid)
        for key in ("max_distance", "feature_max_distance"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"local.{key} is a distance in cell diagonals, or 0 for none, not {value}")
        if not 0 <= self.feature_after < 1:
            raise ValueError(f"local.feature_after is a share of the training, 0 to below 1, not {self.feature_after}")
        if self.feature_after and (self.matching != "both" or not self.location_weight):
            raise ValueError("local.feature_after needs matching=both: before it nothing would train the local head")
        if min(self.location_weight, self.feature_weight) < 0:
            raise ValueError("local.location_weight and local.feature_weight must not be negative")
        for key in ("gamma", "feature_gamma"):
            value = getattr(self, key)
            if value is not None and (len(value) != 2 or any(v < 0 or (v > 1 and v % 1) for v in value)):
                raise ValueError(
                    f"local.{key} must be two numbers [large, small], each a count, a share below 1, or 0 for all, "
                    f"not {list(value)}"
                )

    def kinds(self) -> list[tuple[str, float]]:
        """Kinds of matching that are switched on, with their weights."""
        weights = {"location": self.location_weight, "feature": self.feature_weight}
        return [(k, w) for k, w in weights.items() if self.matching in ("both", k) and w]


PRESETS: dict[str, dict[str, Any]] = {
    # Flip-aware; every cell is matched. Pulled together are location matches that are near, and cells that are each
    # other's nearest in the backbone's features: in embeddings the nearest is often at a wrong place
    # (docs/ablations.md has what was measured).
    "ours": {
        "gamma": [0.0, 0.0],
        "feature_gamma": [0.0, 0.0],
        "gamma_by": "size",
        "flip_aware": True,
        "sum_directions": False,
        "max_distance": 0.7,
        "order": "raster",
        "feature_space": "features",
        "mutual": True,
    },
    # The equations: both matchings filtered, both directions added, both sides' variance and covariance added.
    "paper": {
        "gamma": [20.0, 4.0],
        "feature_gamma": [20.0, 4.0],
        "gamma_by": "size",
        "flip_aware": True,
        "sum_directions": True,
        "max_distance": 0.0,
        "order": "raster",
        "feature_space": "embeddings",
        "mutual": False,
    },
    # The published code at its defaults: grid not flipped, feature matches unfiltered, gamma by argument position.
    "official": {
        "gamma": [20.0, 4.0],
        "feature_gamma": [0.0, 0.0],
        "gamma_by": "argument",
        "flip_aware": False,
        "sum_directions": False,
        "max_distance": 0.0,
        "order": "raster",
        "feature_space": "embeddings",
        "mutual": False,
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
    """Embedded cells of one view: ``vectors`` ``(B, H * W, D)`` and where they lie, flips included; with
    ``feature_space=features`` also what they were embedded from, ``(B, H * W, C)``."""

    vectors: Tensor
    axes: CellAxes
    large: bool
    features: Tensor | None = None


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

    @property
    def reads_features(self) -> bool:
        """Whether maps must have ``features``."""
        return self.config.feature_space == "features" and "feature" in dict(self.config.kinds())

    def locate(self, batch: ViewBatch, view: int, size: tuple[int, int]) -> CellAxes:
        """Cell centres of a view's feature map of ``size`` (height, width)."""
        chosen = batch.views[view]
        return cell_axes(chosen.box, size[0], size[1], chosen.flip)

    def _gammas(self, kind: str) -> tuple[float, float]:
        gamma = self.config.gamma if kind == "location" else self.config.feature_gamma
        assert gamma is not None
        return gamma[0], gamma[1]

    def kept_pairs(self, kind: str, query_large: bool, argument: int, cells: int) -> int | None:
        """How many pairs to keep when matching from a view of this size, at this position of the pair; None for all."""
        first = query_large if self.config.gamma_by == "size" else argument == 0
        value = self._gammas(kind)[0 if first else 1]
        if value == 0:
            return None
        return max(1, round(value * cells)) if value < 1 else int(value)

    def __call__(self, maps: Sequence[CellMap]) -> Loss:
        """Loss of all views, large ones first, its terms named ``location_<term>`` and ``feature_<term>``."""
        return self.evaluate(maps)[0]

    def evaluate(self, maps: Sequence[CellMap], progress: float = 1.0) -> tuple[Loss, Callable[[], dict[str, Tensor]]]:
        """The loss, and a function that computes `match_statistics` of this batch, averaged over its pairs.

        Args:
            progress: share of the training that is done, for ``feature_after``.
        """
        vectors = [full_precision(m.vectors) for m in maps]
        true_axes = [m.axes for m in maps]
        axes = true_axes if self.config.flip_aware else [_unflipped(a) for a in true_axes]
        large = [m.large for m in maps]
        kinds = [(k, w) for k, w in self.config.kinds() if k == "location" or progress >= self.config.feature_after]
        searched = [v.detach() for v in vectors]
        if self.reads_features:
            searched = [m.features.detach() for m in maps if m.features is not None]
            if len(searched) < len(maps):
                raise ValueError("feature_space=features: every map needs the features it was embedded from")
        directions = list(self._directions(kinds, axes, large, searched))
        matchings = [self._matching(axes, d) for d in directions]
        loss = matched_loss(self.criterion, vectors, matchings, whole_maps=self.config.statistics == "maps")
        return loss, partial(_statistics, true_axes, directions)

    def _matching(self, axes: Sequence[CellAxes], d: Direction) -> Matching:
        """A direction as the criterion takes it."""
        limit = self.config.max_distance if d.kind == "location" else self.config.feature_max_distance
        valid = within(d.kept, axes[d.x], axes[d.y], limit) if limit else None
        if d.mutual is not None:
            certain = d.mutual.gather(1, d.kept.query)
            valid = certain if valid is None else valid & certain
        every = self.config.order == "raster" and d.kept.key.shape == d.nearest.key.shape
        return Matching(d.kind, d.x, d.y, None if every else d.kept.query, d.kept.key, d.weight, valid)

    def _directions(
        self,
        kinds: Sequence[tuple[str, float]],
        axes: Sequence[CellAxes],
        large: Sequence[bool],
        vectors: Sequence[Tensor],
    ) -> Iterator[Direction]:
        """All matchings between pairs of views, each pair's distances computed once."""
        share = 1.0 if self.config.sum_directions else 0.5
        for kind, kind_weight in kinds:
            cache: dict[tuple[int, int], Candidates] = {}
            for m, n, pair_weight in self._pairs(large, kind):
                if (m, n) not in cache:
                    cache[m, n], cache[n, m] = self._candidates(kind, axes, vectors, m, n)
                for argument, (x, y) in enumerate(((m, n), (n, m))):
                    nearest, score, certain = cache[x, y]
                    gamma = self.kept_pairs(kind, large[x], argument, nearest.key.shape[1])
                    kept = top_gamma(nearest, gamma, str(self.config.order), score)
                    yield Direction(kind, x, y, pair_weight * kind_weight * share, nearest, kept, certain)

    def _candidates(
        self, kind: str, axes: Sequence[CellAxes], vectors: Sequence[Tensor], m: int, n: int
    ) -> tuple[Candidates, Candidates]:
        """From view ``m`` to ``n`` and back."""
        if kind == "location":
            there, back = nearest_locations(axes[m], axes[n]), nearest_locations(axes[n], axes[m])
            return Candidates(there), Candidates(back)
        squared = squared_distances(vectors[m], vectors[n])
        there, back = nearest_features(squared), nearest_features(squared.mT)
        scores: list[Tensor | None] = [None, None]
        if self.config.feature_rank == "ratio":
            scores = [ratios(squared), ratios(squared.mT)]
        elif self.config.feature_rank == "spread":
            scores = [spread_out(d.distance, axes[v].x.shape[1]) for d, v in ((there, m), (back, n))]
        certain = (mutual(there, back), mutual(back, there)) if self.config.mutual else (None, None)
        return Candidates(there, scores[0], certain[0]), Candidates(back, scores[1], certain[1])

    def _pairs(self, large: Sequence[bool], kind: str) -> list[tuple[int, int, float]]:
        """Pairs with their weight; (m, n) and (n, m) are one pair of weight two unless gamma depends on the order."""
        num_large = sum(large)
        ordered = view_pairs(len(large), num_large)
        first, second = self._gammas(kind)
        if self.config.gamma_by == "argument" and first != second:
            return [(m, n, 1 / len(ordered)) for m, n in ordered]
        return [(m, n, (2 if n < num_large else 1) / len(ordered)) for m, n in ordered if m < n]


class Candidates(NamedTuple):
    """The nearest cell of every cell; what is low for the pairs to keep, None for the distance; which of them are
    mutual, None where that is not asked."""

    nearest: Nearest
    score: Tensor | None = None
    mutual: Tensor | None = None


class Direction(NamedTuple):
    """Matches of one kind from view ``x`` to view ``y``: of every cell, those kept, and which cells' are mutual."""

    kind: str
    x: int
    y: int
    weight: float
    nearest: Nearest
    kept: Matches
    mutual: Tensor | None


def _unflipped(axes: CellAxes) -> CellAxes:
    """The grid as if no view had been mirrored."""
    return axes._replace(x=axes.x.sort(dim=1).values)


def _statistics(axes: Sequence[CellAxes], directions: Sequence[Direction]) -> dict[str, Tensor]:
    """`match_statistics` of every direction of every pair of views, averaged where they are defined."""
    by_pair: dict[tuple[int, int], dict[str, Nearest | Matches]] = {}
    for d in directions:
        by_pair.setdefault((d.x, d.y), {}).update({d.kind: d.nearest, f"kept_{d.kind}": d.kept})
    found: dict[str, list[Tensor]] = {}
    for (x, y), options in by_pair.items():
        for name, value in match_statistics(axes[x], axes[y], **options).items():  # type: ignore[arg-type]
            found.setdefault(name, []).append(value)
    return {f"match_{name}": torch.stack(values).nanmean() for name, values in found.items()}
