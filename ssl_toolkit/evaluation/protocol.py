"""What a protocol is, and the registry of protocols.

A new protocol is one file with an options dataclass and a class registered in `PROTOCOLS`, its field in `EvalConfig`,
``configs/protocol/<name>.yaml`` with its line in ``configs/eval.yaml``, and an import in
``ssl_toolkit/evaluation/__init__.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ssl_toolkit.data.base import SPLITS, ImageDataset
from ssl_toolkit.evaluation.features import MAPS as MAPS
from ssl_toolkit.evaluation.features import MASKS as MASKS
from ssl_toolkit.evaluation.features import POOLED as POOLED
from ssl_toolkit.evaluation.features import STAGES as STAGES
from ssl_toolkit.evaluation.features import FeatureBank, Preparation, eval_images
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.unfinished import Unfinished
from ssl_toolkit.registry import Registry

SHOWN_CLASSES = 5


@dataclass(frozen=True)
class EvalData:
    """A backbone and a data set, as the protocols of one call see them.

    Attributes:
        source: the backbone, frozen: who trains it trains a copy.
        datasets: by split. Heads are fitted on train, chosen on val, reported on test.
        banks: features by split, with what the protocols of this call read, and perhaps more.
        preparation, precision: how images become input, and the dtype of the forward pass.
        identity: names the weights, the images and their preparation: what is computed from them is theirs alone.
        state: folder where unfinished work is kept; None keeps none.
        console: where progress is shown; silent in all processes but the first.
    """

    source: Source
    datasets: Mapping[str, ImageDataset]
    banks: Mapping[str, FeatureBank]
    preparation: Preparation
    device: torch.device
    precision: torch.dtype
    identity: str = ""
    state: Path | None = None
    console: Console | None = None

    @property
    def train(self) -> FeatureBank:
        """Features of the training split."""
        return self.banks["train"]

    @property
    def val(self) -> FeatureBank:
        """Features of the validation split."""
        return self.banks["val"]

    @property
    def test(self) -> FeatureBank:
        """Features of the test split."""
        return self.banks["test"]

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the image classes, None where there are no labels."""
        return self.datasets["train"].classes

    @property
    def mask_classes(self) -> tuple[str, ...] | None:
        """Names of the pixel classes, None where there are no masks."""
        return self.datasets["train"].mask_classes

    @property
    def object_classes(self) -> tuple[str, ...] | None:
        """Names of the classes of objects, None where there are no boxes."""
        return self.datasets["train"].object_classes

    def images(self, split: str, indices: Sequence[int]) -> Tensor:
        """``(n, S, S, C)`` uint8, images as the backbone saw them before normalisation."""
        return eval_images(self.datasets[split], indices, self.preparation)

    def unfinished(self, name: str, options: Any) -> Unfinished:
        """Where the protocol ``name`` with these ``options`` keeps unfinished work on this data and backbone."""
        return Unfinished(self.state, name, {"data": self.identity, "protocol": name, "options": asdict(options)})


@dataclass
class Outcome:
    """What a protocol found.

    Attributes:
        metrics: on the test split; in percent, but for those whose name says otherwise.
        selected: the hyper-parameters chosen on the validation split.
        grid: every setting tried, with its validation and test metric.
        details: further numbers (per class).
        notes: what a reader of the numbers should know.
        examples: arrays to keep beside the result.
    """

    metrics: dict[str, float]
    selected: dict[str, Any] = field(default_factory=dict)
    grid: list[dict[str, Any]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    examples: dict[str, NDArray[Any]] = field(default_factory=dict)


class Protocol(ABC):
    """One way to measure a backbone.

    Attributes:
        needs: what a data set must have, of ``labels``, ``masks`` and ``objects``.
        metric: the key of ``Outcome.metrics`` that stands for the protocol and chooses its hyper-parameters.
        parallel: whether every process runs it and gets the same outcome; else process 0 does, for all.
        describes: a few words for tables: what is trained on what.
        shown: columns of ``Outcome.grid`` that the command prints as a table of its own, and their titles; mostly none.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[str]
    parallel: ClassVar[bool] = False
    describes: ClassVar[str]
    shown: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any) -> None:
        self.options = options

    @property
    def variant(self) -> str:
        """What distinguishes the result of these options from the protocol's plain one, for the name of its file
        (``10pct``); empty for the plain one."""
        return ""

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        """Raise `UserError` for options, data or a backbone that this cannot work with; before any work is done."""
        return

    def reads(self, source: Source) -> Mapping[str, frozenset[str]]:
        """Which features of which split it reads from ``EvalData.banks``: `POOLED`, `MAPS`, `STAGES` and `MASKS`."""
        return everywhere(POOLED)

    @abstractmethod
    def run(self, data: EvalData) -> Outcome:
        """Fit on train, choose on val, report test."""


PROTOCOLS: Registry[Protocol] = Registry("protocol")
"""Protocols by name; a factory takes the options of its schema."""


def everywhere(*parts: str) -> dict[str, frozenset[str]]:
    """The same parts of every split."""
    return dict.fromkeys(SPLITS, frozenset(parts))


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
