"""How good the representations are on validation images, while they are being trained."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.data.base import Image, ImageDataset, LabelledImages
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.features import FeatureBank, Preparation, eval_images, extract
from ssl_toolkit.evaluation.knn import QUERY_CHUNK, knn_predict
from ssl_toolkit.evaluation.metrics import ranks, top_accuracy
from ssl_toolkit.processes.world import from_first
from ssl_toolkit.training.callbacks.options import Schedule
from ssl_toolkit.training.callbacks.probes import LinearProbe

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Of the vote (Wu et al. 2018). One setting: what is followed over a run must not change with it."""


class SomeImages(LabelledImages):
    """Up to ``count`` images of a data set, spread evenly over it by a seed, cut for evaluation and kept in memory.

    An image that cannot be read is left out and named.

    Args:
        preparation: of which size and resize are used.
        seed: of the choice.
    """

    def __init__(
        self, dataset: ImageDataset, count: int, preparation: Preparation, seed: int, console: Console
    ) -> None:
        self.name, self.split, self.config = dataset.name, dataset.split, dataset.config
        self.classes, self.in_channels = dataset.classes, dataset.in_channels
        order = np.random.default_rng(seed).permutation(len(dataset))[:count]
        self._images: list[Image] = []
        kept = []
        for index in sorted(order.tolist()):
            try:
                self._images.append(eval_images(dataset, [index], preparation)[0].numpy())
            except UserError as error:
                console.print(f"probes: {error}; left out", highlight=False, markup=False, soft_wrap=True)
            else:
                kept.append(index)
        self.label_array = np.array([dataset.label(index) for index in kept], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> Image:
        return self._images[index]

    def fingerprint(self) -> str:
        raise NotImplementedError("part of a data set that has one")


class ValidationProbe(pl.Callback):
    """kNN accuracy of validation images among training images, and that of the linear probe, every few epochs.

    Rank 0 computes them while the others wait. The images are read once and kept in memory; the backbone runs in
    evaluation mode, uncompiled, and is left as it was, as are random generators.

    Args:
        bank, queries: training and validation split.
        count: images of each, at most.
        preparation: how they become input; its ``workers`` are not used.
        schedule: tells after which steps.
        precision: of the forward pass.
        linear: the linear probe, if there is one.
        seed: of the choice of images.

    Attributes:
        found: percent by column, after a step that `Schedule.probed`, on all ranks; empty after any other.
        seconds: spent here so far.
    """

    def __init__(
        self,
        bank: ImageDataset,
        queries: ImageDataset,
        count: int,
        preparation: Preparation,
        schedule: Schedule,
        *,
        precision: torch.dtype,
        linear: LinearProbe | None,
        seed: int,
        console: Console,
    ) -> None:
        self.splits, self.count, self.seed = (bank, queries), count, seed
        self.schedule, self.linear, self.precision, self.console = schedule, linear, precision, console
        self._read = preparation
        self._input = dataclasses.replace(preparation, resize=preparation.size, workers=0)  # of images already cut
        self._images: tuple[SomeImages, SomeImages] | None = None
        self.found: dict[str, float] = {}
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the validation images if it is time."""
        self.found = {}
        if not self.schedule.probed(trainer.global_step):
            return
        start = time.monotonic()
        self.found = from_first(lambda: self._look(module.method.backbone, module.device, trainer.global_step))
        self.seconds += time.monotonic() - start

    def columns(self) -> dict[str, float]:
        """What this step found."""
        return self.found

    def _look(self, backbone: Backbone, device: torch.device, step: int) -> dict[str, float]:
        try:
            return self._accuracies(backbone, device)
        except UserError as error:  # worth a line, not the run
            self.console.print(
                f"probes: no accuracy at step {step}: {error}", highlight=False, markup=False, soft_wrap=True
            )
            return {}

    def _accuracies(self, backbone: Backbone, device: torch.device) -> dict[str, float]:
        if self._images is None:
            few = [SomeImages(split, self.count, self._read, self.seed, self.console) for split in self.splits]
            self._images = (few[0], few[1])
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.compiler.set_stance("force_eager"):
            bank, queries = (self._features(backbone, images, device) for images in self._images)
        classes = len(self._images[0].classes or ())
        found = {"knn_top1": _accuracy(_knn_scores(bank, queries, classes, device), queries)}
        if self.linear is not None:
            found["linear_top1"] = _accuracy(self.linear.predict(queries.pooled.to(device)).cpu(), queries)
        return found

    def _features(self, backbone: Backbone, images: SomeImages, device: torch.device) -> FeatureBank:
        quiet = Console(quiet=True)
        return extract(backbone, images, self._input, device=device, precision=self.precision, console=quiet)


def _accuracy(scores: Tensor, queries: FeatureBank) -> float:
    assert queries.labels is not None
    return float(top_accuracy(ranks(scores, queries.labels), 1))


def _knn_scores(bank: FeatureBank, queries: FeatureBank, classes: int, device: torch.device) -> Tensor:
    """Class scores of every query, ``(Q, classes)``, on the CPU."""
    assert bank.labels is not None
    pooled, labels = bank.pooled.to(device), bank.labels.to(device)
    parts = [
        knn_predict(
            pooled,
            labels,
            part.to(device),
            ks=[min(NEIGHBOURS, len(bank))],
            temperatures=[TEMPERATURE],
            num_classes=classes,
        )[0, 0].cpu()
        for part in torch.split(queries.pooled, QUERY_CHUNK)
    ]
    return torch.cat(parts)
