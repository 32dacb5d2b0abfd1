"""Linear classification of frozen, pooled features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import nearest
from ssl_toolkit.evaluation.classification import classification_outcome, head_ranks
from ssl_toolkit.evaluation.heads import (
    HeadOptimizer,
    Heads,
    Standardizer,
    batches,
    check_lrs,
    resident,
    summed_loss,
    threads_for,
)
from ssl_toolkit.evaluation.logistic import logistic_path
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.subsets import LabelsConfig, labelled
from ssl_toolkit.progress import progress_bar

SOLVERS = ("sgd", "lbfgs")

TOLERANCE = 1e-5
"""Of the gradient where L-BFGS ends: a tenth of scikit-learn's."""


@dataclass
class LinearConfig:
    """Options of the linear probe.

    Attributes:
        solver: ``sgd`` with momentum 0.9, the learning rate decayed to 0 along a cosine; or ``lbfgs``, multinomial
            logistic regression to its optimum.
        lrs: of sgd, each for a head of its own; as given, not scaled by the batch size.
        epochs: of sgd, passes over the training features.
        batch_size: of sgd, images a step.
        weight_decay: of sgd, on weights, not on biases.
        cs: of lbfgs, inverse strengths of the L2 penalty, scikit-learn's ``C``. The range is that of DINOv2's logistic
            regression (arXiv:2304.07193), 10^-6 to 10^5, in steps of 10.
        max_iter: of lbfgs, iterations for each of ``cs`` at most.
        head_norm: standardise each feature by the training mean and deviation (a BatchNorm without affine
            parameters before the head); it changes accuracy, so it is named in the result.
        labels: which training images have labels.
        seed: of the order of images.
    """

    solver: str = "sgd"
    lrs: list[float] = field(default_factory=lambda: [0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
    epochs: int = 50
    batch_size: int = 256
    weight_decay: float = 0.0
    cs: list[float] = field(default_factory=lambda: [10.0**power for power in range(-6, 6)])
    max_iter: int = 1000
    head_norm: bool = True
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"unknown solver {self.solver!r}: {nearest(self.solver, SOLVERS)}")
        check_lrs(self.lrs)
        check_lrs(self.cs, "cs")
        if self.epochs < 1 or self.batch_size < 1 or self.max_iter < 1:
            raise ValueError("epochs and batch_size and max_iter must be 1 or more")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, not {self.weight_decay}")


def train_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    options: LinearConfig,
    norm: Standardizer,
    device: torch.device,
    console: Console | None = None,
) -> Heads:
    """One head for each of ``options.lrs`` on ``features`` ``(N, D)`` and ``labels`` ``(N,)``."""
    features, labels, norm = resident(features, device), labels.to(device), norm.to(device)
    heads = Heads(len(options.lrs), features.shape[1], classes).to(device)
    steps = options.epochs * math.ceil(len(features) / options.batch_size)
    optimizer = HeadOptimizer(heads, "sgd", options.lrs, options.weight_decay, steps)
    few = threads_for(heads.size * options.batch_size, device)
    with few, progress_bar("linear probe", options.epochs * len(features), console=console) as bar:
        for rows in batches(len(features), options.batch_size, steps, options.seed):
            x = norm(features[rows.to(features.device)].to(device))
            optimizer.step(summed_loss(heads(x.T), labels[rows.to(device)]))
            bar.advance(len(rows))
    return heads


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    options: LinearConfig,
    norm: Standardizer,
    device: torch.device,
    console: Console | None = None,
) -> tuple[Heads, list[bool]]:
    """Logistic regression for each of ``options.cs``, and which of them converged."""
    heads = Heads(len(options.cs), features.shape[1], classes)
    with progress_bar("logistic regression", len(options.cs), "penalties", console=console) as bar:
        fits = logistic_path(
            norm(features),
            labels,
            classes,
            options.cs,
            max_iter=options.max_iter,
            tolerance=TOLERANCE,
            device=device,
            bar=bar,
        )
    for weight, bias, fit in zip(heads.weights, heads.biases, fits):
        weight.data, bias.data = fit.weight, fit.bias
    return heads.to(device), [fit.converged for fit in fits]


@PROTOCOLS.register("linear", LinearConfig)
class Linear(Protocol):
    """A linear classifier on pooled features; its learning rate or penalty chosen on validation."""

    needs = ("labels",)
    metric = "top1"
    describes = "linear classifier on cached pooled features"

    options: LinearConfig

    @property
    def variant(self) -> str:
        solver = "" if self.options.solver == "sgd" else self.options.solver
        return "-".join(filter(None, (solver, self.options.labels.variant)))

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        labelled(self.options.labels, datasets["train"])

    def run(self, data: EvalData) -> Outcome:
        assert data.classes is not None
        assert data.train.labels is not None
        options, device = self.options, data.device
        chosen = labelled(options.labels, data.datasets["train"])
        features, labels = data.train.pooled, data.train.labels
        if options.labels.variant:  # else there is nothing to copy
            features, labels = features[chosen.rows], labels[chosen.rows]
        norm = Standardizer.fit(features, options.head_norm)
        settings: list[dict[str, Any]]
        notes = []
        if options.solver == "sgd":
            heads = train_linear(features, labels, len(data.classes), options, norm, device, data.console)
            settings, diverged, option = [{"lr": lr} for lr in options.lrs], heads.diverged(), "linear.lrs"
        else:
            heads, converged = fit_linear(features, labels, len(data.classes), options, norm, device, data.console)
            settings, diverged, option = [{"c": c} for c in options.cs], [False] * len(options.cs), "linear.cs"
            short = [f"{c:g}" for c, done in zip(options.cs, converged) if not done]
            notes = [f"c {', '.join(short)}: not converged after {options.max_iter} iterations"] if short else []
        there = norm.to(device)
        val, test = (head_ranks(heads, split, there, device) for split in (data.val, data.test))
        outcome = classification_outcome(settings, diverged, val, test, data.classes, chosen, option)
        outcome.notes += notes
        return outcome
