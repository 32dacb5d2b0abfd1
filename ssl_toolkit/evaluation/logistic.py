"""Multinomial logistic regression with an L2 penalty, on whatever device the features fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.evaluation.heads import resident
from ssl_toolkit.progress import Bar

LOGITS = 2**24
"""Logits held at once: 64 MiB."""


@dataclass(frozen=True)
class Fit:
    """One classifier.

    Attributes:
        weight: ``(C, D)`` float32; ``bias`` ``(C,)``.
        converged: whether the gradient became small enough in the iterations allowed.
    """

    weight: Tensor
    bias: Tensor
    converged: bool


class LogisticLoss:
    """``mean cross entropy + ||W||^2 / (2 c N)`` and its gradient, scikit-learn's objective divided by ``c N``.

    Products run in float32, sums over images in float64.

    Args:
        features: ``(N, D)`` float32.
        labels: ``(N,)`` int64.
    """

    def __init__(self, features: Tensor, labels: Tensor, classes: int, device: torch.device) -> None:
        self.features, self.labels = resident(features, device), labels.to(device)
        self.classes, self.device = classes, device
        self.chunk = max(1, LOGITS // classes)

    def split(self, flat: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Weight ``(C, D)`` and bias ``(C,)`` of a vector of all parameters."""
        both = torch.from_numpy(flat).view(self.classes, -1)
        return both[:, :-1], both[:, -1]

    @torch.no_grad()
    def __call__(self, flat: NDArray[np.float64], c: float) -> tuple[float, NDArray[np.float64]]:
        weight, bias = self.split(flat)
        w, b = weight.float().to(self.device), bias.float().to(self.device)
        value = torch.zeros((), dtype=torch.float64)
        gradient = torch.zeros(self.classes, weight.shape[1] + 1, dtype=torch.float64)
        for x, labels in zip(torch.split(self.features, self.chunk), torch.split(self.labels, self.chunk)):
            x = x.to(self.device)
            # Classes first: over a few of them a CPU takes the softmax along memory several times as fast.
            log = F.log_softmax(torch.addmm(b, x, w.T).T.contiguous(), 0)
            true = labels, torch.arange(len(labels), device=self.device)
            value -= log[true].cpu().sum(dtype=torch.float64)
            error = log.exp_()
            error[true] -= 1
            gradient[:, :-1] += (error @ x).cpu()
            gradient[:, -1] += error.sum(1).cpu()
        gradient /= len(self.labels)
        gradient[:, :-1] += weight / (c * len(self.labels))
        penalty = float(weight.square().sum()) / (2 * c * len(self.labels))
        return float(value) / len(self.labels) + penalty, gradient.flatten().numpy()


def logistic_path(
    features: Tensor,
    labels: Tensor,
    classes: int,
    cs: Sequence[float],
    *,
    max_iter: int,
    tolerance: float,
    device: torch.device,
    bar: Bar | None = None,
) -> list[Fit]:
    """A classifier for each of ``cs``, by L-BFGS; the bias is not penalised, as in scikit-learn.

    From the strongest penalty to the weakest, each starts where the last one ended: the problem is convex, so this
    changes how long it takes and not where it ends, but for ``tolerance``.

    Args:
        features: ``(N, D)`` float32.
        cs: inverse strengths of the penalty, scikit-learn's ``C``.
        max_iter: iterations of each at most.
        tolerance: of the largest number in the gradient of the mean loss.

    Returns:
        In the order of ``cs``, on the CPU.
    """
    loss = LogisticLoss(features, labels, classes, device)
    flat = np.zeros(classes * (features.shape[1] + 1))
    fits: dict[float, Fit] = {}
    for c in sorted(cs):
        options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps}
        found = scipy.optimize.minimize(loss, flat, args=(c,), jac=True, method="L-BFGS-B", options=options)
        flat = found.x
        weight, bias = loss.split(flat.copy())
        # Status 2 is a line search that float32 ends, by then near enough or not.
        converged = found.status == 0 or (found.status == 2 and bool(np.abs(found.jac).max() <= 10 * tolerance))
        fits[c] = Fit(weight.float().contiguous(), bias.float().contiguous(), converged)
        if bar is not None:
            bar.advance()
    return [fits[c] for c in cs]
