"""Images and masks of a data set in batches, as a frozen backbone sees them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_toolkit.data.base import VOID, ImageDataset
from ssl_toolkit.data.transforms import Normalize, eval_batch, eval_mask
from ssl_toolkit.errors import UserError

Rows = NDArray[np.int64]
"""Positions of images in a split."""

Batch = tuple[Tensor, "Tensor | None"]
"""Images ``(n, C, S, S)`` and masks ``(n, S, S)`` or None."""


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


def eval_images(dataset: ImageDataset, indices: Sequence[int], preparation: Preparation) -> Tensor:
    """Images ``indices`` as the backbone sees them before normalisation, ``(n, S, S, C)`` uint8."""
    images = [dataset.image(int(i)) for i in indices]
    return eval_batch(images, preparation.resize, preparation.size).permute(0, 2, 3, 1).contiguous()


def read_labels(dataset: ImageDataset) -> Tensor | None:
    """Labels of all images, ``(N,)`` int64, or None where the data set has none.

    Raises:
        UserError: a label outside the classes.
    """
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


def checked_mask(dataset: ImageDataset, index: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The mask of image ``index``, whose height and width are ``shape``.

    Raises:
        UserError: a mask of another size than its image, or with values that are neither a class nor void.
    """
    mask, classes = dataset.mask(index), dataset.mask_classes or ()
    where = f"{dataset.name} {dataset.split}: the mask of image {index}"
    if mask.shape != shape:
        raise UserError(f"{where} is {mask.shape}, its image is {shape} (height, width)")
    wrong = mask[(mask >= len(classes)) & (mask != VOID)]
    if wrong.size:
        raise UserError(f"{where} holds {wrong[0]}: outside the {len(classes)} classes and not void ({VOID})")
    return mask


def read_batches(
    dataset: ImageDataset,
    batches: Sequence[Rows],
    preparation: Preparation,
    *,
    masks: bool,
    device: torch.device,
) -> Iterator[Batch]:
    """The images of each of ``batches`` in turn, and their masks if asked for.

    Raises:
        UserError: an image that cannot be read, a mask of another size than its image, or mask values outside the
            classes.
    """
    loader: DataLoader = DataLoader(
        _Reader(dataset, batches, preparation, masks),
        batch_size=None,
        num_workers=preparation.workers,
        pin_memory=device.type == "cuda",
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        worker_init_fn=_start_worker,
        # A fork of a process that uses CUDA can hang.
        multiprocessing_context="forkserver" if preparation.workers and torch.cuda.is_available() else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _Reader(Dataset):
    """Whole batches as items, so that a worker process hands over one tensor and not many small ones."""

    def __init__(self, dataset: ImageDataset, batches: Sequence[Rows], preparation: Preparation, masks: bool) -> None:
        self.dataset, self.batches, self.preparation, self.masks = dataset, batches, preparation, masks

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, batch: int) -> Batch | UserError:
        try:
            return self._read(self.batches[batch])
        except UserError as error:  # raised in the loop above: a worker would wrap it in its traceback
            return error

    def _read(self, indices: Rows) -> Batch:
        images = [self.dataset.image(int(i)) for i in indices]
        resize, size = self.preparation.resize, self.preparation.size
        masks = None
        if self.masks:
            whole = [checked_mask(self.dataset, int(i), image.shape[:2]) for i, image in zip(indices, images)]
            masks = torch.stack([torch.as_tensor(eval_mask(mask, resize, size)) for mask in whole])
        return eval_batch(images, resize, size), masks


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that computes decides


def _as_it_is(batch: Batch | UserError) -> Batch | UserError:
    return batch
