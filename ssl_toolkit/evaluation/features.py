"""Features of a whole split from a frozen backbone, extracted once for every protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssl_toolkit.backbones import Backbone, Features
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.data.transforms import Normalize, eval_batch, eval_mask
from ssl_toolkit.errors import UserError
from ssl_toolkit.progress import progress_bar

VOID = 255
"""The value of mask pixels that belong to no class and are not scored."""


@dataclass(frozen=True)
class FeatureBank:
    """Features of one split, in the order of its images, on the CPU.

    Attributes:
        pooled: ``(N, D)`` float32.
        maps: ``(N, C, H, W)`` in the precision of the forward pass, or None if not asked for.
        labels: ``(N,)`` int64, or None where the data set has none.
        masks: ``(N, S, S)`` uint8, `VOID` where not scored, or None if not asked for.
    """

    pooled: Tensor
    maps: Tensor | None = None
    labels: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)


@dataclass(frozen=True)
class Preparation:
    """How images become the backbone's input.

    Attributes:
        mean, std: per channel, in [0, 1] units.
        resize: the shorter side in pixels before the centre crop.
        size: side in pixels of the centre crop.
        batch_size: images a forward pass.
        workers: processes that read images; 0 reads them in this one.
    """

    mean: Sequence[float]
    std: Sequence[float]
    resize: int
    size: int
    batch_size: int = 256
    workers: int = 0

    def normalise(self, images: Tensor, device: torch.device) -> Tensor:
        """``(B, C, S, S)``, values 0 to 255, as float32 on ``device``, normalised, channels last."""
        normal: Tensor = Normalize(self.mean, self.std).to(device)(images.to(device, non_blocking=True))
        return normal.contiguous(memory_format=torch.channels_last)


def extract(
    backbone: Backbone,
    dataset: ImageDataset,
    preparation: Preparation,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    maps: bool = False,
    masks: bool = False,
    console: Console | None = None,
) -> FeatureBank:
    """Features of every image of ``dataset``.

    The backbone is moved to ``device`` and runs in evaluation mode; its weights, its BatchNorm
    statistics and the mode of each of its modules are as before when this returns.

    Args:
        precision: ``torch.bfloat16`` runs the forward pass in autocast, ``torch.float32`` does not.
        maps: also keep the last feature maps.
        masks: also keep the masks, cut like the images.
        console: where progress is shown.

    Raises:
        UserError: an empty split, labels or mask values outside the classes, a mask of another size than
            its image, or features that are not finite.
    """
    if len(dataset) == 0:
        raise UserError(f"{dataset.name}: its {dataset.split} split has no images")
    labels = _labels(dataset)
    backbone = backbone.to(device)
    bank: FeatureBank | None = None
    title, start = f"features of {dataset.name} {dataset.split}", 0
    with evaluating(backbone), progress_bar(title, len(dataset), console=console) as bar:
        for images, mask in _batches(dataset, np.arange(len(dataset)), preparation, masks, device):
            features = _forward(backbone, preparation.normalise(images, device), precision)
            if bank is None:
                bank = _allocate(features, len(dataset), labels, maps, mask)
            rows = slice(start, start + len(images))
            bank.pooled[rows] = features.pooled
            if bank.maps is not None:
                bank.maps[rows] = features.maps
            if bank.masks is not None and mask is not None:
                bank.masks[rows] = mask
            start += len(images)
            bar.advance(len(images))
    assert bank is not None
    finite = bank.pooled.isfinite().all(1)
    if not finite.all():
        raise UserError(
            f"the backbone gives nan or infinity for {int((~finite).sum())} of {len(bank)} images of "
            f"{dataset.name} {dataset.split}: its training diverged, or the weights are damaged"
        )
    return bank


def calibrate_batchnorm(
    backbone: Backbone,
    dataset: ImageDataset,
    preparation: Preparation,
    *,
    device: torch.device,
    images: int = 2048,
    seed: int = 0,
) -> int:
    """Fill the running statistics of every BatchNorm of an untrained backbone: the fair untrained baseline.

    The statistics become the average over batches of up to ``images`` images, drawn by ``seed``, and replace
    what was there. Modes and momenta are as before when this returns.

    Returns:
        How many BatchNorm layers there were; 0 does no work.

    Raises:
        UserError: fewer than two images to take statistics of.
    """
    norms = [
        module
        for module in backbone.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    size = min(preparation.batch_size, len(dataset))
    if size < 2:
        raise UserError(f"BatchNorm statistics need batches of 2 images or more, not {size}: raise batch_size")
    # Whole batches only: each counts the same in the average.
    order = np.random.default_rng(seed).permutation(len(dataset))
    order = order[: max(min(images, len(dataset)) // size, 1) * size]
    momenta = [norm.momentum for norm in norms]
    backbone = backbone.to(device)
    with evaluating(backbone), progress_bar("BatchNorm statistics", len(order)) as bar:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
        try:
            for batch, _ in _batches(dataset, order, preparation, False, device):
                _forward(backbone, preparation.normalise(batch, device), torch.float32)
                bar.advance(len(batch))
        finally:
            for norm, momentum in zip(norms, momenta):
                norm.momentum = momentum
    return len(norms)


def eval_images(dataset: ImageDataset, indices: Sequence[int], preparation: Preparation) -> Tensor:
    """Images ``indices`` as the backbone sees them before normalisation, ``(n, S, S, C)`` uint8."""
    images = [dataset.image(int(i)) for i in indices]
    return eval_batch(images, preparation.resize, preparation.size).permute(0, 2, 3, 1).contiguous()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; then each submodule gets back the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _forward(backbone: Backbone, images: Tensor, precision: torch.dtype) -> Features:
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
    with torch.inference_mode(), autocast:
        return backbone(images)


def _allocate(features: Features, length: int, labels: Tensor | None, maps: bool, masks: Tensor | None) -> FeatureBank:
    # Plain tensors, filled in place: what inference mode makes cannot be used in training a head.
    pooled = torch.empty(length, features.pooled.shape[1])
    stored = torch.bfloat16 if features.maps.dtype == torch.bfloat16 else torch.float32
    kept = torch.empty(length, *features.maps.shape[1:], dtype=stored) if maps else None
    mask = None if masks is None else torch.empty(length, *masks.shape[1:], dtype=torch.uint8)
    return FeatureBank(pooled, kept, labels, mask)


def _labels(dataset: ImageDataset) -> Tensor | None:
    if dataset.classes is None:
        return None
    labels = dataset.labels()
    wrong = np.flatnonzero((labels < 0) | (labels >= len(dataset.classes)))
    if len(wrong):
        raise UserError(
            f"{dataset.name} {dataset.split}: image {wrong[0]} has label {labels[wrong[0]]}, outside the "
            f"{len(dataset.classes)} classes (0 to {len(dataset.classes) - 1}); {len(wrong)} such images"
        )
    return torch.from_numpy(labels.astype(np.int64))


Batch = tuple[Tensor, "Tensor | None"]


class _Reader(Dataset):
    """Whole batches as items, so that a worker process hands over one tensor and not many small ones."""

    def __init__(self, dataset: ImageDataset, order: np.ndarray, preparation: Preparation, masks: bool) -> None:
        self.dataset, self.preparation, self.masks = dataset, preparation, masks
        self.batches = np.split(order, range(preparation.batch_size, len(order), preparation.batch_size))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> Batch | UserError:
        try:
            return self._read(self.batches[batch])
        except UserError as error:  # raised in the loop below: a worker would wrap it in its traceback
            return error

    def _read(self, indices: np.ndarray) -> Batch:
        images = [self.dataset.image(int(i)) for i in indices]
        resize, size = self.preparation.resize, self.preparation.size
        masks = None
        if self.masks:
            cut = [self._mask(int(i), image.shape[:2], resize, size) for i, image in zip(indices, images)]
            masks = torch.stack(cut)
        return eval_batch(images, resize, size), masks

    def _mask(self, index: int, shape: tuple[int, ...], resize: int, size: int) -> Tensor:
        mask, classes = self.dataset.mask(index), self.dataset.mask_classes or ()
        where = f"{self.dataset.name} {self.dataset.split}: the mask of image {index}"
        if mask.shape != shape:
            raise UserError(f"{where} is {mask.shape}, its image is {shape} (height, width)")
        wrong = mask[(mask >= len(classes)) & (mask != VOID)]
        if wrong.size:
            raise UserError(f"{where} holds {wrong[0]}: outside the {len(classes)} classes and not void ({VOID})")
        return torch.as_tensor(eval_mask(mask, resize, size))


def _batches(
    dataset: ImageDataset, order: np.ndarray, preparation: Preparation, masks: bool, device: torch.device
) -> Iterator[Batch]:
    loader: DataLoader = DataLoader(
        _Reader(dataset, order, preparation, masks),
        batch_size=None,
        num_workers=preparation.workers,
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,  # type: ignore[arg-type]
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def _as_it_is(batch: Batch | UserError) -> Batch | UserError:
    return batch
