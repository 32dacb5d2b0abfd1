"""How much of their space features use: RankMe of each layer, alignment and uniformity, dead channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import evaluating
from ssl_toolkit.evaluation.match_counts import Crop, places
from ssl_toolkit.evaluation.protocol import MAPS, POOLED, PROTOCOLS, STAGES, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.reading import read_batches
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.view_pairs import (
    UNIT,
    PairViews,
    double,
    forward,
    pair_batches,
    pair_features,
    spread,
    units,
)
from ssl_toolkit.progress import progress_bar

DEAD = 1e-6
"""A channel whose range is below this share of its largest value never changes: that is the rounding of float32."""

ALIGNMENT_POWER, UNIFORMITY_T = 2.0, 2.0
"""Wang and Isola's alpha and t."""

NUMBERS = 2**24
"""Distances held at once: 128 MiB."""


@dataclass
class SpectrumConfig:
    """Options of spectrum.

    Attributes:
        images: test images, spread evenly over the split, at most: of the ranks. RankMe's authors take 25,600.
        pairs: test images at most, two views of each: of alignment and uniformity.
        cells: matched pairs of cells at most, of the uniformity of local features.
        views: how the two views are drawn.
        seed: of views and the choice of cells.
    """

    images: int = 25600
    pairs: int = 4096
    cells: int = 8192
    views: PairViews = field(default_factory=PairViews)
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.images, self.pairs, self.cells) < 2 or self.seed < 0:
            raise ValueError("images, pairs and cells must be 2 or more, seed not negative")


def singular_values(products: Tensor) -> Tensor:
    """Singular values, the largest first, of a matrix ``x`` whose ``x.T @ x`` (or ``x @ x.T``) is ``products``.

    In float64, where what rounding leaves of a zero (below 2e-16 of the largest square, times the side) is 0.
    """
    squares = torch.linalg.eigvalsh(products).flip(0)
    limit = squares[0] * len(squares) * torch.finfo(squares.dtype).eps
    return squares.where(squares > limit, 0).sqrt()


def rankme(singular: Tensor) -> float:
    """``exp`` of the entropy of singular values, each as a share of their sum: from 1 to their number; nan of zeros.

    Source: Garrido et al. 2023 (arXiv:2210.02885), Eq. 1. Vectors are not centred. Theirs adds 1e-7 to each share for
    float32; in float64 a share of 0 simply adds nothing.
    """
    share = singular / singular.sum()
    return float(torch.special.entr(share).sum().exp())


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances ``(N,)``, float64, of the unit vectors of ``(N, D)`` and ``(N, D)``: their mean is from 0 to 4.

    Source: Wang and Isola 2020 (arXiv:2005.10242), Section 4.1, alpha 2.
    """
    return (_unit(x) - _unit(y)).norm(dim=1).pow(ALIGNMENT_POWER)


def uniformity(x: Tensor) -> float:
    """``log`` of the mean of ``exp(-2 d^2)`` over pairs of different unit vectors of ``(N, D)``: 0 where all are equal,
    lower where they spread. Rows are taken in strips: N x N is never held.

    Source: Wang and Isola 2020 (arXiv:2005.10242), Section 4.1, t 2.
    """
    x, count = _unit(x), len(x)
    total = x.new_zeros(())
    for start in range(0, count, max(1, NUMBERS // count)):
        strip = x[start : start + max(1, NUMBERS // count)]
        squared = (strip.square().sum(1)[:, None] + x.square().sum(1) - 2 * strip @ x.T).clamp_min(0)
        similar = (-UNIFORMITY_T * squared).exp()
        similar[torch.arange(len(strip)), torch.arange(start, start + len(strip))] = 0
        total += similar.sum()
    return float((total / (count * (count - 1))).log())


def _unit(x: Tensor) -> Tensor:
    return F.normalize(double(x), dim=1)


class Layer:
    """The vectors of one layer, streamed: their second moments, range and number. Memory grows with their length only.

    Args:
        name: for people.
    """

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, 0
        self._products: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Take up ``(n, D)``."""
        x = double(x)
        if self._products is None:
            self._products = x.new_zeros(x.shape[1], x.shape[1])
            self._low, self._high = x.amin(0), x.amax(0)
        self._products += x.T @ x
        self._low, self._high = torch.minimum(self._low, x.amin(0)), torch.maximum(self._high, x.amax(0))
        self.rows += len(x)

    def report(self) -> dict[str, Any]:
        """RankMe and the share of the dimension it is in percent, percent of dead channels, and the condition number
        (None where a direction is not used at all)."""
        assert self._products is not None
        dimension = len(self._products)
        singular = singular_values(self._products)
        singular = singular[: min(self.rows, dimension)]
        rank = rankme(singular) if bool(singular[0] > 0) else 0.0
        largest = torch.maximum(self._low.abs(), self._high.abs())
        dead = (self._high - self._low <= DEAD * largest).double().mean()
        return {
            "layer": self.name,
            "dimension": dimension,
            "vectors": self.rows,
            "rankme": rank,
            "effective_rank": 100 * rank / dimension,
            "dead": float(100 * dead),
            "condition": float(singular[0] / singular[-1]) if bool(singular[-1] > 0) else None,
        }


@PROTOCOLS.register("spectrum", SpectrumConfig)
class Spectrum(Protocol):
    """Ranks of the features of evaluated images, alignment and uniformity of those of two random views.

    Reads no labels, trains nothing and chooses nothing.
    """

    metric = "effective_rank"
    describes = "singular values of features, no training"

    options: SpectrumConfig

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        if len(datasets["test"]) < 2:
            raise UserError(
                f"spectrum needs 2 test images or more: {datasets['test'].name} has {len(datasets['test'])}"
            )

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {}  # of a bank it would hold every stage of every image

    def run(self, data: EvalData) -> Outcome:
        with evaluating(data.source.backbone.to(data.device)):
            layers = self._layers(data)
            pairs = self._pairs(data)
        pooled, cells = layers[-1], layers[-2]
        notes = [
            f"RankMe {pooled['rankme']:.1f} of {pooled['dimension']} (cells {cells['rankme']:.1f}); alignment "
            f"{pairs['pooled']['alignment']:.3f}, uniformity {pairs['pooled']['uniformity']:.2f} are no percentages"
        ]
        if pooled["vectors"] < pooled["dimension"]:
            notes.append(f"{pooled['vectors']} images cannot fill {pooled['dimension']} dimensions")
        metrics = {
            "effective_rank": pooled["effective_rank"],
            "rankme": pooled["rankme"],
            "cells_effective_rank": cells["effective_rank"],
            "dead": cells["dead"],
            "alignment": pairs["pooled"]["alignment"],
            "uniformity": pairs["pooled"]["uniformity"],
        }
        return Outcome(metrics, details={"layers": layers, **pairs}, notes=notes)

    def _layers(self, data: EvalData) -> list[dict[str, Any]]:
        """Each stage pooled, the cells of the last map, the pooled vector."""
        parts = units(spread(len(data.datasets["test"]), self.options.images))
        named = [f"stage {i}, pooled" for i in range(1, len(data.source.backbone.stage_channels) + 1)]
        layers = [Layer(name) for name in [*named, "cells of the last map", "pooled"]]
        with progress_bar("spectrum", sum(map(len, parts)), console=data.console) as bar:
            rows = [np.array(part) for part in parts]
            dataset, preparation = data.datasets["test"], data.preparation
            for images, _ in read_batches(dataset, rows, preparation, masks=False, device=data.device):
                found = forward(data, images, MAPS, STAGES)
                stages = [double(found[f"{STAGES}{i}"]).mean((2, 3)) for i in range(len(layers) - 2)]
                for layer, x in zip(layers, [*stages, _cells(found[MAPS]).flatten(0, 1), found[POOLED]]):
                    layer.add(x)
                bar.advance(len(images))
        return [layer.report() for layer in layers]

    def _pairs(self, data: EvalData) -> dict[str, Any]:
        """Alignment and uniformity of pooled vectors, and of cells that lie on each other."""
        options = self.options
        parts = units(spread(len(data.datasets["test"]), options.pairs))
        recipe = options.views.recipe(options.views.size or data.preparation.size)
        each = -(-options.cells * UNIT // sum(map(len, parts)))
        pooled: list[tuple[Tensor, Tensor]] = []
        local: list[tuple[Tensor, Tensor]] = []
        distance, count = 0.0, 0
        with progress_bar("alignment", sum(map(len, parts)), "pairs", console=data.console) as bar:
            for number, batch in enumerate(pair_batches(data, "test", parts, recipe, options.seed)):
                one, other = pair_features(data, batch, MAPS)
                crops = [Crop(view.box, view.flip, *one[MAPS].shape[2:]) for view in batch.views]
                a, b = _matched(one[MAPS], other[MAPS], crops)
                distance, count = distance + float(alignment(a, b).sum()), count + len(a)
                generator = np.random.default_rng((options.seed, number))
                chosen = torch.from_numpy(generator.permutation(len(a))[:each]).to(a.device)
                local.append((a[chosen].float().cpu(), b[chosen].float().cpu()))
                pooled.append((one[POOLED].cpu(), other[POOLED].cpu()))
                bar.advance(len(batch))
        x, y = (torch.cat(parts) for parts in zip(*pooled))
        return {
            "pooled": {"vectors": len(x), "alignment": float(alignment(x, y).mean()), "uniformity": _both(x, y, data)},
            "cells": _cells_report(local, distance, count, options.cells, data),
        }


def _cells_report(
    local: Sequence[tuple[Tensor, Tensor]], distance: float, count: int, limit: int, data: EvalData
) -> dict[str, Any]:
    x, y = (torch.cat(parts)[:limit] for parts in zip(*local))
    return {
        "vectors": count,
        "sampled": len(x),
        "alignment": distance / count if count else None,
        "uniformity": _both(x, y, data) if len(x) > 1 else None,
    }


def _both(x: Tensor, y: Tensor, data: EvalData) -> float:
    """Mean uniformity of the first views and of the second, as its authors have it in their loss."""
    return (uniformity(x.to(data.device)) + uniformity(y.to(data.device))) / 2


def _cells(maps: Tensor) -> Tensor:
    """``(B, C, H, W)`` to ``(B, H * W, C)``."""
    return maps.flatten(2).mT


def _matched(one: Tensor, other: Tensor, crops: Sequence[Crop]) -> tuple[Tensor, Tensor]:
    """Vectors ``(M, C)`` of the cells of the first view whose centre lies in the second, and of the cells there."""
    true = places(crops[0], crops[1])
    image, cell = true.inside.nonzero(as_tuple=True)
    there = (true.row * crops[1].width + true.column)[image, cell]
    a, b = _cells(one), _cells(other)
    return a[image, cell], b[image, there]
