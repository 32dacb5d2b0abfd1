"""Linear classification as the VICRegL paper does it: a linear layer on a frozen backbone, images cropped at random.

All learning rates are heads on the same features: the backbone, which takes nearly all of the time, runs once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.evaluation.classification import classification_outcome, head_ranks
from ssl_toolkit.evaluation.crops import CropConfig, LabelledCrops
from ssl_toolkit.evaluation.features import evaluating
from ssl_toolkit.evaluation.heads import FeatureNorm, Heads, check_lrs, head_optimizer, summed_loss
from ssl_toolkit.evaluation.live import Plan, cosine, train
from ssl_toolkit.evaluation.protocol import POOLED, PROTOCOLS, EvalData, Outcome, Protocol
from ssl_toolkit.evaluation.reading import read_labels
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.evaluation.subsets import LabelsConfig, labelled

NAME = "linear_augmented"


@dataclass
class LinearAugmentedConfig:
    """Options of the paper's linear protocol: SGD with momentum 0.9, learning rates decayed to 0 along a cosine.

    Attributes:
        lrs: learning rates, each for a head of its own: the paper's, and 0.02, which the authors' code uses for ResNets
            (0.3 for ConvNeXts). They are of a batch of 256 and not scaled, neither here nor there.
        epochs: passes over the training images.
        batch_size: images a step, of all processes together.
        weight_decay: on weights, not on biases; the paper names none, the authors' code has 1e-6 (on both).
        head_norm: BatchNorm without affine parameters before the heads, one for all of them; it changes accuracy, so
            it is named in the result.
        crop: how training images are cut.
        labels: which training images have labels.
        seed: of the order of images and of their crops.
    """

    lrs: list[float] = field(default_factory=lambda: [30.0, 10.0, 1.0, 0.3, 0.1, 0.03, 0.02, 0.01])
    epochs: int = 100
    batch_size: int = 256
    weight_decay: float = 1e-6
    head_norm: bool = False
    crop: CropConfig = field(default_factory=CropConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_lrs(self.lrs)
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError("epochs and batch_size must be 1 or more")
        if self.weight_decay < 0 or self.seed < 0:
            raise ValueError("weight_decay and seed must not be negative")


class Probe(nn.Module):
    """What is trained: heads, and the statistics of the norm before them."""

    def __init__(self, count: int, features: int, classes: int, norm: bool) -> None:
        super().__init__()
        self.norm: nn.Module = FeatureNorm(features) if norm else nn.Identity()
        self.heads = Heads(count, features, classes)

    def loss(self, features: Tensor, labels: Tensor, images: int) -> Tensor:
        """Sum over heads of the cross entropy of ``(n, D)`` and ``(n,)``, a part of a batch of ``images``."""
        return summed_loss(self.heads(self.norm(features).T), labels, scored=images)


def frozen_features(backbone: Backbone, images: Tensor, precision: torch.dtype) -> Tensor:
    """Pooled features ``(B, D)`` in float32 of normalised images, without a graph."""
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
    with torch.no_grad(), autocast:
        return backbone(images).pooled.float()


@PROTOCOLS.register(NAME, LinearAugmentedConfig)
class LinearAugmented(Protocol):
    """A linear classifier on a frozen backbone, trained on random crops; its learning rate chosen on validation."""

    needs = ("labels",)
    metric = "top1"
    parallel = True
    describes = "linear classifier on pooled features of random crops"

    options: LinearAugmentedConfig

    @property
    def variant(self) -> str:
        return self.options.labels.variant

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        read_labels(datasets["train"])
        labelled(self.options.labels, datasets["train"])

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return {"val": frozenset({POOLED}), "test": frozenset({POOLED})}

    def run(self, data: EvalData) -> Outcome:
        assert data.classes is not None
        options, device, preparation = self.options, data.device, data.preparation
        chosen = labelled(options.labels, data.datasets["train"])
        samples = LabelledCrops(data.datasets["train"], chosen, options.crop, preparation, options.seed)
        plan = Plan.of_passes(options.epochs, options.batch_size, len(samples), options.seed, preparation.workers)
        backbone = data.source.backbone.to(device)
        probe = Probe(len(options.lrs), data.val.pooled.shape[1], len(data.classes), options.head_norm).to(device)
        unfinished = data.unfinished(NAME, options).of(chosen.details)

        def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
            images, labels = batch
            features = frozen_features(backbone, preparation.normalise(images, device), data.precision)
            return probe.loss(features, labels.to(device), plan.images(len(samples)))

        with evaluating(backbone):
            train(
                probe,
                head_optimizer(probe.heads, "sgd", options.lrs, options.weight_decay),
                cosine(plan.steps),
                samples,
                loss,
                plan,
                device=device,
                title="linear probe on random crops",
                unfinished=unfinished,
                finite=False,
                console=data.console,
            )
        probe.eval()
        val, test = (head_ranks(probe.heads, split, probe.norm, device) for split in (data.val, data.test))
        settings = [{"lr": lr} for lr in options.lrs]
        diverged = probe.heads.diverged()
        outcome = classification_outcome(settings, diverged, val, test, data.classes, chosen, f"{NAME}.lrs")
        outcome.notes += ["features pass a BatchNorm before the heads (head_norm)"] if options.head_norm else []
        unfinished.clear()
        return outcome
