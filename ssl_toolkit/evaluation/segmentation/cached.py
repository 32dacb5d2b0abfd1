"""Linear segmentation on cached features: linear classifiers of the cells of a frozen backbone's maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.data.transforms import as_rgb
from ssl_toolkit.evaluation.features import VOID, FeatureBank
from ssl_toolkit.evaluation.heads import (
    HeadOptimizer,
    Heads,
    Standardizer,
    batches,
    check_lrs,
    images_in,
    resident,
    summed_loss,
    threads_for,
)
from ssl_toolkit.evaluation.metrics import confusion
from ssl_toolkit.evaluation.protocol import (
    MAPS,
    MASKS,
    POOLED,
    PROTOCOLS,
    STAGES,
    EvalData,
    Outcome,
    Protocol,
    everywhere,
)
from ssl_toolkit.evaluation.segmentation.options import (
    FEATURES,
    OPTIMIZERS,
    check_choice,
    chosen_features,
    segmentation_outcome,
    spread,
)
from ssl_toolkit.evaluation.segmentation.pixels import interpolation, pixel_logits
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.progress import Bar, progress_bar

LOGITS = {"cpu": 2**20, "other": 2**26}
"""Logits held at once at full mask resolution: on a CPU what fits its cache (twice as fast as 64 MiB)."""


@dataclass
class SegmentationConfig:
    """Options of linear segmentation on cached features; the learning rate is decayed to 0 along a cosine.

    Attributes:
        features: ``last`` (the last map), ``stages`` (four levels of the pyramid, or four blocks of a ViT, joined at
            the resolution of the finest), or ``auto``: ``last`` for ResNets, ``stages`` for ConvNeXts and ViTs.
        lrs: learning rates, each for a head of its own.
        optimizer: ``adamw``, or ``sgd`` with momentum 0.9.
        iterations: steps.
        batch_size: images a step.
        weight_decay: on weights, not on biases.
        head_norm: standardise each channel of the maps by the training mean and deviation.
        pixel_stride: the loss of a step is on every n-th row and column of the mask, counted from an offset
            drawn anew each step, so that all pixels count alike; 1 takes all of them. Metrics always do.
        examples: test images kept with their predicted masks.
        seed: of the order of images and the offsets.
    """

    features: str = "auto"
    lrs: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1])
    optimizer: str = "adamw"
    iterations: int = 500
    batch_size: int = 64
    weight_decay: float = 0.0
    head_norm: bool = True
    pixel_stride: int = 4
    examples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_lrs(self.lrs)
        check_choice("segmentation.features", self.features, FEATURES)
        check_choice("segmentation.optimizer", self.optimizer, OPTIMIZERS)
        if min(self.iterations, self.batch_size, self.pixel_stride) < 1:
            raise ValueError("iterations, batch_size and pixel_stride must be 1 or more")
        if self.weight_decay < 0 or self.examples < 0:
            raise ValueError("weight_decay and examples must not be negative")


@dataclass(frozen=True)
class MaskedMaps:
    """Maps of a split, from fine to coarse, each ``(N, C_i, H_i, W_i)``, and their masks ``(N, S, S)``."""

    levels: tuple[Tensor, ...]
    masks: Tensor

    @classmethod
    def of(cls, bank: FeatureBank, features: str) -> MaskedMaps:
        """The last map of a bank, or its stages."""
        levels = bank.stages if features == "stages" else None if bank.maps is None else (bank.maps,)
        assert levels is not None
        assert bank.masks is not None
        return cls(levels, bank.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def grids(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows and columns of `interpolation` from the finest map to the mask."""
        sides = zip(self.levels[0].shape[2:], self.masks.shape[1:])
        rows, columns = (interpolation(cells, pixels).to(device) for cells, pixels in sides)
        return rows, columns


Norms = Sequence[Standardizer]


def fit_norms(maps: MaskedMaps, enabled: bool) -> Norms:
    """A `Standardizer` for each level."""
    return [Standardizer.fit(level, enabled) for level in maps.levels]


def pixel_loss(
    heads: Heads, levels: Sequence[Tensor], masks: Tensor, rows: Tensor, columns: Tensor, every: tuple[slice, slice]
) -> Tensor:
    """`summed_loss` of `pixel_logits` against ``masks`` ``(B, R, S)``, on the rows and columns ``every`` picks."""
    y, x = every
    return summed_loss(pixel_logits(heads, levels, rows[y], columns[x]), masks[:, y, x].long(), VOID)


def train_segmentation(
    maps: MaskedMaps, classes: int, options: SegmentationConfig, norms: Norms, device: torch.device
) -> Heads:
    """One head for each of ``options.lrs``; of ``maps`` only batches are read where they do not fit a GPU."""
    levels, masks = [resident(level, device) for level in maps.levels], resident(maps.masks, device)
    norms = [norm.to(device) for norm in norms]
    rows, columns = maps.grids(device)
    stride = min(options.pixel_stride, len(rows))
    offsets = torch.Generator().manual_seed(options.seed + 1)
    heads = Heads(len(options.lrs), sum(level.shape[1] for level in levels), classes).to(device)
    steps = options.iterations
    optimizer = HeadOptimizer(heads, options.optimizer, options.lrs, options.weight_decay, steps)
    few = threads_for(_work(heads, levels, rows[::stride], columns[::stride]) * options.batch_size, device)
    with few, progress_bar("linear segmentation", images_in(len(maps), options.batch_size, steps)) as bar:
        for index in batches(len(maps), options.batch_size, steps, options.seed):
            y, x = torch.randint(stride, (2,), generator=offsets).tolist()
            features = [norm(level[index.to(level.device)].to(device)) for norm, level in zip(norms, levels)]
            target = masks[index.to(masks.device)].to(device)
            every = slice(y, None, stride), slice(x, None, stride)
            optimizer.step(pixel_loss(heads, features, target, rows, columns, every))
            bar.advance(len(index))
    return heads


@torch.no_grad()
def predict(heads: Heads, levels: Sequence[Tensor], norms: Norms, rows: Tensor, columns: Tensor) -> Tensor:
    """Predicted classes at every pixel, ``(L, B, S, S)`` int64, of ``levels`` each ``(B, C_i, H_i, W_i)``."""
    logits = pixel_logits(heads, [norm(x.to(rows.device)) for norm, x in zip(norms, levels)], rows, columns)
    return logits.max(0).indices  # argmax does the same, on a CPU ten times as slowly


def evaluate_segmentation(
    heads: Heads, maps: MaskedMaps, classes: int, norms: Norms, device: torch.device, bar: Bar
) -> Tensor:
    """Confusion of every head over ``maps`` at full mask resolution, ``(L, classes, classes)`` int64."""
    norms = [norm.to(device) for norm in norms]
    rows, columns = maps.grids(device)
    matrix = torch.zeros(len(heads.weights), classes, classes, dtype=torch.int64, device=device)
    limit = LOGITS["cpu" if device.type == "cpu" else "other"]
    chunk = max(1, limit // (len(rows) * len(columns) * len(matrix) * classes))
    with threads_for(_work(heads, maps.levels, rows, columns) * chunk, device):
        for start in range(0, len(maps), chunk):
            part = slice(start, start + chunk)
            prediction = predict(heads, [level[part] for level in maps.levels], norms, rows, columns)
            matrix += confusion(prediction, maps.masks[part].to(device), classes)
            bar.advance(prediction.shape[1])
    return matrix.cpu()


def _work(heads: Heads, levels: Sequence[Tensor], rows: Tensor, columns: Tensor) -> int:
    """Multiplications of `pixel_logits` for one image, but for joining levels."""
    (height, width), logits = levels[0].shape[2:], len(heads.weights) * heads.classes
    products = sum(logits * level[0].numel() for level in levels)
    return products + logits * (height * width * len(columns) + height * len(rows) * len(columns))


@PROTOCOLS.register("segmentation", SegmentationConfig)
class Segmentation(Protocol):
    """A linear classifier on each cell of the maps, upsampled to the mask; its learning rate chosen on validation by
    mIoU."""

    needs = ("masks",)
    metric = "miou"
    describes = "linear classifier on cached feature maps"

    options: SegmentationConfig

    def check(self, source: Source, datasets: Mapping[str, ImageDataset]) -> None:
        self._resolve(source)

    def _resolve(self, source: Source) -> None:
        self.options = dataclasses.replace(
            self.options, features=chosen_features(self.options.features, source.backbone)
        )

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        stages = chosen_features(self.options.features, source.backbone) == "stages"
        return everywhere(POOLED, STAGES if stages else MAPS, MASKS)

    def run(self, data: EvalData) -> Outcome:
        assert data.mask_classes is not None
        self._resolve(data.source)
        options, names, device = self.options, data.mask_classes, data.device
        train, val, test = (MaskedMaps.of(bank, options.features) for bank in (data.train, data.val, data.test))
        norms = fit_norms(train, options.head_norm)
        heads = train_segmentation(train, len(names), options, norms, device)
        with progress_bar("segmentation metrics", len(val) + len(test)) as bar:
            on_val, on_test = (
                evaluate_segmentation(heads, split, len(names), norms, device, bar) for split in (val, test)
            )
        outcome, best = segmentation_outcome("segmentation", options.lrs, heads.diverged(), on_val, on_test, names)
        if options.examples:
            index = spread(options.examples, len(test))
            rows, columns = test.grids(device)
            levels = [level[index] for level in test.levels]
            shown = predict(heads, levels, [norm.to(device) for norm in norms], rows, columns)[best]
            outcome.examples = examples(data, index, test.masks[index], shown)
        return outcome


def examples(data: EvalData, index: Sequence[int], masks: Tensor, prediction: Tensor) -> dict[str, NDArray]:
    """Test images ``index`` with true and predicted masks, each ``(n, S, S)``, for pictures."""
    return {
        "image": as_rgb(data.images("test", index).numpy()),
        "mask": masks.numpy(),
        "prediction": prediction.cpu().numpy().astype(np.uint8),
        "classes": np.array(data.mask_classes),
        "index": np.array(index),
    }
