"""The protocol ``detection``: a linear layer on the frozen backbone's maps, trained on augmented images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.backbones.probe import map_size
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection.linear import (
    FrozenMaps,
    fit_standardizer,
    new_heads,
    predictor,
    train_loss,
)
from ssl_toolkit.evaluation.detection.metrics import MAX_BOXES, check_rule
from ssl_toolkit.evaluation.detection.objects import check_objects
from ssl_toolkit.evaluation.detection.outcome import chosen_rule, detection_examples, detection_outcome, same_images
from ssl_toolkit.evaluation.detection.predicting import Reading, find, score
from ssl_toolkit.evaluation.detection.samples import SquareCrops
from ssl_toolkit.evaluation.features import evaluating
from ssl_toolkit.evaluation.heads import Heads, check_lrs
from ssl_toolkit.evaluation.live import Plan, cosine, train
from ssl_toolkit.evaluation.protocol import PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.segmentation.options import FEATURES, check_choice, chosen_features
from ssl_toolkit.evaluation.source import Source

MANY = 64
"""Cells in a row of the image that tells how many pixels a cell has."""


@dataclass
class DetectionConfig:
    """Options of linear detection, by AdamW; the learning rate is decayed to 0 along half a cosine.

    Attributes:
        lrs: learning rates, each for a head of its own.
        features: ``last``, ``stages`` (the pyramid, joined at its finest level), or ``auto``: the last map of a
            ResNet, the stages of a ConvNeXt or ViT, as in linear segmentation.
        iterations: steps.
        batch_size: images a step.
        weight_decay: on weights, not on biases.
        size: side of the squares trained on, and the shorter side of the images tested on, in pixels.
        scales: the shorter side of an image before the crop is ``size`` times a number between these two.
        flip: train on mirrored images too.
        nms: overlap above which the lower of two boxes of a class is dropped.
        metric: ``voc2007``, ``voc2012`` or ``coco``; null for that of the data.
        examples: test images kept with true and predicted boxes.
        seed: of the order of images and of their augmentation.
    """

    lrs: list[float] = field(default_factory=lambda: [0.0001, 0.0003, 0.001, 0.003, 0.01])
    features: str = "auto"
    iterations: int = 40_000
    batch_size: int = 16
    weight_decay: float = 0.0
    size: int = 512
    scales: list[float] = field(default_factory=lambda: [0.5, 2.0])
    flip: bool = True
    nms: float = 0.6
    metric: str | None = None
    examples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_lrs(self.lrs)
        check_choice("detection.features", self.features, FEATURES)
        check_rule(self.metric)
        if min(self.iterations, self.batch_size, self.size) < 1:
            raise ValueError("iterations, batch_size and size must be 1 or more")
        if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales must be two numbers, the smaller first, not {list(self.scales)}")
        if not 0 < self.nms <= 1:
            raise ValueError(f"nms {self.nms} must be between 0 and 1")
        if self.weight_decay < 0 or self.examples < 0 or self.seed < 0:
            raise ValueError("weight_decay, examples and seed must not be negative")


def multiple_of(backbone: Backbone, size: int) -> int:
    """Pixels that a cell of the last map of ``backbone`` covers; sides of images are to be multiples of it.

    Raises:
        UserError: the backbone does not take images of ``size`` pixels, or none that are not square.
    """
    cells = map_size(backbone, size)[0]
    # an image whose sides are no multiple has cells that are cut, so that their number alone does not tell
    for multiple in range(math.ceil(size / (cells + 1)), size + 1):
        if map_size(backbone, MANY * multiple, (MANY + 1) * multiple) == (MANY, MANY + 1):
            return multiple
    raise UserError(f"{backbone.config.name}: cells of its maps have no constant size; detection cannot use it")


@PROTOCOLS.register("detection", DetectionConfig)
class Detection(Protocol):
    """A linear layer that predicts classes and boxes from each cell of frozen maps (see
    `ssl_toolkit.evaluation.detection.linear`); its learning rate chosen on validation by AP.

    VICRegL's Table 9 has such a benchmark ("our linear frozen benchmark, that we adapt to produce bounding boxes") and
    says no more of it: numbers compare with numbers of this protocol, not with the table.
    """

    needs = ("objects",)
    metric = "ap"
    parallel = True
    describes = "linear layer for classes and boxes on frozen maps, augmented images"

    options: DetectionConfig

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        self._resolve(source, datasets)
        multiple_of(source.backbone, self.options.size)
        check_objects(datasets)

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {}

    def _resolve(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        self.options = dataclasses.replace(
            self.options,
            features=chosen_features(self.options.features, source.backbone),
            metric=chosen_rule(self.options.metric, datasets["test"]),
        )

    def run(self, data: EvalData) -> Outcome:
        self._resolve(data.source, data.datasets)
        with evaluating(data.source.backbone.to(data.device)):
            return self._run(data)

    def _run(self, data: EvalData) -> Outcome:
        options = self.options
        assert options.metric is not None
        backbone, train_data = data.source.backbone, data.datasets["train"]
        multiple = multiple_of(backbone, options.size)
        reader = FrozenMaps(backbone, options.features, multiple, data.preparation, data.device, data.precision)
        norm = fit_standardizer(reader, train_data, options.size).to(data.device)
        classes = len(train_data.object_classes or ())
        heads = new_heads(len(options.lrs), len(norm.mean), classes).to(data.device)
        plan = Plan(options.iterations, options.batch_size, options.seed, data.preparation.workers)
        samples = SquareCrops(
            train_data,
            range(len(train_data)),
            options.flip,
            options.seed,
            options.size,
            (options.scales[0], options.scales[1]),
            data.preparation.mean,
        )
        unfinished = data.unfinished("detection", options)
        train(
            heads,
            self._optimizer(heads),
            cosine(options.iterations),
            samples,
            train_loss(heads, reader, norm),
            plan,
            device=data.device,
            title="linear detection",
            unfinished=unfinished,
            finite=False,
            console=data.console,
        )
        predict = predictor(heads, reader, norm, options.nms, MAX_BOXES)
        reading = Reading(options.size, None, options.batch_size, data.preparation.workers)
        tables = {}
        for split in ("test",) if same_images(data.datasets) else ("val", "test"):
            dataset = data.datasets[split]
            found = find(predict, dataset, reading, data.device, f"detection in {split} images", data.console)
            tables[split] = score(found, dataset, options.metric)
        val, test, test_data = tables.get("val", tables["test"]), tables["test"], data.datasets["test"]
        diverged = heads.diverged()
        outcome, best = detection_outcome("detection", options.lrs, diverged, val, test, test_data, options.metric)
        if options.examples:
            outcome.examples = detection_examples(test_data, found[best], options.examples, data.preparation.size)
        unfinished.clear()
        return outcome

    def _optimizer(self, heads: Heads) -> torch.optim.Optimizer:
        groups = []
        for weight, bias, lr in zip(heads.weights, heads.biases, self.options.lrs):
            groups.append({"params": [weight], "lr": lr, "weight_decay": self.options.weight_decay})
            groups.append({"params": [bias], "lr": lr, "weight_decay": 0.0})
        return torch.optim.AdamW(groups)
