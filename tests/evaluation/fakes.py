"""Data and backbones whose right answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.backbones.base import Backbone, BackboneConfig, Features
from ssl_toolkit.data.base import DataConfig, ImageDataset
from ssl_toolkit.evaluation import EvalData, FeatureBank, Preparation, Source

COLOURS = np.array([[250, 10, 10], [10, 250, 10], [10, 10, 250]], dtype=np.uint8)
PREPARATION = Preparation([0.5, 0.5, 0.5], [0.25, 0.25, 0.25], 16, 16, batch_size=5)
CPU = torch.device("cpu")


class ArrayDataset(ImageDataset):
    """Images, labels and masks from arrays."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[int] | None = None,
        masks: NDArray[np.uint8] | None = None,
        split: str = "train",
        num_classes: int = 3,
    ) -> None:
        self.images, self.targets, self.masks = images, labels, masks
        self.name, self.split, self.in_channels = "arrays", split, images.shape[-1]
        channels = images.shape[-1]
        self.config = DataConfig([0.5] * channels, [0.25] * channels, 16, 16)
        names = tuple(f"class{i}" for i in range(num_classes))
        self.classes = None if labels is None else names
        self.mask_classes = None if masks is None else names
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> NDArray[np.uint8]:
        self.reads += 1
        return self.images[index]

    def label(self, index: int) -> int:
        assert self.targets is not None
        return self.targets[index]

    def mask(self, index: int) -> NDArray[np.uint8]:
        assert self.masks is not None
        return self.masks[index]

    def fingerprint(self) -> str:
        return f"{self.split}-{int(self.images.sum())}"


def colour_blocks(count: int, split: str = "train", seed: int = 0, labels: bool = True) -> ArrayDataset:
    """16x16 images of 4x4 blocks in three colours. The mask is each pixel's colour, the label the colour of a third
    of the blocks or more that was painted last."""
    rng = np.random.default_rng([seed, len(split), ord(split[0])])
    blocks = rng.integers(0, 3, (count, 4, 4))
    label = rng.integers(0, 3, count)
    blocks[:, :3] = label[:, None, None]
    masks = blocks.repeat(4, 1).repeat(4, 2).astype(np.uint8)
    return ArrayDataset(COLOURS[masks], label.tolist() if labels else None, masks, split)


class ColourBackbone(Backbone):
    """Each 4x4 block's mean colour as feature map, so that colours are features."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BackboneConfig(name="colour-test")
        self.num_features, self.stage_channels = 3, (3,)

    def forward(self, images: Tensor) -> Features:
        maps = F.avg_pool2d(images, 4)
        return Features(maps, maps.mean((2, 3)))


def bank(features: Tensor, labels: Tensor) -> FeatureBank:
    return FeatureBank(features, labels=labels)


def eval_data(
    train: FeatureBank, val: FeatureBank, test: FeatureBank, classes: int, pixels: int | None = None
) -> EvalData:
    """`EvalData` of banks, with made-up names; ``pixels`` is the side of black images."""
    banks = {"train": train, "val": val, "test": test}
    side = pixels or 16
    datasets = {}
    for split, features in banks.items():
        images = np.zeros((len(features), side, side, 3), dtype=np.uint8)
        labels = [0] * len(images) if features.labels is None else features.labels.tolist()
        datasets[split] = ArrayDataset(images, labels, images[..., 0], split, classes)
    preparation = Preparation([0.5] * 3, [0.25] * 3, side, side)
    source = Source(ColourBackbone(), {}, "made up")
    return EvalData(source, datasets, banks, preparation, CPU, torch.float32)


def one_hot_data(count: int, classes: int, shuffled: bool, seed: int = 0) -> EvalData:
    """Features that are the label in one-hot form with a little noise; labels independent of them if ``shuffled``."""
    generator = torch.Generator().manual_seed(seed)

    def split(size: int) -> FeatureBank:
        labels = torch.arange(size) % classes
        noise = 0.01 * torch.randn(size, classes + 2, generator=generator)
        features = F.one_hot(labels, classes + 2).float() + noise
        order = torch.randperm(size, generator=generator)
        return bank(features, labels[order] if shuffled else labels)

    return eval_data(split(count), split(count), split(count), classes)
