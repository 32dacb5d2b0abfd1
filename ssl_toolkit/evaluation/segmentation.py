"""Linear segmentation: one linear classifier of the cells of the last feature map, upsampled to the mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssl_toolkit.data.transforms import as_rgb
from ssl_toolkit.errors import UserError, unknown
from ssl_toolkit.evaluation.features import VOID, FeatureBank
from ssl_toolkit.evaluation.heads import (
    HeadOptimizer,
    Heads,
    Standardizer,
    batches,
    check_lrs,
    edge_note,
    images_in,
    resident,
    summed_loss,
    threads_for,
)
from ssl_toolkit.evaluation.metrics import class_iou, confusion, segmentation_metrics
from ssl_toolkit.evaluation.protocol import (
    MAPS,
    MASKS,
    POOLED,
    PROTOCOLS,
    EvalData,
    Outcome,
    Protocol,
    best_setting,
    everywhere,
    missing_classes,
)
from ssl_toolkit.evaluation.source import Source
from ssl_toolkit.progress import Bar, progress_bar

OPTIMIZERS = ("adamw", "sgd")
LOGITS = {"cpu": 2**20, "other": 2**26}
"""Logits held at once at full mask resolution: on a CPU what fits its cache (twice as fast as 64 MiB)."""


@dataclass
class SegmentationConfig:
    """Options of linear segmentation; the learning rate is decayed to 0 along a cosine.

    Attributes:
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
        if self.optimizer not in OPTIMIZERS:
            raise unknown("segmentation.optimizer", self.optimizer, OPTIMIZERS)
        if min(self.iterations, self.batch_size, self.pixel_stride) < 1:
            raise ValueError("iterations, batch_size and pixel_stride must be 1 or more")
        if self.weight_decay < 0 or self.examples < 0:
            raise ValueError("weight_decay and examples must not be negative")


def interpolation(cells: int, pixels: int) -> Tensor:
    """``(pixels, cells)``: the weight of each cell in each pixel of bilinear upsampling along one side, as
    `torch.nn.functional.interpolate` does it with ``align_corners=False``."""
    return F.interpolate(torch.eye(cells)[None], size=pixels, mode="linear", align_corners=False)[0].T.contiguous()


def pixel_logits(heads: Heads, maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Logits at some pixels: the head on each cell, then bilinear upsampling (both linear, so in this order).

    Args:
        maps: ``(B, D, H, W)``, standardised.
        rows: ``(R, H)`` rows of `interpolation`; ``columns`` ``(S, W)`` likewise.

    Returns:
        ``(K, L, B, R, S)``.
    """
    batch, _, height, width = maps.shape
    cells = heads(maps.transpose(0, 1).flatten(1))
    # Two products with small matrices, one for each side; interpolate and einsum were slower.
    lines = (cells.reshape(-1, width) @ columns.T).view(-1, height, len(columns))
    return (rows @ lines).view(*cells.shape[:2], batch, len(rows), len(columns))


def pixel_loss(
    heads: Heads, maps: Tensor, masks: Tensor, rows: Tensor, columns: Tensor, every: tuple[slice, slice]
) -> Tensor:
    """`summed_loss` of `pixel_logits` against ``masks`` ``(B, R, S)``, on the rows and columns ``every`` picks."""
    y, x = every
    return summed_loss(pixel_logits(heads, maps, rows[y], columns[x]), masks[:, y, x].long(), VOID)


def train_segmentation(
    bank: FeatureBank, classes: int, options: SegmentationConfig, norm: Standardizer, device: torch.device
) -> Heads:
    """One head for each of ``options.lrs`` on the maps and masks of ``bank``."""
    assert bank.maps is not None
    assert bank.masks is not None
    maps, masks, norm = resident(bank.maps, device), resident(bank.masks, device), norm.to(device)
    rows, columns = _grids(bank, device)
    stride = min(options.pixel_stride, len(rows))
    offsets = torch.Generator().manual_seed(options.seed + 1)
    heads = Heads(len(options.lrs), maps.shape[1], classes).to(device)
    steps = options.iterations
    optimizer = HeadOptimizer(heads, options.optimizer, options.lrs, options.weight_decay, steps)
    few = threads_for(_work(heads, maps, rows[::stride], columns[::stride]) * options.batch_size, device)
    images = images_in(len(maps), options.batch_size, steps)
    with few, progress_bar("linear segmentation", images) as bar:
        for index in batches(len(maps), options.batch_size, steps, options.seed):
            y, x = torch.randint(stride, (2,), generator=offsets).tolist()
            features = norm(maps[index.to(maps.device)].to(device))
            target = masks[index.to(masks.device)].to(device)
            every = slice(y, None, stride), slice(x, None, stride)
            optimizer.step(pixel_loss(heads, features, target, rows, columns, every))
            bar.advance(len(index))
    return heads


@torch.no_grad()
def predict(heads: Heads, maps: Tensor, norm: Standardizer, rows: Tensor, columns: Tensor) -> Tensor:
    """Predicted classes at every pixel, ``(L, B, S, S)`` int64, of ``maps`` ``(B, C, H, W)``."""
    logits = pixel_logits(heads, norm(maps.to(rows.device)), rows, columns)
    return logits.max(0).indices  # argmax does the same, on a CPU ten times as slowly


def evaluate_segmentation(
    heads: Heads, bank: FeatureBank, classes: int, norm: Standardizer, device: torch.device, bar: Bar
) -> Tensor:
    """Confusion of every head over ``bank`` at full mask resolution, ``(L, classes, classes)`` int64."""
    assert bank.maps is not None
    assert bank.masks is not None
    norm = norm.to(device)
    rows, columns = _grids(bank, device)
    matrix = torch.zeros(len(heads.weights), classes, classes, dtype=torch.int64, device=device)
    limit = LOGITS["cpu" if device.type == "cpu" else "other"]
    chunk = max(1, limit // (len(rows) * len(columns) * len(matrix) * classes))
    with threads_for(_work(heads, bank.maps, rows, columns) * chunk, device):
        for maps, masks in zip(torch.split(bank.maps, chunk), torch.split(bank.masks, chunk)):
            matrix += confusion(predict(heads, maps, norm, rows, columns), masks.to(device), classes)
            bar.advance(len(maps))
    return matrix.cpu()


def _work(heads: Heads, maps: Tensor, rows: Tensor, columns: Tensor) -> int:
    """Multiplications of `pixel_logits` for one image."""
    (height, width), logits = maps.shape[2:], len(heads.weights) * heads.classes
    upsampling = height * width * len(columns) + height * len(rows) * len(columns)
    return heads.size * height * width + logits * upsampling


def _grids(bank: FeatureBank, device: torch.device) -> tuple[Tensor, Tensor]:
    assert bank.maps is not None
    assert bank.masks is not None
    (height, width), (rows, columns) = bank.maps.shape[2:], bank.masks.shape[1:]
    return interpolation(height, rows).to(device), interpolation(width, columns).to(device)


@PROTOCOLS.register("segmentation", SegmentationConfig)
class Segmentation(Protocol):
    """A linear classifier on each cell of the last map; its learning rate chosen on validation by mIoU."""

    needs = ("masks",)
    metric = "miou"
    describes = "linear classifier on cached feature maps"

    options: SegmentationConfig

    def reads(self, source: Source) -> dict[str, frozenset[str]]:
        return everywhere(POOLED, MAPS, MASKS)

    def run(self, data: EvalData) -> Outcome:
        assert data.mask_classes is not None
        assert data.train.maps is not None
        options, classes, device = self.options, len(data.mask_classes), data.device
        norm = Standardizer.fit(data.train.maps, options.head_norm)
        heads = train_segmentation(data.train, classes, options, norm, device)
        with progress_bar("segmentation metrics", len(data.val) + len(data.test)) as bar:
            val, test = (
                evaluate_segmentation(heads, split, classes, norm, device, bar) for split in (data.val, data.test)
            )
        grid = segmentation_grid(options.lrs, heads.diverged(), val, test)
        best = best_setting(grid, "val_miou")
        if best < 0:
            raise UserError(f"segmentation: every learning rate diverged ({options.lrs}): add lower ones")
        iou = class_iou(test[best]).tolist()
        details = {
            "per_class_iou": {name: None if value != value else value for name, value in zip(data.mask_classes, iou)}
        }
        lr = options.lrs[best]
        notes = missing_classes(test[best].sum(1), data.mask_classes, "test pixel")
        notes += edge_note(options.lrs, lr, "segmentation.lrs")
        examples = self._examples(data, heads, best, norm, device) if options.examples else {}
        return Outcome(segmentation_metrics(test[best]), {"lr": lr}, grid, details, notes, examples)

    def _examples(
        self, data: EvalData, heads: Heads, best: int, norm: Standardizer, device: torch.device
    ) -> dict[str, NDArray]:
        """Test images spread evenly over the split, with true and predicted masks."""
        assert data.test.maps is not None
        assert data.test.masks is not None
        assert data.mask_classes is not None
        index = np.linspace(0, len(data.test) - 1, min(self.options.examples, len(data.test))).round().astype(int)
        rows, columns = _grids(data.test, device)
        prediction = predict(heads, data.test.maps[index], norm.to(device), rows, columns)[best]
        images = data.images("test", index.tolist())
        return {
            "image": as_rgb(images.numpy()),
            "mask": data.test.masks[index].numpy(),
            "prediction": prediction.cpu().numpy().astype(np.uint8),
            "classes": np.array(data.mask_classes),
            "index": index,
        }


def segmentation_grid(
    lrs: Sequence[float], diverged: Sequence[bool], val: Tensor, test: Tensor
) -> list[dict[str, float | bool | None]]:
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
