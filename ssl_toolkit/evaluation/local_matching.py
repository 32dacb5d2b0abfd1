"""Local features without labels: between two known crops of an image, is the nearest feature the right place?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray

from ssl_toolkit.criteria.distributed import rank
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.features import evaluating
from ssl_toolkit.evaluation.match_arrays import match_arrays
from ssl_toolkit.evaluation.match_counts import (
    COUNTS,
    RADII,
    Crop,
    Similarities,
    auc,
    match_counts,
    overlap,
    places,
    similarities,
    standard_error,
)
from ssl_toolkit.evaluation.protocol import MAPS, PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.view_pairs import PairViews, over_units, pair_batches, pair_features, spread
from ssl_toolkit.views import ViewBatch

AUGMENTS = ("photometric", "geometry")
DISTANCES = ("cosine", "l2")
KEPT = 10
"""Matches marked in each example, as in a run's own."""

ERRORS = ("error_cells", "error_pixels", "chance_error_cells", "chance_error_pixels")


@dataclass
class MatchingConfig:
    """Options of matching.

    Attributes:
        images: test images, spread evenly over the split, at most.
        augment: what is measured: ``photometric`` also changes the colours of each view, ``geometry`` crops and mirrors
            alone, with the same boxes. The first stands for the protocol.
        distances: between features: ``cosine``, and ``l2`` as VICRegL matches. The first stands for the protocol.
        overlaps: edges of the bins of the two crops' intersection over union, from 0 to 1.
        views: how the two views are drawn.
        examples: images kept with their views, boxes and matches.
        seed: of views and random pairs.
    """

    images: int = 2048
    augment: list[str] = field(default_factory=lambda: list(AUGMENTS))
    distances: list[str] = field(default_factory=lambda: list(DISTANCES))
    overlaps: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
    views: PairViews = field(default_factory=PairViews)
    examples: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 2 or self.examples < 0 or self.seed < 0:
            raise ValueError("images must be 2 or more, examples and seed not negative")
        for name, valid in (("augment", AUGMENTS), ("distances", DISTANCES)):
            given = getattr(self, name)
            for value in given:
                if value not in valid:
                    raise unknown(f"matching.{name}", value, valid)
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must hold one or more of {', '.join(valid)}, each once")
        edges = list(self.overlaps)
        if len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or any(a >= b for a, b in pairwise(edges)):
            raise ValueError(f"overlaps must rise from 0 to 1, not {edges}")


class Unit(NamedTuple):
    """What is counted of a few images, both directions together.

    Attributes:
        overlap: ``(n,)``, intersection over union of the two crops.
        mirrored: ``(n,)`` bool, whether one view is the mirror image of the other.
        counts: by distance, ``(n, len(COUNTS))``.
        similarities: images numbered in the unit.
    """

    overlap: NDArray[np.float64]
    mirrored: NDArray[np.bool_]
    counts: dict[str, NDArray[np.float64]]
    similarities: Similarities


@PROTOCOLS.register("matching", MatchingConfig)
class LocalMatching(Protocol):
    """Where the nearest feature of each cell of one random crop lies in another crop of the same image.

    Reads no labels, trains nothing and chooses nothing. The idea of asking whether the nearest feature is the right
    place is that of VICRegL's Figures 3 to 5, here counted over a data set.
    """

    metric = "match_0"
    parallel = True
    describes = "nearest features of two crops of an image, no training"

    options: MatchingConfig

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        if len(datasets["test"]) < 2:
            raise UserError(
                f"matching needs 2 test images or more: {datasets['test'].name} has {len(datasets['test'])}"
            )

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {}  # features of random views, which no bank holds

    def run(self, data: EvalData) -> Outcome:
        options = self.options
        details: dict[str, Any] = {}
        grid = []
        for augment in options.augment:
            found, grid_size = self._measure(data, augment)
            details[augment] = report(found, options)
            details["map"] = list(grid_size)
            for distance in options.distances:
                row = details[augment][distance]["all"]
                grid.append({"augment": augment, "distance": distance, **row})
        first = details[options.augment[0]]
        best = first[options.distances[0]]["all"]
        if not best["cells"]:
            raise UserError("matching: no two crops overlap: raise matching.images or matching.views.scale")
        metrics = {f"match_{r}": best[f"match_{r}"] for r in RADII}
        metrics |= {f"chance_{r}": best[f"chance_{r}"] for r in RADII}
        metrics["auc"] = first["similarity"]["all"]["auc_same_image"]
        note = f"{options.augment[0]} views, {options.distances[0]}: {best['cells']:,} cells of {best['pairs']:,} pairs"
        examples = self._examples(data) if options.examples and rank() == 0 else {}
        return Outcome(metrics, {}, grid, details, [note], examples)

    def _measure(self, data: EvalData, augment: str) -> tuple[list[Unit], tuple[int, int]]:
        """All units in order, in every process; and the map's height and width."""
        options, recipe = self.options, self._recipe(data, augment)

        def work(batch: ViewBatch, number: int) -> tuple[Unit, tuple[int, int]]:
            return self._unit(data, batch, number)

        found = over_units(data, options.images, recipe, options.seed, f"matching, {augment}", work)
        return [unit for unit, _ in found], found[0][1]

    def _recipe(self, data: EvalData, augment: str) -> Any:
        views = self.options.views
        return views.recipe(views.size or data.preparation.size, photometric=augment == "photometric")

    def _unit(self, data: EvalData, batch: ViewBatch, number: int) -> tuple[Unit, tuple[int, int]]:
        maps = [found[MAPS] for found in pair_features(data, batch, MAPS)]
        height, width = maps[0].shape[2:]
        crops = [Crop(view.box, view.flip, height, width) for view in batch.views]
        counts = {name: np.zeros((len(batch), len(COUNTS))) for name in self.options.distances}
        similar = []
        for direction, (a, b) in enumerate(((0, 1), (1, 0))):
            true = places(crops[a], crops[b])
            for name in counts:
                counts[name] += match_counts(maps[a], maps[b], true, crops[b], name)
            generator = np.random.default_rng((self.options.seed, number, direction))
            similar.append(similarities(maps[a], maps[b], true, generator))
        joined = Similarities(*(np.concatenate(values) for values in zip(*similar)))
        mirrored = (crops[0].flip ^ crops[1].flip).numpy()
        return Unit(overlap(crops[0].box, crops[1].box).numpy(), mirrored, counts, joined), (height, width)

    def _examples(self, data: EvalData) -> dict[str, NDArray[Any]]:
        dataset = data.datasets["test"]
        index = spread(len(dataset), self.options.examples).tolist()
        recipe = self._recipe(data, self.options.augment[0])
        (batch,) = pair_batches(data, "test", [index], recipe, self.options.seed)
        with evaluating(data.source.backbone.to(data.device)):
            maps = [found[MAPS].float().cpu() for found in pair_features(data, batch, MAPS)]
        vectors = [m.flatten(2).mT for m in maps]
        if self.options.distances[0] == "cosine":
            vectors = [F.normalize(v, dim=2) for v in vectors]
        height, width = maps[0].shape[2:]
        images = [dataset.image(position) for position in index]
        arrays = match_arrays(batch, images, (vectors[0], vectors[1]), (height, width), KEPT)
        return {**arrays, "index": np.array(index)}


def report(found: Sequence[Unit], options: MatchingConfig) -> dict[str, Any]:
    """By distance and of the similarities: everything, by overlap, and by whether one view is mirrored."""
    overlaps = np.concatenate([unit.overlap for unit in found])
    mirrored = np.concatenate([unit.mirrored for unit in found])
    starts = np.cumsum([0, *(len(unit.overlap) for unit in found)])
    joined = Similarities(
        matched=np.concatenate([u.similarities.matched for u in found]),
        matched_image=np.concatenate([u.similarities.matched_image + s for u, s in zip(found, starts)]),
        same=np.concatenate([u.similarities.same for u in found]),
        other=np.concatenate([u.similarities.other for u in found]),
        image=np.concatenate([u.similarities.image + s for u, s in zip(found, starts)]),
    )
    edges = options.overlaps
    bins = np.searchsorted(edges[1:-1], overlaps, "right")
    groups = {
        "all": np.ones(len(overlaps), bool),
        **{f"overlap {a:g} to {b:g}": bins == i for i, (a, b) in enumerate(pairwise(edges))},
        "same orientation": ~mirrored,
        "mirrored": mirrored,
    }
    result: dict[str, Any] = {}
    for name in options.distances:
        rows = np.concatenate([unit.counts[name] for unit in found])
        result[name] = {group: shares(rows[chosen]) for group, chosen in groups.items()}
    result["similarity"] = {group: similarity_means(joined, chosen) for group, chosen in groups.items()}
    return result


def shares(rows: NDArray[np.float64]) -> dict[str, float | int | None]:
    """Of some images' rows of `match_counts`: numbers of pairs and cells, percent right within each radius with its
    standard error over images and its chance, mean errors. None where there is no cell."""
    total = dict(zip(COUNTS, rows.sum(0)))
    cells = total["cells"]
    result: dict[str, float | int | None] = {"pairs": len(rows), "cells": round(cells)}
    for radius in RADII:
        name = f"match_{radius}"
        result[name] = 100 * total[name] / cells if cells else None
        result[f"chance_{radius}"] = 100 * total[f"chance_{radius}"] / cells if cells else None
        result[f"{name}_error"] = standard_error(rows[:, COUNTS.index(name)], rows[:, 0])
    return result | {name: total[name] / cells if cells else None for name in ERRORS}


def similarity_means(found: Similarities, chosen: NDArray[np.bool_]) -> dict[str, float | int | None]:
    """Mean cosine similarities of some images' pairs of cells, and how well they tell matched pairs from others."""
    matched = found.matched[chosen[found.matched_image]]
    same, other = (values[chosen[found.image]] for values in (found.same, found.other))
    return {
        "cells": len(matched),
        "matched": _mean(matched),
        "same_image": _mean(same),
        "other_image": _mean(other),
        "auc_same_image": auc(matched, same),
        "auc_other_image": auc(matched, other),
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None
