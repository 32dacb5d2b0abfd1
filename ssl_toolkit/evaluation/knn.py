"""k nearest neighbours by cosine similarity, with several k and temperatures from one search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.criteria.distributed import rank, sum_over_ranks, world_size
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.bank import Bank
from ssl_toolkit.evaluation.features import FeatureBank
from ssl_toolkit.evaluation.metrics import ranks, top_accuracy
from ssl_toolkit.evaluation.neighbours import ENGINES, nearest, pick_engine
from ssl_toolkit.evaluation.protocol import (
    POOLED,
    PROTOCOLS,
    EvalData,
    Outcome,
    Protocol,
    best_setting,
    missing_classes,
)
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.progress import Bar, progress_bar

QUERY_CHUNK = 1024
"""Queries whose votes are counted at once, at most."""
SEARCHED = 8192
"""Queries whose neighbours are looked for at once."""
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
        leave_one_out: choose (k, vote) on the training images, each without itself among its neighbours, not on the
            validation images: for data whose validation images are also those that are reported on.
        engine: what looks for neighbours: ``torch``, ``faiss`` (``pip install faiss-cpu``), or ``auto``: torch on GPUs
            and where the CPU multiplies bfloat16, else faiss where it is installed. The result is the same.
    """

    ks: list[int] = field(default_factory=lambda: [1, 5, 10, 20, 50, 100, 200])
    temperatures: list[float] = field(default_factory=lambda: [0.03, 0.07, 0.2])
    uniform: bool = True
    leave_one_out: bool = False
    engine: str = "auto"

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ValueError(f"ks must be a list of numbers of 1 or more, not {list(self.ks)}")
        if not all(0 < t < math.inf for t in self.temperatures):
            raise ValueError(f"temperatures must be positive, not {list(self.temperatures)}")
        if not self.temperatures and not self.uniform:
            raise ValueError("temperatures is empty and uniform is false: no vote is left to try")
        if self.engine not in ENGINES:
            raise unknown("knn.engine", self.engine, ENGINES)


def knn_predict(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    num_classes: int,
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
    similarity, index = nearest(Bank(bank), queries, max(ks))
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
    """Classify each image by its nearest training images; (k, vote) chosen on validation, or on the training images
    themselves."""

    needs = ("labels",)
    metric = "top1"
    parallel = True
    describes = "nearest training images, pooled features"

    options: KnnConfig

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        train = datasets["train"]
        pick_engine(self.options.engine, torch.device("cpu"), len(train))
        if len(train) <= self.options.leave_one_out:
            raise UserError(f"{train.name} train: {len(train)} images are too few for neighbours")

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {split: frozenset({POOLED}) for split in ("train", self._chosen_on, "test")}

    @property
    def _chosen_on(self) -> str:
        return "train" if self.options.leave_one_out else "val"

    def run(self, data: EvalData) -> Outcome:
        assert data.classes is not None
        assert data.train.labels is not None
        chosen_on, length = self._chosen_on, len(data.train) - self.options.leave_one_out
        ks = sorted({k for k in self.options.ks if k <= length}) or [length]
        temperatures = sorted(set(self.options.temperatures)) + [math.inf] * self.options.uniform
        bank = Bank(data.train.pooled, data.device)
        splits = {chosen_on: data.banks[chosen_on], "test": data.test}
        total = sum(len(_share(split)) for split in splits.values())
        with progress_bar("kNN", total, console=data.console) as bar:
            found = {
                name: self._ranks(data, bank, split, ks, temperatures, bar, own=name == "train")
                for name, split in splits.items()
            }
        top1 = {name: top_accuracy(ranks, 1) for name, ranks in found.items()}
        points = [(i, j) for i in range(len(ks)) for j in range(len(temperatures))]
        grid = [
            {
                **setting(ks[i], temperatures[j]),
                f"{chosen_on}_top1": float(top1[chosen_on][i, j]),
                "test_top1": float(top1["test"][i, j]),
            }
            for i, j in points
        ]
        i, j = points[best_setting(grid, f"{chosen_on}_top1")]
        metrics = {"top1": float(top1["test"][i, j])}
        if len(data.classes) > 5:
            metrics["top5"] = float(top_accuracy(found["test"], 5)[i, j])
        details = {"engine": pick_engine(self.options.engine, bank.device, len(bank))}
        return Outcome(metrics, setting(ks[i], temperatures[j]), grid, details, self._notes(data, length, ks))

    def _notes(self, data: EvalData, length: int, ks: Sequence[int]) -> list[str]:
        assert data.classes is not None
        assert data.train.labels is not None
        counts = torch.bincount(data.train.labels, minlength=len(data.classes))
        notes = missing_classes(counts, data.classes, "training image")
        if max(self.options.ks) > length:
            notes.append(f"k above the {length} training images left out; tried {list(ks)}")
        if self.options.leave_one_out:
            notes.append("(k, vote) chosen on the training images, each without itself")
        return notes

    def _ranks(
        self,
        data: EvalData,
        bank: Bank,
        split: FeatureBank,
        ks: Sequence[int],
        temperatures: Sequence[float],
        bar: Bar,
        own: bool,
    ) -> Tensor:
        """`ranks` of the true class of every image of ``split``, ``(len(ks), len(temperatures), N)``; every process
        takes a share of them. ``own``: the images are those of the bank."""
        assert data.classes is not None
        assert data.train.labels is not None
        assert split.labels is not None
        labels, classes = data.train.labels.to(bank.device), len(data.classes)
        found = torch.zeros(len(ks), len(temperatures), len(split), dtype=torch.int64, device=bank.device)
        size = max(1, min(QUERY_CHUNK, SCORES // (len(ks) * len(temperatures) * classes)))
        for part in torch.split(_share(split), SEARCHED):
            queries = split.pooled[int(part[0]) : int(part[-1]) + 1] if len(part) else split.pooled[:0]
            similarity, index = nearest(
                bank, queries, max(ks), engine=self.options.engine, own=part if own else None, advance=bar.advance
            )
            for rows, near, voters in zip(*(torch.split(x, size) for x in (part, similarity, labels[index]))):
                scores = vote(near, voters, ks, temperatures, classes)
                found[..., rows.to(bank.device)] = ranks(scores, split.labels[rows].to(bank.device))
        return sum_over_ranks(found).cpu()


def _share(split: FeatureBank) -> Tensor:
    """Images of ``split`` that this process looks at."""
    return torch.arange(len(split)).tensor_split(world_size())[rank()]


def setting(k: int, temperature: float) -> dict[str, Any]:
    """A point of the grid as it is written: no infinity in JSON."""
    if math.isinf(temperature):
        return {"k": k, "vote": "uniform"}
    return {"k": k, "vote": "weighted", "temperature": temperature}
