"""The protocol ``detection_finetune``: Faster R-CNN or Mask R-CNN around the backbone, all of it trained."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models.detection import FasterRCNN

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.criteria.distributed import world_size
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.evaluation.detection.faster_rcnn import (
    Design,
    detector_loss,
    detector_predictor,
    faster_rcnn,
    freeze_batchnorm,
)
from ssl_toolkit.evaluation.detection.metrics import Boxes, check_rule, joined_boxes
from ssl_toolkit.evaluation.detection.objects import check_instance_masks, check_objects
from ssl_toolkit.evaluation.detection.outcome import (
    add_masks,
    chosen_rule,
    detection_examples,
    detection_outcome,
    same_images,
)
from ssl_toolkit.evaluation.detection.predicting import Reading, find, score, score_masks
from ssl_toolkit.evaluation.detection.samples import RandomShortSide
from ssl_toolkit.evaluation.features import Preparation, evaluating
from ssl_toolkit.evaluation.heads import check_lrs
from ssl_toolkit.evaluation.live import Diverged, Plan, train
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.unfinished import Unfinished

NECKS = ("auto", "c4", "fpn")
OPTIMIZERS = ("auto", "adamw", "sgd")
BATCH_NORMS = ("train", "frozen")

VOC_SCHEDULE = {"iterations": 24_000, "milestones": [18_000, 22_000], "warmup": 100, "sides": list(range(480, 801, 32))}
COCO_SCHEDULE = {
    "iterations": 90_000,
    "milestones": [60_000, 80_000],
    "warmup": 1000,
    "sides": list(range(640, 801, 32)),
}
"""Detectron2's "1x" of COCO, and MoCo's 24k of VOC, with their shorter sides in training."""


@dataclass
class DetectionFinetuneConfig:
    """Options of Faster R-CNN.

    Attributes:
        neck: ``c4`` (ResNets), ``fpn``, or ``auto``: c4 for ResNets, fpn for others and with masks.
        lrs: learning rates, each a training of its own; null for 0.02 (SGD) or 0.0001 (AdamW).
        optimizer: ``sgd`` (momentum 0.9), ``adamw``, or ``auto``: sgd for backbones with BatchNorm, adamw for others.
        weight_decay: on weights that are not of a norm; null for 0.0001 (SGD) or 0.05 (AdamW).
        iterations: steps; null for 24,000, on COCO 90,000.
        milestones: steps at which the learning rate is divided by 10; null for 18,000 and 22,000, on COCO 60,000 and
            80,000.
        warmup: steps over which the learning rate rises from a thousandth of it; null for 100, on COCO 1000.
        batch_size: images a step.
        sides: shorter sides of the images in training, one drawn for each; null for 480 to 800 in steps of 32, on COCO
            from 640.
        test_side: shorter side of the images in pixels at test.
        longest: the most that the longer side may have.
        flip: train on mirrored images too.
        train_ignored: train on objects that metrics ignore; null for true on VOC (difficult ones), false elsewhere
            (crowds of COCO), as Detectron2 does.
        batch_norm: ``train`` (over all processes where they have a GPU each), or ``frozen``.
        extra_norm: a BatchNorm behind stage 4, as MoCo has it (c4).
        anchors: sides of the anchors in pixels, all of them in each cell (c4) or one for each level (fpn); null for 32
            to 512 at the strides of a ResNet.
        channels, hidden: of the pyramid, and of the two layers of its box head (fpn).
        proposals_train, proposals_test: kept for each image.
        rois: proposals of an image that the box head is trained on.
        fraction: of the training images that are used.
        subset_seed: which these are.
        metric: ``voc2007``, ``voc2012`` or ``coco``; null for that of the data.
        masks: also train and measure instance masks (Mask R-CNN, fpn).
        examples: test images kept with true and predicted boxes.
        seed: of the fresh weights, the order of images and their augmentation.
    """

    neck: str = "auto"
    lrs: list[float] | None = None
    optimizer: str = "auto"
    weight_decay: float | None = None
    iterations: int | None = None
    milestones: list[int] | None = None
    warmup: int | None = None
    batch_size: int = 16
    sides: list[int] | None = None
    test_side: int = 800
    longest: int = 1333
    flip: bool = True
    train_ignored: bool | None = None
    batch_norm: str = "train"
    extra_norm: bool = True
    anchors: list[int] | None = None
    channels: int = 256
    hidden: int = 1024
    proposals_train: int = 2000
    proposals_test: int = 1000
    rois: int = 512
    fraction: float = 1.0
    subset_seed: int = 0
    metric: str | None = None
    masks: bool = False
    examples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for key, choices in (("neck", NECKS), ("optimizer", OPTIMIZERS), ("batch_norm", BATCH_NORMS)):
            if getattr(self, key) not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}, not {getattr(self, key)!r}")
        if self.lrs is not None:
            check_lrs(self.lrs)
        check_rule(self.metric)
        if self.masks and self.neck == "c4":
            raise ValueError("masks are predicted with the pyramid alone: set neck to fpn, or masks to false")
        if self.masks and self.metric not in (None, "coco"):
            raise ValueError(
                f"masks are measured by COCO's rule alone, metric is {self.metric}: set it to coco or null"
            )
        for key in ("iterations", "batch_size", "test_side", "longest", "channels", "hidden", "proposals_train",
                    "proposals_test", "rois"):  # fmt: skip
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} must be 1 or more")
        for key in ("sides", "anchors"):
            values = getattr(self, key)
            if values is not None and (not values or min(values) < 1):
                raise ValueError(f"{key} must be one or more positive numbers, not {list(values)}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction {self.fraction} must be above 0 and at most 1")
        for key in ("weight_decay", "warmup", "examples", "seed", "subset_seed"):
            if (getattr(self, key) or 0) < 0:
                raise ValueError(f"{key} must not be negative")

    @property
    def design(self) -> Design:
        """What the detector is made of."""
        return Design(
            self.neck,
            None if self.anchors is None else tuple(self.anchors),
            self.extra_norm,
            self.channels,
            self.hidden,
            self.proposals_train,
            self.proposals_test,
            self.rois,
            self.masks,
        )


def resolved(
    options: DetectionFinetuneConfig, backbone: Backbone, datasets: Mapping[str, ImageDataset]
) -> DetectionFinetuneConfig:
    """``options`` with the usual values for this backbone and data where none are given."""
    data = datasets["train"]
    schedule: dict[str, Any] = COCO_SCHEDULE if data.name == "coco" else VOC_SCHEDULE
    resnet = backbone.norm == "batch"
    sgd = resnet if options.optimizer == "auto" else options.optimizer == "sgd"
    usual: dict[str, Any] = {
        "lrs": [0.02 if sgd else 1e-4],
        "weight_decay": 1e-4 if sgd else 0.05,
        **schedule,
        "train_ignored": data.name == "voc",
        "metric": "coco" if options.masks else chosen_rule(None, datasets["test"]),
    }
    missing = {key: value for key, value in usual.items() if getattr(options, key) is None}
    neck = ("c4" if resnet and not options.masks else "fpn") if options.neck == "auto" else options.neck
    return dataclasses.replace(options, **missing, neck=neck, optimizer="sgd" if sgd else "adamw")


def subset(length: int, fraction: float, seed: int) -> list[int]:
    """Positions of a ``fraction`` of ``length`` images, one or more, drawn by ``seed``, in order."""
    count = max(1, round(length * fraction))
    rows: NDArray[np.int64] = np.random.default_rng(seed).permutation(length)[:count]
    return sorted(rows.tolist())


def steps_down(warmup: int, milestones: list[int]) -> Callable[[int], float]:
    """A factor of the learning rate: up along a line from a thousandth, then a tenth at each of ``milestones``."""

    def factor(step: int) -> float:
        rise = 0.001 + 0.999 * step / warmup if step < warmup else 1.0
        return rise * 0.1 ** bisect.bisect_right(sorted(milestones), step)

    return factor


@PROTOCOLS.register("detection_finetune", DetectionFinetuneConfig)
class DetectionFinetune(Protocol):
    """Faster R-CNN (`ssl_toolkit.evaluation.detection.faster_rcnn`), the backbone trained with it.

    The defaults on VOC are VICRegL's Table 9, which follows DenseCL (Wang et al. 2021) and MoCo (He et al. 2020):
    R50-C4, 24k iterations of 16 images, SGD at 0.02, BatchNorm trained. Of several learning rates the best on
    validation by AP is reported.
    """

    needs = ("objects",)
    metric = "ap"
    parallel = True
    describes = "Faster R-CNN, the backbone trained with it"

    options: DetectionFinetuneConfig

    @property
    def variant(self) -> str:
        part = "" if self.options.fraction == 1 else f"{100 * self.options.fraction:g}pct"
        return "-".join(filter(None, (self.options.neck, "mask" if self.options.masks else "", part)))

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        self.options = resolved(self.options, source.backbone, datasets)
        with torch.random.fork_rng(devices=[]):
            faster_rcnn(source.backbone, 1, self.options.design, Preparation([0.5], [0.5], 1, 1))
        check_objects(datasets)
        if self.options.masks:
            check_instance_masks("detection_finetune", datasets)

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {}

    def run(self, data: EvalData) -> Outcome:
        self.options = options = resolved(self.options, data.source.backbone, data.datasets)
        assert options.lrs is not None
        assert options.metric is not None
        name, test_data = "detection_finetune", data.datasets["test"]
        splits = ("test",) if same_images(data.datasets) else ("val", "test")
        tables: dict[str, list[NDArray[np.float64]]] = {split: [] for split in splits}
        found: list[Boxes] = []
        diverged = []
        for lr in options.lrs:
            network = self._trained(data, lr)
            diverged.append(network is None)
            for split in splits:
                boxes = joined_boxes([]) if network is None else self._find(network, data, split)
                tables[split] += score([boxes], data.datasets[split], options.metric)
            found.append(boxes)
        val, test = tables.get("val", tables["test"]), tables["test"]
        outcome, best = detection_outcome(name, options.lrs, diverged, val, test, test_data, options.metric)
        if options.masks:
            add_masks(outcome, score_masks(found[best], test_data), test_data.object_classes or ())
        if options.examples:
            outcome.examples = detection_examples(test_data, found[best], options.examples, data.preparation.size)
        for lr in options.lrs:
            self._unfinished(data, lr).clear()
        return outcome

    def _unfinished(self, data: EvalData, lr: float) -> Unfinished:
        whole = data.unfinished("detection_finetune", self.options)
        return dataclasses.replace(whole, identity={**whole.identity, "lr": lr})

    def _trained(self, data: EvalData, lr: float) -> FasterRCNN | None:
        """The detector after training at ``lr``, in training mode; None if that diverged."""
        options, dataset = self.options, data.datasets["train"]
        assert options.iterations is not None
        assert options.warmup is not None
        assert options.milestones is not None
        network = self._network(data)
        try:
            train(
                network,
                self._optimizer(network, lr),
                steps_down(options.warmup, options.milestones),
                self._samples(dataset),
                detector_loss(network, data.device),
                Plan(options.iterations, options.batch_size, options.seed, data.preparation.workers),
                device=data.device,
                title=f"Faster R-CNN at lr {lr:g}",
                unfinished=self._unfinished(data, lr),
                console=data.console,
            )
        except Diverged:
            return None
        return network

    def _network(self, data: EvalData) -> FasterRCNN:
        classes = len(data.datasets["train"].object_classes or ())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            network = faster_rcnn(data.source.backbone, classes, self.options.design, data.preparation)
        network.to(data.device).train()
        if self.options.batch_norm == "frozen":
            freeze_batchnorm(network)
        elif world_size() > 1 and data.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return network

    def _samples(self, dataset: ImageDataset) -> RandomShortSide:
        options = self.options
        assert options.sides is not None
        assert options.train_ignored is not None
        rows = subset(len(dataset), options.fraction, options.subset_seed)
        return RandomShortSide(
            dataset,
            rows,
            options.flip,
            options.seed,
            options.sides,
            options.longest,
            options.train_ignored,
            options.masks,
        )

    def _optimizer(self, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Norms and biases, which have one dimension, do not decay."""
        assert self.options.weight_decay is not None
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.options.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.options.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=0.9)
        return torch.optim.AdamW(groups, lr=lr)

    def _find(self, network: FasterRCNN, data: EvalData, split: str) -> Boxes:
        options, dataset = self.options, data.datasets[split]
        reading = Reading(options.test_side, options.longest, options.batch_size, data.preparation.workers)
        title = f"detection in {split} images"
        with evaluating(network):
            predict = detector_predictor(network, masks=options.masks and split == "test")
            return find(predict, dataset, reading, data.device, title, data.console)[0]
