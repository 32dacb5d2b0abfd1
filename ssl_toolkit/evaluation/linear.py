"""Linear classification of frozen, pooled features."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import FeatureBank
from ssl_toolkit.evaluation.heads import (
    HeadOptimizer,
    Heads,
    Standardizer,
    batches,
    check_lrs,
    edge_note,
    resident,
    summed_loss,
    threads_for,
)
from ssl_toolkit.evaluation.metrics import ranks, top_accuracy
from ssl_toolkit.evaluation.protocol import (
    PROTOCOLS,
    EvalData,
    Outcome,
    Protocol,
    best_setting,
    missing_classes,
)
from ssl_toolkit.progress import progress_bar

TEST_CHUNK = 1024


@dataclass
class LinearConfig:
    """Options of the linear probe: SGD with momentum 0.9, learning rate decayed to 0 along a cosine.

    Attributes:
        lrs: learning rates, each for a head of its own; as given, not scaled by the batch size.
        epochs: passes over the training features.
        batch_size: images a step.
        weight_decay: on weights, not on biases.
        head_norm: standardise each feature by the training mean and deviation (a BatchNorm without affine
            parameters before the head); it changes accuracy, so it is named in the result.
        seed: of the order of images.
    """

    lrs: list[float] = field(default_factory=lambda: [0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
    epochs: int = 50
    batch_size: int = 256
    weight_decay: float = 0.0
    head_norm: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_lrs(self.lrs)
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError("epochs and batch_size must be 1 or more")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, not {self.weight_decay}")


def train_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    options: LinearConfig,
    norm: Standardizer,
    device: torch.device,
) -> Heads:
    """One head for each of ``options.lrs`` on ``features`` ``(N, D)`` and ``labels`` ``(N,)``."""
    features, labels, norm = resident(features, device), labels.to(device), norm.to(device)
    heads = Heads(len(options.lrs), features.shape[1], classes).to(device)
    steps = options.epochs * math.ceil(len(features) / options.batch_size)
    optimizer = HeadOptimizer(heads, "sgd", options.lrs, options.weight_decay, steps)
    few = threads_for(heads.size * options.batch_size, device)
    with few, progress_bar("linear probe", options.epochs * len(features)) as bar:
        for rows in batches(len(features), options.batch_size, steps, options.seed):
            x = norm(features[rows.to(features.device)].to(device))
            optimizer.step(summed_loss(heads(x.T), labels[rows.to(device)]))
            bar.advance(len(rows))
    return heads


@torch.no_grad()
def linear_ranks(heads: Heads, bank: FeatureBank, norm: Standardizer, device: torch.device) -> Tensor:
    """`ranks` of the true class of every image for every head, ``(L, N)``."""
    assert bank.labels is not None
    norm = norm.to(device)
    found = []
    for x, labels in zip(torch.split(bank.pooled, TEST_CHUNK), torch.split(bank.labels, TEST_CHUNK)):
        scores = heads(norm(x.to(device)).T).permute(1, 2, 0)
        found.append(ranks(scores, labels.to(device)).cpu())
    return torch.cat(found, 1)


@PROTOCOLS.register("linear", LinearConfig)
class Linear(Protocol):
    """A linear classifier on pooled features; its learning rate chosen on validation."""

    needs = ("labels",)
    metric = "top1"
    describes = "linear classifier on cached pooled features"

    options: LinearConfig

    def run(self, data: EvalData) -> Outcome:
        assert data.classes is not None
        assert data.train.labels is not None
        options, train, device = self.options, data.train, data.device
        norm = Standardizer.fit(train.pooled, options.head_norm)
        heads = train_linear(train.pooled, data.train.labels, len(data.classes), options, norm, device)
        val, test = (linear_ranks(heads, split, norm, device) for split in (data.val, data.test))
        top1 = {name: top_accuracy(rank, 1) for name, rank in {"val": val, "test": test}.items()}
        diverged = heads.diverged()
        grid = [
            {
                "lr": lr,
                "val_top1": None if diverged[i] else float(top1["val"][i]),
                "test_top1": None if diverged[i] else float(top1["test"][i]),
                "diverged": diverged[i],
            }
            for i, lr in enumerate(options.lrs)
        ]
        best = best_setting(grid, "val_top1")
        if best < 0:
            raise UserError(f"linear: every learning rate diverged ({options.lrs}): add lower ones to linear.lrs")
        metrics = {"top1": float(top1["test"][best])}
        if len(data.classes) > 5:
            metrics["top5"] = float(top_accuracy(test[best], 5))
        lr = options.lrs[best]
        counts = torch.bincount(data.train.labels, minlength=len(data.classes))
        notes = missing_classes(counts, data.classes, "training image") + edge_note(options.lrs, lr, "linear.lrs")
        return Outcome(metrics, {"lr": lr}, grid, notes=notes)
