"""What is measured: accuracy from class scores, intersection over union from a confusion matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_toolkit.evaluation.features import VOID


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the true one; 0 is a correct prediction.

    Of equal scores the lower class comes first, so that the result depends on no sorting order. A row with
    nan ranks last: a diverged classifier is wrong, never right by accident.

    Args:
        scores: ``(..., N, C)``.
        labels: ``(N,)`` int64.

    Returns:
        ``(..., N)`` int64, from 0 to C.
    """
    classes = scores.shape[-1]
    index = labels[:, None].expand(*scores.shape[:-1], 1)
    true = scores.gather(-1, index)
    lower = torch.arange(classes, device=scores.device) < labels[:, None]
    before = (scores > true) | ((scores == true) & lower)
    return before.sum(-1).masked_fill_(scores.isnan().any(-1), classes)


def top_accuracy(rank: Tensor, k: int) -> Tensor:
    """Percent of rows whose true class is among the first ``k``: ``(..., N)`` ranks to ``(...)`` float64."""
    return (rank < k).double().mean(-1) * 100


def confusion(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How often each true class was predicted as each class, void pixels left out.

    Args:
        prediction: ``(L, ...)`` int64, L predictions of the same pixels.
        truth: ``(...)`` uint8 or int64, `VOID` where not scored.

    Returns:
        ``(L, classes, classes)`` int64: row the true class, column the predicted one.
    """
    heads = len(prediction)
    scored = truth.long().flatten()
    scored = scored.where(scored != VOID, classes)  # void is counted as one more class, then dropped
    head = torch.arange(heads, device=truth.device)[:, None] * (classes + 1)
    cell = (head + scored) * classes + prediction.flatten(1)
    counts = torch.bincount(cell.flatten(), minlength=heads * (classes + 1) * classes)
    return counts.view(heads, classes + 1, classes)[:, :classes]


def class_iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class in percent, nan for a class neither present nor predicted.

    Args:
        matrix: ``(..., K, K)`` counts from `confusion`, over a whole data set.

    Returns:
        ``(..., K)`` float64.
    """
    counts = matrix.double()
    hit = counts.diagonal(dim1=-2, dim2=-1)
    return 100 * hit / (counts.sum(-1) + counts.sum(-2) - hit)


def segmentation_metrics(matrix: Tensor) -> dict[str, float]:
    """Metrics of one confusion matrix ``(K, K)``, in percent.

    ``miou`` is the mean of `class_iou` over the classes that occur in the truth or the prediction,
    ``foreground_miou`` the same without class 0, ``pixel_accuracy`` the share of scored pixels that are
    right. A mean over nothing is 0.
    """
    iou, counts = class_iou(matrix), matrix.double()
    return {
        "miou": _mean(iou),
        "foreground_miou": _mean(iou[1:]),
        "pixel_accuracy": float(100 * counts.diagonal().sum() / counts.sum().clamp_min(1)),
    }


def _mean(values: Tensor) -> float:
    mean = float(values.nanmean())
    return 0.0 if math.isnan(mean) else mean
