"""Predictions at the resolution of each mask, and their confusion over the images of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from ssl_toolkit.criteria.distributed import rank, sum_over_ranks, world_size
from ssl_toolkit.data.base import Image, ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.live import Key
from ssl_toolkit.evaluation.metrics import confusion
from ssl_toolkit.evaluation.segmentation.augment import Mask, fitted, read_masked, resize_image
from ssl_toolkit.evaluation.segmentation.pixels import resized
from ssl_toolkit.processes.world import agree
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.views.loader import epoch_of, stop_workers, worker_loader

OVERLAP = 2 / 3
"""Of windows: how far apart they are, in windows (341 pixels for 512, as in mmsegmentation)."""

LOGITS = {"cpu": 2**22, "other": 2**27}
"""Logits at full resolution held at once, but for those of one image and one head."""


@dataclass(frozen=True)
class TestSpec:
    """How masks are predicted.

    Attributes:
        resize: the box (longer side, shorter side) that images are fitted into.
        slide: logits are the mean of those of overlapping windows of the size ``crop``, else of the whole image.
        crop: height and width of windows.
        multiple: sides given to the network are padded to multiples of these pixels, its total stride.
        normalise: ``(B, C, H, W)`` of 0 to 255 on any device to the network's input; what is padded is 0 there.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    resize: tuple[int, int]
    slide: bool
    crop: tuple[int, int]
    multiple: tuple[int, int]
    normalise: Callable[[Tensor], Tensor]


Network = Callable[[Tensor], Tensor]
"""``(B, C, H, W)`` to logits ``(K, L, B, h, w)`` that cover the input."""


def window_starts(length: int, window: int) -> list[int]:
    """Where windows begin along a side: `OVERLAP` of a window apart, the last one flush with the end."""
    stride = max(1, int(window * OVERLAP))
    count = -(-max(length - window, 0) // stride) + 1
    return [max(min(i * stride, length - window), 0) for i in range(count)]


def _window_logits(network: Network, images: Tensor, multiple: tuple[int, int]) -> Tensor:
    """``(B, C, H, W)`` to ``(K, L, B, H, W)``."""
    height, width = images.shape[2:]
    below, right = -height % multiple[0], -width % multiple[1]
    padded = torch.nn.functional.pad(images, (0, right, 0, below))
    cells = network(padded)
    return resized(cells, height + below, width + right)[..., :height, :width]


def image_logits(network: Network, images: Tensor, spec: TestSpec) -> Tensor:
    """Normalised images ``(B, C, H, W)`` to logits ``(K, L, B, H, W)``, whole or by windows."""
    if not spec.slide:
        return _window_logits(network, images, spec.multiple)
    (height, width), total, times = images.shape[2:], None, None
    for top in window_starts(height, spec.crop[0]):
        for left in window_starts(width, spec.crop[1]):
            where = (..., slice(top, top + spec.crop[0]), slice(left, left + spec.crop[1]))
            logits = _window_logits(network, images[where], spec.multiple)
            if total is None or times is None:
                total = logits.new_zeros(*logits.shape[:3], height, width)
                times = logits.new_zeros(height, width)
            total[where] += logits
            times[where] += 1
    assert total is not None
    assert times is not None
    return total.div_(times)


@torch.no_grad()
def predicted(network: Network, images: Tensor, height: int, width: int, spec: TestSpec) -> Tensor:
    """``(B, C, H, W)`` of 0 to 255, fitted into ``spec.resize``, to classes at ``height`` by ``width`` pixels, ``(L, B,
    height, width)`` int64."""
    logits = image_logits(network, spec.normalise(images), spec)
    # One head and one image at a time: of 150 classes at 2 megapixels there are 1.2 GB of logits.
    flat = logits.flatten(1, 2)
    size = height * width * flat.shape[0]
    chunk = max(1, LOGITS["cpu" if flat.device.type == "cpu" else "other"] // size)
    classes = torch.cat([resized(part, height, width).max(0).indices for part in torch.split(flat, chunk, 1)])
    return classes.view(*logits.shape[1:3], height, width)


class _Reader(Dataset[Any]):
    """Images with masks, fitted into ``resize``."""

    def __init__(self, dataset: ImageDataset, resize: tuple[int, int]) -> None:
        self.dataset, self.resize = dataset, resize

    def __getitems__(self, keys: list[Key]) -> list[tuple[Image, Mask]] | UserError:
        try:
            return [fitted_pair(self.dataset, index, self.resize) for _, index in keys]
        except UserError as error:  # raised in the loop below: a worker would wrap it in its traceback
            return error


def fitted_pair(dataset: ImageDataset, index: int, resize: tuple[int, int]) -> tuple[Image, Mask]:
    """Image ``index`` fitted into the box ``resize``, and its mask as it is."""
    image, mask = read_masked(dataset, index)
    height, width = mask.shape
    return resize_image(image, *fitted(height, width, resize)), mask


def _groups(
    dataset: ImageDataset, indices: Sequence[int], spec: TestSpec, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images ``(n, C, H, W)`` and masks ``(n, h, w)`` of one size: neighbours that share both."""
    keys = [[(0, index) for index in indices[i : i + batch_size]] for i in range(0, len(indices), batch_size)]
    loader = worker_loader(_Reader(dataset, spec.resize), keys, workers)
    try:
        for pairs in epoch_of(loader):
            if isinstance(pairs, UserError):
                raise pairs
            yield from _alike(pairs)
    finally:
        stop_workers(loader)


def _alike(pairs: Sequence[tuple[Image, Mask]]) -> Iterator[tuple[Tensor, Tensor]]:
    groups: dict[tuple[int, ...], list[tuple[Image, Mask]]] = {}
    for image, mask in pairs:
        groups.setdefault((*image.shape, *mask.shape), []).append((image, mask))
    for group in groups.values():
        images, masks = (np.stack(part) for part in zip(*group))
        pixels: NDArray[Any] = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        yield torch.from_numpy(pixels), torch.from_numpy(masks)


def evaluate_split(
    network: Network,
    heads: int,
    dataset: ImageDataset,
    spec: TestSpec,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    title: str,
    console: Console | None = None,
) -> Tensor:
    """Confusion of every head over all images of ``dataset``, ``(L, K, K)`` int64 on the CPU, in every process.

    Each process takes every n-th image, none is taken twice, and counts are added up as whole numbers.

    Args:
        batch_size: images at a time, where they are of one size and none is larger than a window.

    Raises:
        UserError: an image or a mask that cannot be read, in every process.
    """
    assert dataset.mask_classes is not None
    classes = len(dataset.mask_classes)
    matrix = torch.zeros(heads, classes, classes, dtype=torch.int64, device=device)
    mine = range(rank(), len(dataset), world_size())

    def count() -> None:
        with progress_bar(title, len(mine), console=console) as bar:
            for images, masks in _groups(dataset, mine, spec, batch_size, workers):
                part = max(1, batch_size * spec.crop[0] * spec.crop[1] // images[0, 0].numel())
                for some, truth in zip(torch.split(images, part), torch.split(masks, part)):
                    prediction = predicted(network, some.to(device), truth.shape[1], truth.shape[2], spec)
                    matrix.add_(confusion(prediction, truth.to(device), classes))
                    bar.advance(len(some))

    agree(count)
    return sum_over_ranks(matrix).cpu()
