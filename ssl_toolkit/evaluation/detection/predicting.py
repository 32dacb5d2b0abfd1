"""Predicted boxes of a whole split, each process doing its share of the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from ssl_toolkit.criteria.distributed import rank, world_size
from ssl_toolkit.data.base import ImageDataset
from ssl_toolkit.errors import UserError
from ssl_toolkit.evaluation.detection.metrics import (
    Boxes,
    average_precision,
    joined_boxes,
    mask_average_precision,
    run_lengths,
)
from ssl_toolkit.evaluation.detection.objects import check_mask_sizes, resized, true_boxes, true_masks
from ssl_toolkit.evaluation.live import Key
from ssl_toolkit.processes.world import agree, from_first
from ssl_toolkit.progress import progress_bar
from ssl_toolkit.views.loader import epoch_of, stop_workers, worker_loader


class Found(NamedTuple):
    """What is found in one image: ``boxes`` ``(n, 4)`` in its pixels, ``scores`` and ``labels`` ``(n,)``.

    ``masks`` ``(n, M, M)``, the probability that a part of the box belongs to the object, where they are looked for.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


Predict = Callable[[Tensor], "list[list[Found]]"]
"""``(B, C, H, W)`` on the device, values 0 to 255, to what each of L detectors finds in each image."""


@dataclass(frozen=True)
class Reading:
    """How images are read for detection.

    Attributes:
        short, longest: the shorter side in pixels, and the most that the longer may have.
        batch_size: images a forward pass, of those of one shape.
        workers: processes that read images; 0 reads them in this one.
    """

    short: int
    longest: int | None
    batch_size: int
    workers: int = 0


class _Images(Dataset[Any]):
    """Whole images by their keys: ``(index, pixels, scale)`` of each; an error is returned, to leave a worker as it
    is."""

    def __init__(self, dataset: ImageDataset, reading: Reading) -> None:
        self.dataset, self.reading = dataset, reading

    def __getitems__(self, keys: Sequence[Key]) -> Any:
        short, longest = self.reading.short, self.reading.longest
        try:
            return [(index, *resized(self.dataset.image(index), short, longest)) for _, index in keys]
        except UserError as error:
            return error


def _batches(dataset: ImageDataset, indices: Sequence[int], reading: Reading) -> Generator[Any, None, None]:
    size = reading.batch_size
    keys = [[(0, index) for index in indices[start : start + size]] for start in range(0, len(indices), size)]
    loader = worker_loader(_Images(dataset, reading), keys, reading.workers)
    try:
        for batch in epoch_of(loader):
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        stop_workers(loader)


def find(
    predict: Predict,
    dataset: ImageDataset,
    reading: Reading,
    device: torch.device,
    title: str,
    console: Console | None = None,
) -> list[Boxes]:
    """What each detector finds in the images of ``dataset``, in pixels of the images; in every process the same.

    Images of one shape are handed to ``predict`` together, so that what is found in one does not depend on others.

    Raises:
        UserError: an image that cannot be read, in every process.
    """
    mine = range(rank(), len(dataset), world_size())
    parts = agree(lambda: _find_in(mine, predict, dataset, reading, device, title, console))
    everyone: list[list[Boxes]] = [parts]
    if world_size() > 1:
        everyone = [[] for _ in range(world_size())]
        dist.all_gather_object(everyone, parts)
    heads = max(len(part) for part in everyone)
    return [joined_boxes([part[head] for part in everyone if part]) for head in range(heads)]


def _find_in(
    indices: Sequence[int],
    predict: Predict,
    dataset: ImageDataset,
    reading: Reading,
    device: torch.device,
    title: str,
    console: Console | None,
) -> list[Boxes]:
    found: list[list[Boxes]] = []
    with (
        closing(_batches(dataset, indices, reading)) as batches,
        progress_bar(title, len(indices), console=console) as bar,
    ):
        for batch in batches:
            for group in _by_shape(batch):
                images = torch.stack([pixels for _, pixels, _ in group]).to(device)
                with torch.inference_mode():
                    heads = predict(images)
                found += [
                    [_in_image_pixels(head[i], index, scale, tuple(pixels.shape[1:])) for head in heads]
                    for i, (index, pixels, scale) in enumerate(group)
                ]
            bar.advance(len(batch))
    return [joined_boxes([image[head] for image in found]) for head in range(len(found[0]) if found else 0)]


def _by_shape(batch: Sequence[Any]) -> list[list[Any]]:
    groups: dict[tuple[int, ...], list[Any]] = {}
    for row in batch:
        groups.setdefault(tuple(row[1].shape), []).append(row)
    return list(groups.values())


def _in_image_pixels(found: Found, index: int, scale: tuple[float, float], shape: tuple[int, ...]) -> Boxes:
    """``found`` in an image that became ``scale`` times wider and higher, and of ``shape``, in the image's pixels."""
    boxes = found.boxes.float().cpu().numpy() / np.array([*scale, *scale], dtype=np.float32)
    labels, scores = found.labels.cpu().numpy().astype(np.int64), found.scores.float().cpu().numpy()
    masks = None
    if found.masks is not None:
        height, width = round(shape[0] / scale[1]), round(shape[1] / scale[0])
        # what torchvision trains masks on (RoIAlign, not aligned) is taken half a pixel of its image further on
        shift = 0.5 / torch.tensor([*scale, *scale])
        masks = pasted(found.masks.float().cpu(), torch.from_numpy(boxes) + shift, height, width)
    return Boxes(np.full(len(labels), index), boxes.astype(np.float32), labels, scores, masks)


def pasted(masks: Tensor, boxes: Tensor, height: int, width: int) -> NDArray[np.object_]:
    """Masks of boxes as run lengths of masks of the image: pixels whose centre has a probability of 0.5 or more.

    Args:
        masks: ``(n, M, M)``, probabilities at the centres of the M x M parts of each box; outside the box 0.
        boxes: ``(n, 4)`` in pixels.
    """
    runs = np.empty(len(masks), dtype=object)
    for i, (mask, box) in enumerate(zip(masks, boxes.tolist())):
        x, y = _pixels(box[0], box[2], width), _pixels(box[1], box[3], height)
        across = 2 * (x + 0.5 - box[0]) / max(box[2] - box[0], 1e-6) - 1
        down = 2 * (y + 0.5 - box[1]) / max(box[3] - box[1], 1e-6) - 1
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)[None]
        image = np.zeros((1, height, width), dtype=bool)
        if grid.numel():
            part = F.grid_sample(mask[None, None], grid, mode="bilinear", align_corners=False)[0, 0] >= 0.5
            image[0, int(y[0]) : int(y[-1]) + 1, int(x[0]) : int(x[-1]) + 1] = part.numpy()
        runs[i] = run_lengths(image)[0]
    return runs


def _pixels(first: float, last: float, side: int) -> Tensor:
    start = min(max(int(first), 0), side)
    return torch.arange(start, max(start, min(math.ceil(last), side)))


def score(found: Sequence[Boxes], dataset: ImageDataset, rule: str) -> list[NDArray[np.float64]]:
    """`average_precision` of what each detector found in a split; computed once, the same in every process."""
    classes = len(dataset.object_classes or ())

    def table() -> list[NDArray[np.float64]]:
        truth = true_boxes(dataset)
        return [average_precision(boxes, truth, classes, rule) for boxes in found]

    return from_first(table)


def score_masks(found: Boxes, dataset: ImageDataset) -> NDArray[np.float64]:
    """`mask_average_precision` of what a detector found in a split; computed once, the same in every process.

    Raises:
        UserError: true masks of another size than their image.
    """
    classes = len(dataset.object_classes or ())

    def table() -> NDArray[np.float64]:
        truth = true_masks(dataset)
        check_mask_sizes(dataset, truth, found)
        return mask_average_precision(found, truth, classes)

    return from_first(table)
