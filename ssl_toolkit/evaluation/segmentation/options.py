"""What both segmentation protocols choose alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.heads import edge_note
from ssl_toolkit.evaluation.metrics import class_iou, segmentation_metrics
from ssl_toolkit.evaluation.protocol import Outcome, best_setting, missing_classes

OPTIMIZERS = ("adamw", "sgd")
FEATURES = ("auto", "last", "stages")


def chosen_features(features: str, backbone: Backbone) -> str:
    """``last`` or ``stages``: for ``auto`` the last map of a ResNet, four levels of a ConvNeXt or ViT (VICRegL,
    appendix, linear segmentation)."""
    if features != "auto":
        return features
    return "last" if backbone.norm == "batch" else "stages"


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """`UserError` with the nearest names unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise unknown(key, value, choices)


def segmentation_outcome(
    name: str, lrs: Sequence[float], diverged: Sequence[bool], val: Tensor, test: Tensor, classes: Sequence[str]
) -> tuple[Outcome, int]:
    """The outcome without examples, and which learning rate was chosen: the best mIoU on validation.

    Args:
        name: of the protocol.
        diverged: by learning rate.
        val, test: ``(L, K, K)``, a confusion matrix for each learning rate.

    Raises:
        UserError: every learning rate diverged.
    """
    grid = segmentation_grid(lrs, diverged, val, test)
    best = best_setting(grid, "val_miou")
    if best < 0:
        raise UserError(f"{name}: every learning rate diverged ({list(lrs)}): add lower ones to {name}.lrs")
    iou = class_iou(test[best]).tolist()
    details = {"per_class_iou": {label: None if value != value else value for label, value in zip(classes, iou)}}
    notes = missing_classes(test[best].sum(1), classes, "test pixel")
    notes += edge_note(lrs, lrs[best], f"{name}.lrs")
    return Outcome(segmentation_metrics(test[best]), {"lr": lrs[best]}, grid, details, notes), best


def segmentation_grid(
    lrs: Sequence[float], diverged: Sequence[bool], val: Tensor, test: Tensor
) -> list[dict[str, Any]]:
    """A row for each learning rate with its metrics on both splits; None where it diverged."""
    return [
        {
            "lr": lr,
            "val_miou": None if diverged[i] else segmentation_metrics(val[i])["miou"],
            "test_miou": None if diverged[i] else segmentation_metrics(test[i])["miou"],
            "diverged": diverged[i],
        }
        for i, lr in enumerate(lrs)
    ]


def spread(count: int, length: int) -> list[int]:
    """``count`` positions spread evenly over ``length``, the ends included; all of them where there are fewer."""
    return torch.linspace(0, length - 1, min(count, length), dtype=torch.float64).round().long().tolist()
