"""Which cells does local matching match? What each rule of choosing pairs chooses, by masks and by known places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.match_counts import Crop
from ssl_toolkit.evaluation.protocol import MAPS, PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.reading import checked_mask
from ssl_toolkit.evaluation.rule_counts import (
    CHANCE,
    RIGHT,
    Cells,
    Pairs,
    cell_classes,
    feature_pairs,
    location_pairs,
    rule_counts,
    shares,
)
from ssl_toolkit.evaluation.source import LocalVectors, Source
from ssl_toolkit.evaluation.view_pairs import PairViews, over_units, pair_features
from ssl_toolkit.views import ViewBatch

FEATURES, EMBEDDINGS = SPACES = ("features", "embeddings")
LOCATION, RANDOM = "location", "random"
"""What stands in the column of spaces for pairs that no features choose."""

BACKGROUND = "background"

SHOWN = {
    "space": "space",
    "rule": "rule",
    "kept": "kept",
    "on_objects": "object",
    "inside": "inside",
    "right_0": "right",
    "right_1": "right ±1",
    "right_1_objects": "object ±1",
    "right_1_background": "bg. ±1",
    "same_class": "same class",
}

HEADLINES = {
    "top_gamma_on_objects": ("top gamma", "on_objects"),
    "top_gamma_right": ("top gamma", "right_1"),
    "mutual_on_objects": ("mutual", "on_objects"),
    "mutual_right": ("mutual", "right_1"),
    "all_on_objects": ("all", "on_objects"),
}
"""Metrics: which number of which rule."""

Rules = dict[tuple[str, str], NDArray[np.float64]]
"""By space and rule, `rule_counts` of some images, both directions together."""


@dataclass
class MatchRulesConfig:
    """Options of match_rules.

    Attributes:
        images: test images, spread evenly over the split, at most.
        gamma: share of the cells of a map that the rules ``top gamma``, ``by ratio`` and ``spread`` keep.
        max_distance: in cell diagonals, of the rules named ``near``.
        spaces: where features are compared: ``features``, the backbone's map, and ``embeddings``, the local
            projector's, by which training matched. The last stands for the protocol. None takes what there is.
        views: how the two views are drawn.
        seed: of views.
    """

    images: int = 2048
    gamma: float = 0.41
    max_distance: float = 1.5
    spaces: list[str] | None = None
    views: PairViews = field(default_factory=PairViews)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 2 or self.seed < 0:
            raise ValueError("images must be 2 or more, seed not negative")
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma is a share of the cells, above 0 and at most 1, not {self.gamma}")
        if not self.max_distance > 0:
            raise ValueError(f"max_distance must be above 0 cell diagonals, not {self.max_distance}")
        for value in self.spaces or ():
            if value not in SPACES:
                raise unknown("match_rules.spaces", value, SPACES)
        if self.spaces is not None and (not self.spaces or len(set(self.spaces)) < len(self.spaces)):
            raise ValueError(f"spaces must hold one or both of {', '.join(SPACES)}, each once, or be null")


@PROTOCOLS.register("match_rules", MatchRulesConfig)
class MatchRules(Protocol):
    """Which pairs of cells each rule of VICRegL's local matching would pull together, of two random crops of an image.

    Trains nothing and chooses nothing; masks say what a cell shows, boxes and flips where its true place is.
    """

    needs = ("masks",)
    metric = "top_gamma_right"
    parallel = True
    describes = "pairs of cells that rules of local matching choose, no training"
    shown = SHOWN

    options: MatchRulesConfig

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        if len(datasets["test"]) < 2:
            raise UserError(
                f"match_rules needs 2 test images or more: {datasets['test'].name} has {len(datasets['test'])}"
            )
        if EMBEDDINGS in (self.options.spaces or ()):
            self._spaces(source)

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {}  # features of random views, which no bank holds

    def run(self, data: EvalData) -> Outcome:
        options = self.options
        spaces, notes = self._spaces(data.source)
        background = background_of(data.datasets["test"].mask_classes or ())
        recipe = options.views.recipe(options.views.size or data.preparation.size)

        def work(batch: ViewBatch, number: int) -> tuple[Rules, tuple[int, int]]:
            return self._unit(data, batch, spaces, background)

        found = over_units(data, options.images, recipe, options.seed, "match_rules", work)
        tables = report([rules for rules, _ in found])
        details: dict[str, Any] = {"map": list(found[0][1])}
        for (space, rule), row in tables.items():
            details.setdefault(space, {})[rule] = row
        best = list(spaces)[-1]
        metrics = {name: tables[best, rule][key] for name, (rule, key) in HEADLINES.items()}
        count = sum(len(rules[LOCATION, "all"]) for rules, _ in found)
        notes = [_what(tables, best, count), *notes]
        if background < 0:
            notes.append(f"no class is called {BACKGROUND}: all classes count as objects")
        return Outcome(
            {name: value for name, value in metrics.items() if value is not None},
            grid=[{"space": space, "rule": rule, **_columns(row)} for (space, rule), row in tables.items()],
            details=details,
            notes=notes,
        )

    def _spaces(self, source: Source) -> tuple[dict[str, LocalVectors], list[str]]:
        """What makes vectors of maps in each space, and a note on what is left out.

        Raises:
            UserError: embeddings are asked for, and there are none.
        """
        found: dict[str, LocalVectors] = {}
        notes = []
        for space in self.options.spaces or SPACES:
            if space == FEATURES:
                found[space] = cell_vectors
                continue
            try:
                found[space] = source.local_vectors()
            except UserError as error:
                if self.options.spaces is not None:
                    raise UserError(f"match_rules.spaces: there are no embeddings: {error}") from error
                notes.append(f"features alone: {error}")
        return found, notes

    def _unit(
        self, data: EvalData, batch: ViewBatch, spaces: Mapping[str, LocalVectors], background: int
    ) -> tuple[Rules, tuple[int, int]]:
        """Of a few images, both directions together; and the map's height and width."""
        dataset, options = data.datasets["test"], self.options
        maps = [found[MAPS] for found in pair_features(data, batch, MAPS)]
        height, width = maps[0].shape[2:]
        shapes = [(round(h), round(w)) for h, w in batch.image_size.tolist()]
        masks = [checked_mask(dataset, index, shape) for index, shape in zip(batch.index.tolist(), shapes)]
        crops = [Crop(view.box, view.flip, height, width) for view in batch.views]
        a, b = (Cells(crop, cell_classes(masks, crop)) for crop in crops)
        gamma = max(1, round(options.gamma * height * width))
        chosen: dict[str, tuple[dict[str, Pairs], dict[str, Pairs]]] = {
            LOCATION: (location_pairs(a, b, gamma), location_pairs(b, a, gamma))
        }
        for space, vectors_of in spaces.items():
            with torch.no_grad():
                one, other = (vectors_of(m).float() for m in maps)
            chosen[space] = feature_pairs((one, other), (a, b), gamma, options.max_distance)
        classes = len(dataset.mask_classes or ())
        rules = {
            (space, rule): rule_counts(there[rule], a, b, classes, background)
            + rule_counts(back[rule], b, a, classes, background)
            for space, (there, back) in chosen.items()
            for rule in there
        }
        return rules, (height, width)


def background_of(classes: Sequence[str]) -> int:
    """The mask class that is no object, -1 where there is none; it comes first where there is one."""
    return 0 if classes and classes[0].casefold() == BACKGROUND else -1


def cell_vectors(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H * W, C)``: the features themselves."""
    return maps.flatten(2).mT


def report(found: Sequence[Rules]) -> dict[tuple[str, str], dict[str, float | int | None]]:
    """`shares` by space and rule of all units, and those of all cells each with a random cell."""
    tables = {key: shares(np.concatenate([unit[key] for unit in found])) for key in found[0]}
    every = tables[LOCATION, "all"]
    chance = dict(every)
    for name, by_chance in (*zip(RIGHT, CHANCE), ("same_class", "chance_same_class")):
        for suffix in ("", "_error"):
            chance[f"{name}{suffix}"] = every[f"{by_chance}{suffix}"]
    return {**tables, (RANDOM, "all"): chance}


def _columns(row: Mapping[str, float | int | None]) -> dict[str, float | int | None]:
    """A row without its chances, which are a row of their own in a table; the standard errors last."""
    kept = [key for key in row if not key.startswith("chance")]
    return {key: row[key] for key in sorted(kept, key=lambda key: key.endswith("_error"))}


def _what(tables: Mapping[tuple[str, str], Mapping[str, float | int | None]], best: str, images: int) -> str:
    errors = [row[f"{key}_error"] for row in tables.values() for key in SHOWN if f"{key}_error" in row]
    largest = max((error for error in errors if error is not None), default=0)
    cells = tables[best, "all"]["pairs"]
    return f"by {best}, {cells:,} cells of {images:,} pairs; standard errors in the table are {largest:.1f} or less"
