"""k nearest neighbours by cosine similarity, with several k and temperatures from one search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_toolkit.evaluation.features import FeatureBank
from ssl_toolkit.evaluation.metrics import ranks, top_accuracy
from ssl_toolkit.evaluation.protocol import (
    PROTOCOLS,
    EvalData,
    Outcome,
    Protocol,
    best_setting,
    missing_classes,
)
from ssl_toolkit.progress import Bar, progress_bar

QUERY_CHUNK, BANK_CHUNK = 1024, 16384
"""Rows and columns of similarity held at once: 64 MiB."""
SCORES = 2**25
"""Class scores held at once: 128 MiB; with many classes fewer queries are taken at a time."""


@dataclass
class KnnConfig:
    """Options of the kNN protocol.

    Attributes:
        ks: numbers of neighbours to try; those above the number of training images are left out.
        temperatures: of the vote, weight ``exp(cosine / temperature)`` (Wu et al. 2018, arXiv:1805.01978:
            0.07).
        uniform: also try the vote in which every neighbour counts the same.
    """

    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50, 100, 200])
    temperatures: list[float] = field(default_factory=lambda: [0.03, 0.07, 0.2])
    uniform: bool = True

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be a list of numbers of 1 or more, not {list(self.ks)}")
        if not all(0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"temperatures must be positive, not {list(self.temperatures)}")
        if not self.temperatures and not self.uniform:
            raise ValueError("temperatures is empty and uniform is false: no vote is left to try")


def neighbours(bank: Tensor, queries: Tensor, k: int, *, chunk: int = BANK_CHUNK) -> tuple[Tensor, Tensor]:
    """The ``k`` most similar rows of ``bank`` for each query.

    Args:
        bank: ``(M, D)`` of unit length, M at least k.
        queries: ``(Q, D)`` of unit length.
        chunk: rows of ``bank`` compared at once; memory is ``Q * (chunk + 2 k)`` numbers, whatever M is.

    Returns:
        Similarity ``(Q, k)``, falling, and position in ``bank`` ``(Q, k)`` int64.
    """
    best: Tensor | None = None
    index: Tensor | None = None
    for start in range(0, len(bank), chunk):
        part = bank[start : start + chunk]
        similarity, position = (queries @ part.T).topk(min(k, len(part)), dim=1)
        position += start
        if best is not None and index is not None:
            similarity, position = torch.cat([best, similarity], 1), torch.cat([index, position], 1)
            similarity, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
            position = position.gather(1, order)
        best, index = similarity, position
    assert best is not None
    assert index is not None
    return best, index


def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
    chunk: int = BANK_CHUNK,
) -> Tensor:
    """Class scores of each query by a vote of its nearest neighbours in cosine similarity.

    The score of a class is the share of the votes that its members among the k nearest hold, each with weight
    ``exp(cosine / temperature)``.

    Args:
        bank: ``(M, D)``, any length; ``labels`` ``(M,)`` int64 of it.
        queries: ``(Q, D)``, any length; the caller cuts them into chunks.
        ks: numbers of neighbours, none above M.
        temperatures: ``math.inf`` is the uniform vote.

    Returns:
        ``(len(ks), len(temperatures), Q, num_classes)`` float32; sums to 1 over classes.
    """
    bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    similarity, index = neighbours(bank, queries, max(ks), chunk=chunk)
    return vote(similarity, labels[index], ks, temperatures, num_classes)


def vote(
    similarity: Tensor, voters: Tensor, ks: Sequence[int], temperatures: Sequence[float], num_classes: int
) -> Tensor:
    """`knn_predict` from the similarity and class of each neighbour, ``(Q, max(ks))`` each, nearest first."""
    scores = similarity.new_zeros(len(ks), len(temperatures), len(similarity), num_classes)
    for j, temperature in enumerate(temperatures):
        # Less the largest, so that a low temperature does not overflow; shares stay what they are.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        for i, k in enumerate(ks):
            scores[i, j].scatter_add_(1, voters[:, :k], weight[:, :k])
            scores[i, j] /= weight[:, :k].sum(1, keepdim=True)
    return scores


@PROTOCOLS.register("knn", KnnConfig)
class Knn(Protocol):
    """Classify each image by its nearest training images; (k, vote) chosen on validation."""

    needs = ("labels",)
    metric = "top1"
    describes = "nearest training images, pooled features"

    options: KnnConfig

    def run(self, data: EvalData) -> Outcome:
        assert data.classes is not None
        assert data.train.labels is not None
        device = data.device
        ks = sorted({k for k in self.options.ks if k <= len(data.train)}) or [len(data.train)]
        temperatures = sorted(set(self.options.temperatures)) + [math.inf] * self.options.uniform
        with progress_bar("kNN", len(data.val) + len(data.test)) as bar:
            val, test = (self._ranks(data, split, ks, temperatures, device, bar) for split in (data.val, data.test))
        val_top1, test_top1, test_top5 = top_accuracy(val, 1), top_accuracy(test, 1), top_accuracy(test, 5)
        points = [(i, j) for i in range(len(ks)) for j in range(len(temperatures))]
        grid = [
            {
                **setting(ks[i], temperatures[j]),
                "val_top1": float(val_top1[i, j]),
                "test_top1": float(test_top1[i, j]),
            }
            for i, j in points
        ]
        i, j = points[best_setting(grid, "val_top1")]
        metrics = {"top1": float(test_top1[i, j])}
        if len(data.classes) > 5:
            metrics["top5"] = float(test_top5[i, j])
        counts = torch.bincount(data.train.labels, minlength=len(data.classes))
        notes = missing_classes(counts, data.classes, "training image")
        if max(self.options.ks) > len(data.train):
            notes.append(f"k above the {len(data.train)} training images left out; tried {ks}")
        return Outcome(metrics, setting(ks[i], temperatures[j]), grid, notes=notes)

    @staticmethod
    def _ranks(
        data: EvalData,
        split: FeatureBank,
        ks: Sequence[int],
        temperatures: Sequence[float],
        device: torch.device,
        bar: Bar,
    ) -> Tensor:
        """`ranks` of the true class of every image of ``split``, ``(len(ks), len(temperatures), N)``."""
        assert data.classes is not None
        assert data.train.labels is not None
        assert split.labels is not None
        bank, labels = F.normalize(data.train.pooled.to(device), dim=1), data.train.labels.to(device)
        settings, classes = len(ks) * len(temperatures), len(data.classes)
        found = []
        for rows in torch.split(torch.arange(len(split)), max(1, min(QUERY_CHUNK, SCORES // (settings * classes)))):
            queries = F.normalize(split.pooled[rows].to(device), dim=1)
            similarity, index = neighbours(bank, queries, max(ks))
            scores = vote(similarity, labels[index], ks, temperatures, classes)
            found.append(ranks(scores, split.labels[rows].to(device)).cpu())
            bar.advance(len(rows))
        return torch.cat(found, -1)


def setting(k: int, temperature: float) -> dict[str, Any]:
    """A point of the grid as it is written: no infinity in JSON."""
    if math.isinf(temperature):
        return {"k": k, "vote": "uniform"}
    return {"k": k, "vote": "weighted", "temperature": temperature}
