"""Options of linear segmentation on augmented images, and the paper's values where none are given."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ssl_toolkit.backbones import Backbone
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.evaluation.heads import check_lrs
from ssl_toolkit.evaluation.segmentation.networks import default_output_stride
from ssl_toolkit.evaluation.segmentation.options import FEATURES, OPTIMIZERS, check_choice, chosen_features

BACKBONES = ("frozen", "finetune")
HEADS = ("linear", "fcn")
TESTS = ("whole", "slide")

SGD_LRS = (0.1, 0.05, 0.03, 0.02, 0.01)
ADAMW_LRS = {
    "frozen": (1e-3, 8e-4, 3e-4, 1e-4, 8e-5),
    "finetune": (1e-4, 8e-5, 3e-5, 1e-5, 8e-6, 3e-6, 1e-6),
}
WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.05}
WARMUP = {"sgd": 0, "adamw": 1500}
POWER = {"sgd": 0.9, "adamw": 1.0}
WARMUP_START = 1e-6
"""Of the learning rate, at the first step of the warm-up."""
NAME = "segmentation_augmented"


@dataclass
class SegmentationAugmentedConfig:
    """Options of linear segmentation on augmented images (VICRegL, section 4.1 and appendix).

    What is null takes the paper's value for the backbone and data. Where the paper gives none, that of its published
    configuration files or of mmsegmentation, on which it is built.

    Attributes:
        backbone: ``frozen``, or ``finetune``: trained with the head, a run for each learning rate.
        head: ``linear``, a 1x1 convolution, or ``fcn``, mmsegmentation's FCN head (Table 8).
        features: ``last``, ``stages`` or ``auto``, as in `SegmentationConfig`.
        output_stride: pixels a cell of the last map of a timm ResNet, by dilation: 8, 16 or 32; null is 16, of other
            networks their own.
        lrs: learning rates; of a frozen backbone heads side by side.
        optimizer: ``sgd`` with momentum 0.9, the learning rate decayed to 0 by a power of 0.9, or ``adamw``, linearly;
            null is ``sgd`` for backbones with BatchNorm.
        weight_decay: on everything that is trained; null is 0.0005 for SGD, 0.05 for AdamW.
        warmup: steps of linear warm-up; null is 0 for SGD, 1500 for AdamW.
        iterations: steps; null is 160,000 on ADE20K, 40,000 elsewhere.
        batch_size: images a step, of all processes together.
        head_norm: BatchNorm without weights before the linear head.
        dropout: rate of channels dropped before the classifier; null is 0.1 for the last map and FCN heads, else 0.
        resize: longer and shorter side of the box that images are fitted into; null is [2048, 1024] on Cityscapes,
            [2048, 512] elsewhere.
        scale: range of the random factor of that box in training.
        crop: height and width of training crops and test windows.
        cat_max_ratio: share of a crop's pixels that one class may have; after 10 tries any crop is taken.
        flip: left to right, half of the crops.
        photometric: random brightness, contrast, saturation and hue.
        test: ``whole`` image or ``slide``, windows of ``crop`` two thirds apart; null is ``whole`` for backbones with
            BatchNorm, else ``slide``.
        examples: test images kept with their predicted masks.
        seed: of the order of images, crops and initial weights.
    """

    backbone: str = "frozen"
    head: str = "linear"
    features: str = "auto"
    output_stride: int | None = None
    lrs: list[float] | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    warmup: int | None = None
    iterations: int | None = None
    batch_size: int = 16
    head_norm: bool = True
    dropout: float | None = None
    resize: list[int] | None = None
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    crop: list[int] = field(default_factory=lambda: [512, 512])
    cat_max_ratio: float = 0.75
    flip: bool = True
    photometric: bool = True
    test: str | None = None
    examples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for key, choices in (("backbone", BACKBONES), ("head", HEADS), ("features", FEATURES)):
            check_choice(f"{NAME}.{key}", getattr(self, key), choices)
        for key, choices in (("optimizer", OPTIMIZERS), ("test", TESTS)):
            if getattr(self, key) is not None:
                check_choice(f"{NAME}.{key}", getattr(self, key), choices)
        if self.lrs is not None:
            check_lrs(self.lrs)
        if (
            min(self.batch_size, 1 if self.iterations is None else self.iterations) < 1
            or min(self.examples, self.seed) < 0
        ):
            raise ValueError("batch_size and iterations must be 1 or more, examples and seed not negative")
        if (self.weight_decay or 0) < 0 or (self.warmup or 0) < 0 or not 0 <= (self.dropout or 0) < 1:
            raise ValueError("weight_decay and warmup must not be negative, dropout at least 0 and below 1")
        self._check_geometry()

    def _check_geometry(self) -> None:
        if len(self.crop) != 2 or min(self.crop) < 1:
            raise ValueError(f"crop must be height and width in pixels, not {self.crop}")
        if self.resize is not None and (len(self.resize) != 2 or not 0 < self.resize[1] <= self.resize[0]):
            raise ValueError(f"resize must be the longer and the shorter side in pixels, not {self.resize}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise ValueError(f"scale must be a range of positive factors, not {self.scale}")
        if not 0 < self.cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio must be above 0 and at most 1 (any crop), not {self.cat_max_ratio}")
        if self.output_stride is not None and self.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, not {self.output_stride}")


@dataclass(frozen=True)
class Settings:
    """`SegmentationAugmentedConfig` with every value decided."""

    options: SegmentationAugmentedConfig
    stages: bool
    output_stride: int | None
    lrs: tuple[float, ...]
    optimizer: str
    weight_decay: float
    warmup: int
    iterations: int
    dropout: float
    resize: tuple[int, int]
    crop: tuple[int, int]
    test: str

    @property
    def frozen(self) -> bool:
        """Whether the backbone is."""
        return self.options.backbone == "frozen"

    def factor(self, step: int) -> float:
        """Of the learning rate: mmsegmentation's poly schedule, to 0, times linear warm-up."""
        decay = (1 - step / self.iterations) ** POWER[self.optimizer]
        if step >= self.warmup:
            return float(decay)
        return float(decay * (1 - (1 - step / self.warmup) * (1 - WARMUP_START)))

    def written(self) -> SegmentationAugmentedConfig:
        """The options with nothing left open, for the result."""
        return dataclasses.replace(
            self.options,
            features="stages" if self.stages else "last",
            output_stride=self.output_stride,
            lrs=list(self.lrs),
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            iterations=self.iterations,
            dropout=self.dropout,
            resize=list(self.resize),
            test=self.test,
        )


def decided(options: SegmentationAugmentedConfig, backbone: Backbone, dataset: ImageDataset) -> Settings:
    """What ``options`` mean for a backbone and a data set.

    Raises:
        ValueError: a warm-up longer than the training.
    """
    stages = chosen_features(options.features, backbone) == "stages"
    batch_norm = backbone.norm == "batch"
    optimizer = options.optimizer or ("sgd" if batch_norm else "adamw")
    lrs: Sequence[float] = SGD_LRS if optimizer == "sgd" else ADAMW_LRS[options.backbone]
    dropout = 0.1 if options.head == "fcn" or not stages else 0.0
    resize = options.resize or ([2048, 1024] if dataset.name == "cityscapes" else [2048, 512])
    settings = Settings(
        options,
        stages,
        options.output_stride or default_output_stride(backbone),
        tuple(options.lrs or lrs),
        optimizer,
        WEIGHT_DECAY[optimizer] if options.weight_decay is None else options.weight_decay,
        WARMUP[optimizer] if options.warmup is None else options.warmup,
        options.iterations or (160_000 if dataset.name == "ade20k" else 40_000),
        dropout if options.dropout is None else options.dropout,
        (resize[0], resize[1]),
        (options.crop[0], options.crop[1]),
        options.test or ("whole" if batch_norm else "slide"),
    )
    if settings.warmup >= settings.iterations:
        raise ValueError(
            f"warmup={settings.warmup} leaves nothing of iterations={settings.iterations}: give a shorter one"
        )
    return settings
