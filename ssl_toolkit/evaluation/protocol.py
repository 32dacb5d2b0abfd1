"""What a protocol is, and the registry of protocols.

A new protocol is one file with an options dataclass and a class registered in `PROTOCOLS`, its section in
`EvalConfig` and ``configs/eval.yaml``, and an import in ``ssl_toolkit/evaluation/__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.evaluation.features import FeatureBank
from ssl_toolkit.registry import Registry

SHOWN_CLASSES = 5


@dataclass(frozen=True)
class EvalData:
    """Features of the three splits of a data set.

    Attributes:
        train, val, test: heads are fitted on train, chosen on val, reported on test.
        classes, mask_classes: names, or None where there are no labels or no masks.
        test_images: ``(indices) -> (n, S, S, C)`` uint8, test images as the backbone saw them.
    """

    train: FeatureBank
    val: FeatureBank
    test: FeatureBank
    classes: tuple[str, ...] | None
    mask_classes: tuple[str, ...] | None
    test_images: Callable[[Sequence[int]], Tensor]


@dataclass
class Outcome:
    """What a protocol found.

    Attributes:
        metrics: on the test split, in percent.
        selected: the hyper-parameters chosen on the validation split.
        grid: every setting tried, with its validation and test metric.
        details: further numbers (per class).
        notes: what a reader of the numbers should know.
        examples: arrays to keep beside the result.
    """

    metrics: dict[str, float]
    selected: dict[str, Any]
    grid: list[dict[str, Any]]
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    examples: dict[str, NDArray[Any]] = field(default_factory=dict)


class Protocol(ABC):
    """One way to measure frozen features.

    Attributes:
        needs: what a data set must have, of ``labels`` and ``masks``. Masks bring feature maps with them.
        metric: the key of ``Outcome.metrics`` that stands for the protocol and chooses its hyper-parameters.
    """

    needs: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]

    @abstractmethod
    def run(self, data: EvalData, device: torch.device) -> Outcome:
        """Fit on train, choose on val, report test."""


PROTOCOLS: Registry[Protocol] = Registry("protocol")
"""Protocols by name; a factory takes the options of its schema."""


def missing_classes(present: Tensor, classes: Sequence[str], where: str) -> list[str]:
    """A note on the classes that ``present`` ``(K,)`` counts none of; no note when all are there."""
    absent = [name for name, count in zip(classes, present.tolist()) if not count]
    if not absent:
        return []
    shown = ", ".join(absent[:SHOWN_CLASSES]) + (", ..." if len(absent) > SHOWN_CLASSES else "")
    return [f"{len(absent)} of {len(classes)} classes have no {where}: {shown}"]


def best_setting(grid: Sequence[dict[str, Any]], key: str) -> int:
    """Position of the highest finite ``grid[i][key]``, the first of equals; -1 where there is none."""
    scores = [row[key] for row in grid]
    return max((i for i, score in enumerate(scores) if score is not None), key=lambda i: (scores[i], -i), default=-1)
