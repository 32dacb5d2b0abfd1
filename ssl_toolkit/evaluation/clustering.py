"""Unsupervised segmentation: k-means on the cells of feature maps, clusters named by the Hungarian algorithm."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.features import FeatureBank
from ssl_toolkit.evaluation.metrics import class_iou, confusion, segmentation_metrics
from ssl_toolkit.evaluation.protocol import (
    MAPS,
    MASKS,
    POOLED,
    PROTOCOLS,
    STAGES,
    EvalData,
    Outcome,
    Protocol,
    missing_classes,
)
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.progress import Bar, progress_bar

LAYERS = ("maps", "stages")
ASSIGNMENTS = ("hungarian", "majority")

PIXEL_SCORES = 2**25
"""Scores held at once at mask resolution: 128 MiB."""


@dataclass
class ClusteringConfig:
    """Options of clustering.

    Attributes:
        layer: ``maps``, the last feature map, or ``stages``, the whole pyramid joined at its finest resolution.
        clusters: None is the number of mask classes; more is over-clustering, and the result is named after it.
        assign: how clusters are named after classes on validation: ``hungarian`` is one to one, clusters that are left
            over take the class most of their pixels have; ``majority`` names all of them so.
        normalize: bring the vector of each cell (of each stage) to unit length first.
        cells: of training images that k-means is fitted on, at most.
        fit_images: training images that they come from, at most.
        iterations: of k-means, at most.
        seeds: of k-means, each a run of its own; means and deviations over them are reported.
    """

    layer: str = "maps"
    clusters: int | None = None
    assign: str = "hungarian"
    normalize: bool = True
    cells: int = 50_000
    fit_images: int = 4096
    iterations: int = 100
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self) -> None:
        for name, valid in (("layer", LAYERS), ("assign", ASSIGNMENTS)):
            if getattr(self, name) not in valid:
                raise unknown(f"clustering.{name}", getattr(self, name), valid)
        if self.clusters is not None and self.clusters < 2:
            raise ValueError(f"clusters must be null or 2 or more, not {self.clusters}")
        if min(self.cells, self.fit_images, self.iterations) < 1:
            raise ValueError("cells, fit_images and iterations must be 1 or more")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be one or more different numbers, not negative, not {list(self.seeds)}")


def assignment(counts: NDArray[np.int64], how: str) -> NDArray[np.int64]:
    """Names clusters: ``(classes, clusters)`` pixels (or images) of each class in each cluster to ``(clusters,)``
    classes. A cluster without any is called class 0.

    Args:
        how: ``hungarian`` or ``majority``, see `ClusteringConfig`.
    """
    named: NDArray[np.int64] = counts.argmax(0)
    if how == "hungarian":
        classes, clusters = linear_sum_assignment(counts, maximize=True)
        named[clusters] = classes
    return named


def renamed(counts: Tensor, names: NDArray[np.int64]) -> Tensor:
    """``(classes, clusters)`` counts to the confusion ``(classes, classes)`` of clusters called ``names``."""
    matrix = torch.zeros(len(counts), len(counts), dtype=counts.dtype)
    return matrix.index_add_(1, torch.from_numpy(names), counts)


def kmeans(x: NDArray[np.float32], clusters: int, seed: int, iterations: int) -> KMeans:
    """scikit-learn's Lloyd k-means from one k-means++ start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters
        return KMeans(clusters, n_init=1, random_state=seed, max_iter=iterations).fit(x)


def joined_cells(bank: FeatureBank, index: Sequence[int] | slice, options: ClusteringConfig) -> Tensor:
    """Vectors of the cells of some images, ``(n, C, h, w)`` float32."""
    if options.layer == "maps":
        assert bank.maps is not None
        return _normal(bank.maps[index].float(), options.normalize)
    assert bank.stages is not None
    size = bank.stages[0].shape[2:]
    levels = [_normal(stage[index].float(), options.normalize) for stage in bank.stages]
    return torch.cat([levels[0], *(F.interpolate(x, size=size, mode="bilinear") for x in levels[1:])], 1)


def _normal(x: Tensor, enabled: bool) -> Tensor:
    return F.normalize(x, dim=1) if enabled else x


def training_cells(bank: FeatureBank, options: ClusteringConfig) -> NDArray[np.float32]:
    """``(n, C)`` cells of training images, drawn by a fixed seed: as many of each image."""
    generator = np.random.default_rng(0)
    images = np.sort(generator.permutation(len(bank))[: min(options.fit_images, options.cells)])
    chosen = []
    for part in np.array_split(images, -(-len(images) // 16)):
        vectors = joined_cells(bank, part.tolist(), options).flatten(2).mT.numpy()
        for cells in vectors:
            chosen.append(cells[generator.permutation(len(cells))[: options.cells // len(images)]])
    return np.concatenate(chosen)


def cluster_counts(
    bank: FeatureBank,
    centres: Sequence[NDArray[np.float32]],
    classes: int,
    options: ClusteringConfig,
    device: torch.device,
    bar: Bar,
) -> list[Tensor]:
    """For each k-means ``centres`` ``(k, C)`` the pixels of each class in each cluster, ``(classes, k)`` int64.

    A pixel's vector is that of the cells, upsampled bilinearly to the mask. Which centre is nearest depends on
    ``2 x c - c^2`` alone, which is linear in x: so these scores are upsampled, which are fewer.
    """
    assert bank.masks is not None
    clusters, size = len(centres[0]), bank.masks.shape[1:]
    side = max(classes, clusters)
    totals = [torch.zeros(side, side, dtype=torch.int64, device=device) for _ in centres]
    given = [torch.from_numpy(c).to(device) for c in centres]
    each = max(1, min(64, PIXEL_SCORES // (clusters * size[0] * size[1])))
    for start in range(0, len(bank), each):
        rows = slice(start, start + each)
        cells, masks = joined_cells(bank, rows, options).to(device), bank.masks[rows].to(device)
        for total, c in zip(totals, given):
            scores = torch.einsum("bchw,kc->bkhw", cells, 2 * c) - c.square().sum(1)[:, None, None]
            pixels = F.interpolate(scores, size=size, mode="bilinear").max(1).indices
            total += confusion(pixels[None], masks, side)[0]
        bar.advance(len(masks))
    return [total[:classes, :clusters].cpu() for total in totals]


@PROTOCOLS.register("clustering", ClusteringConfig)
class Clustering(Protocol):
    """k-means on cells of training images without labels; its clusters are named on validation and scored on test.

    The literature (IIC, PiCIE, STEGO) names them on the images that are scored; that number is in
    ``details.named_on_test``. Where images have labels, pooled features are clustered as well.

    Source: Ji et al. 2019 (arXiv:1807.06653), Section 4 for the one-to-one assignment; Cho et al. 2021
    (arXiv:2103.17070) for clusters of pixels' features.
    """

    needs = ("masks",)
    metric = "miou"
    describes = "k-means on cached cells, no labels"

    options: ClusteringConfig

    @property
    def variant(self) -> str:
        options = self.options
        parts = [
            options.layer if options.layer != "maps" else "",
            f"{options.clusters}clusters" if options.clusters is not None else "",
            options.assign if options.assign != "hungarian" else "",
        ]
        return "-".join(filter(None, parts))

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        cells = MAPS if self.options.layer == "maps" else STAGES
        scored = frozenset({POOLED, cells, MASKS})
        return {"train": frozenset({POOLED, cells}), "val": scored, "test": scored}

    def run(self, data: EvalData) -> Outcome:
        assert data.mask_classes is not None
        options, classes = self.options, len(data.mask_classes)
        centres, cells = self._fit(data, options.clusters or classes)
        with progress_bar("clustering metrics", len(data.val) + len(data.test), console=data.console) as bar:
            val, test = (
                cluster_counts(split, centres, classes, options, data.device, bar) for split in (data.val, data.test)
            )
        names = [assignment(counts.numpy(), options.assign) for counts in val]
        matrices = [renamed(counts, name) for counts, name in zip(test, names)]
        rows = [segmentation_metrics(matrix) for matrix in matrices]
        if data.classes is not None:
            rows = [row | more for row, more in zip(rows, image_clusters(data, len(data.classes), options))]
        means, deviations = _over_seeds(rows)
        on_test = [renamed(counts, assignment(counts.numpy(), options.assign)) for counts in test]
        details = {
            "clusters": options.clusters or classes,
            "cells": cells,
            "deviations": deviations,
            "named_on_test": _over_seeds([segmentation_metrics(matrix) for matrix in on_test])[0],
            "per_class_iou": _per_class(matrices, data.mask_classes),
        }
        on_val = [segmentation_metrics(renamed(counts, name))["miou"] for counts, name in zip(val, names)]
        grid = [
            {"seed": seed, "val_miou": miou, **{f"test_{name}": value for name, value in row.items()}}
            for seed, miou, row in zip(options.seeds, on_val, rows)
        ]
        notes = missing_classes(val[0].sum(1), data.mask_classes, "validation pixel to name a cluster by")
        notes += missing_classes(test[0].sum(1), data.mask_classes, "test pixel")
        if len(rows) > 1:
            notes.append(f"mean of {len(rows)} seeds, mIoU with a standard deviation of {deviations['miou']:.1f}")
        return Outcome(means, {}, grid, details, notes)

    def _fit(self, data: EvalData, clusters: int) -> tuple[list[NDArray[np.float32]], int]:
        """Centres for each seed, and the number of cells they were fitted on."""
        options = self.options
        vectors = training_cells(data.train, options)
        if len(vectors) < clusters:
            raise UserError(
                f"clustering: {len(vectors)} training cells for {clusters} clusters: raise clustering.cells"
            )
        centres = []
        with progress_bar("k-means", len(options.seeds), "fits", console=data.console) as bar:
            for seed in options.seeds:
                centres.append(kmeans(vectors, clusters, seed, options.iterations).cluster_centers_)
                bar.advance()
        return centres, len(vectors)


def image_clusters(data: EvalData, classes: int, options: ClusteringConfig) -> list[dict[str, float]]:
    """Pooled features in as many clusters as image classes: accuracy once each is named (one to one, on validation),
    and normalised mutual information with the labels, both in percent on test; a row for each seed."""
    banks = (data.train, data.val, data.test)
    train, val, test = (_normal(bank.pooled, options.normalize).numpy() for bank in banks)
    val_labels, labels = (bank.labels.numpy() for bank in banks[1:] if bank.labels is not None)
    train = train[np.random.default_rng(0).permutation(len(train))[: options.cells]]
    if len(train) < classes:
        return [{} for _ in options.seeds]
    rows = []
    for seed in options.seeds:
        model = kmeans(train, classes, seed, options.iterations)
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (val_labels, model.predict(val)), 1)
        found = model.predict(test)
        rows.append(
            {
                "image_accuracy": float(100 * (assignment(counts, "hungarian")[found] == labels).mean()),
                "image_nmi": float(100 * normalized_mutual_info_score(labels, found)),
            }
        )
    return rows


def _over_seeds(rows: Sequence[dict[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean of each metric, and its standard deviation (of a sample; 0 for one seed)."""
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    means = {name: float(value.mean()) for name, value in values.items()}
    spare = int(len(rows) > 1)
    return means, {name: float(value.std(ddof=spare)) for name, value in values.items()}


def _per_class(matrices: Sequence[Tensor], names: Sequence[str]) -> dict[str, float | None]:
    """Mean over seeds of each class's IoU, None for a class neither present nor predicted."""
    mean = torch.stack([class_iou(matrix) for matrix in matrices]).nanmean(0).tolist()
    return {name: None if value != value else value for name, value in zip(names, mean)}
